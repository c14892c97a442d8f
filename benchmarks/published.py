"""Published figures for the protocols of protocols.py, in %: where they stand, and in what their setting differs."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from lifelist.benchmarks.protocols import memory
from lifelist.training.methods import METHODS, Schedule, Schedules

Difference = tuple[str, str, str]  # in what, ours, published ("": not known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a figure depends on besides protocol, method and answer, in words that can be compared; "": not known."""

    order: str = ""  # of classes, as protocols.ORDERS names it
    memory: str = "2,000 in all"
    network: str = "ResNet-32"
    epochs: str = ""  # of the base, and then of an increment, if that has others; so with all of these
    learning_rate: str = ""
    batch: str = ""
    weight_decay: str = ""
    images: str = "full size"
    augmentation: str = "crop, flip"
    precision: str = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where figures are printed."""

    cite: str
    setting: Setting  # of every method …
    settings: Mapping[str, Setting] = field(default_factory=dict)  # … but these
    besides: Mapping[str, str] = field(default_factory=dict)  # what else is done otherwise; "": with every method


@dataclass(frozen=True, slots=True)
class Figure:
    """One method's row. Averages are over increments, the base included or not; None where it is not printed."""

    protocol: str
    method: str
    source: str
    average: float | None = None  # base included
    average_without_base: float | None = None
    last: float | None = None
    curve: tuple[float, ...] = ()  # after each increment
    head: str = ""  # which answer, as evaluate names it; "": that of the method
    besides: str = ""  # what else is done otherwise

    @property
    def setting(self) -> Setting:
        """Under which it was measured."""
        source = SOURCES[self.source]
        return source.settings.get(self.method, source.setting)


NETWORKS = {"resnet32": "ResNet-32", "resnet32-icarl": "ResNet-32 without last ReLU"}


def trained(schedules: Mapping[str, Any]) -> dict[str, str]:
    """Those words of a Setting that a method's Schedules say; a mapping, as runs keep them."""
    phases = [schedules[name] for name in ("base", "increment", "balanced") if schedules[name] is not None]

    def each(say: Callable[[Mapping[str, Any]], str]) -> str:
        return ", then ".join(words for words, _ in itertools.groupby(map(say, phases)))

    def rate(phase: Mapping[str, Any]) -> str:
        if phase["shape"] == "one_cycle":
            return f"one cycle to {phase['learning_rate']:g}"
        milestones = ", ".join(map(str, phase["milestones"]))
        return f"{phase['learning_rate']:g}, × {phase['factor']:g} after {milestones}"

    return {
        "epochs": each(lambda p: f"{p['epochs']}" + (f" × {p['views']} views" if p["views"] > 1 else "")),
        "learning_rate": each(rate),
        "batch": each(lambda p: str(p["batch_size"])),
        "weight_decay": each(lambda p: f"{p['weight_decay']:g}"),
        "images": each(lambda p: "full size" if min(p["zooms"]) == 1 else f"from {min(p['zooms']):g} of the size up"),
    }


def ours(run: Mapping[str, Any]) -> Setting:
    """That of one of our runs (accuracy.Run)."""
    options, colour = run["options"], run["schedules"]["increment"]["colour"] or run["options"]["colour"]
    augmentation = {"crop": options["crop"], "flip": options["flip"], "brightness or contrast": colour}
    return Setting(
        order=run["order"],
        memory=memory(options["memory_total"], options["memory_per_class"]),
        network=NETWORKS.get(options["network"], options["network"]),
        augmentation=", ".join(name for name, is_used in augmentation.items() if is_used),
        precision=run["software"]["precision"],
        **trained(run["schedules"]),
    )


def differences(run: Mapping[str, Any], figure: Figure) -> list[Difference]:
    """In what the setting of a run is not that of a figure."""
    here, there, row = ours(run), figure.setting, METHODS[figure.method]
    remembers = row.replays and not row.keeps_all
    pairs = [(f.name, getattr(here, f.name), getattr(there, f.name)) for f in fields(Setting)]
    return [(name.replace("_", " "), a, b) for name, a, b in pairs if a != b and (name != "memory" or remembers)]


def besides(figure: Figure) -> list[str]:
    """What else is done otherwise there."""
    said = SOURCES[figure.source].besides
    return [words for words in (said.get(""), said.get(figure.method), figure.besides) if words]


def _as(*schedules: Schedule, **more: str) -> Setting:
    """The setting of a base, of an increment (else as the base)."""
    return Setting(**trained(asdict(Schedules(schedules[0], schedules[-1]))), **more)


_STEPS = Schedule(epochs=250, learning_rate=0.1, milestones=(100, 150, 200))  # BiC and WA, by their authors
_ICARL = Schedule(epochs=70, learning_rate=2.0, milestones=(49, 63), factor=0.2, weight_decay=2e-5)
_PYCIL_BASE = replace(_STEPS, epochs=200, milestones=(60, 120, 170), weight_decay=5e-4)
_PYCIL = {
    "finetune": replace(_STEPS, epochs=80, milestones=(40, 70)),
    "replay": replace(_STEPS, epochs=70, milestones=(30, 50)),
    "icarl": replace(_STEPS, epochs=170, milestones=(80, 120)),
    "wa": replace(_STEPS, epochs=170, milestones=(60, 100, 140)),
}
_BRIGHTNESS = "crop, flip, brightness"

SOURCES: Mapping[str, Source] = {
    "CILS": Source(
        cite="Zhou et al., Class-Incremental Learning: A Survey, TPAMI 2024, table II and tables 19 to 22; schedules "
        "as in the code that it names, PyCIL",
        setting=Setting(order="facil", augmentation=_BRIGHTNESS),
        settings={
            **{
                method: _as(_PYCIL_BASE, schedule, order="facil", augmentation=_BRIGHTNESS)
                for method, schedule in _PYCIL.items()
            },
            "bic": replace(
                _as(_STEPS, order="facil", augmentation=_BRIGHTNESS),
                epochs="250 (in the survey's own repository 170)",
            ),
        },
        besides={
            "finetune": "loss on the new outputs only",
            "icarl": "softmax losses, labels of exemplars shown to old outputs, no mirror images in the means",
            "bic": "hold-out trained on, a second softmax in stage 2",
        },
    ),
    "WA": Source(
        cite="Zhao et al., WA, CVPR 2020, tables 2 and 4; rows of other methods are its authors' runs of them",
        setting=Setting(),
        settings={"wa": _as(_STEPS), "replay": _as(_STEPS)},
    ),
    "iCaRL": Source(
        cite="Rebuffi et al., iCaRL, CVPR 2017, table 1",
        setting=_as(_ICARL, order="10 orders, mean", network=NETWORKS["resnet32-icarl"]),
        besides={"icarl": "memory rounded up"},
    ),
    "BiC": Source(
        cite="Wu et al., BiC, CVPR 2019, table 3",
        setting=_as(_STEPS),
        besides={"": "weight decay larger in the first increments"},
    ),
    "PODNet": Source(
        cite="Douillard et al., PODNet, ECCV 2020, table 1; its authors' runs, schedules as in their code",
        setting=Setting(order="3 orders, mean", memory="20 per class"),
        settings={
            method: _as(schedule, order="3 orders, mean", memory="20 per class", network=NETWORKS["resnet32-icarl"])
            for method, schedule in {"icarl": replace(_ICARL, weight_decay=5e-5), "bic": _STEPS}.items()
        },
        besides={"bic": "sigmoid distillation, stage 2 not used in answers"},
    ),
}


def _curve(
    protocol: str,
    method: str,
    source: str,
    text: str,
    average: float | None = None,
    *,
    head: str = "",
    besides: str = "",
) -> Figure:
    """A printed curve. average: as printed beside it; else that of the curve."""
    points = tuple(map(float, text.split()))
    if average is None:
        average = round(sum(points) / len(points), 2)
    without = round(sum(points[1:]) / (len(points) - 1), 2)
    return Figure(protocol, method, source, average, without, points[-1], points, head, besides)


_TEN, _FIVE, _TWENTY, _HALF, _HALF25 = (
    "cifar100-10x10",
    "cifar100-20x5",
    "cifar100-5x20",
    "cifar100-b50-10",
    "cifar100-b50-25",
)

_NO_CORRECTION = "a student never corrected, nor its teacher"

FIGURES: tuple[Figure, ...] = (
    Figure(_TEN, "finetune", "CILS", 26.25, last=9.09),
    _curve(_TEN, "replay", "CILS", "90.80 78.65 71.40 62.98 57.86 52.53 50.83 45.15 41.89 41.01", 59.31),
    _curve(_TEN, "icarl", "CILS", "90.80 78.35 73.97 67.65 63.94 59.88 57.77 52.80 51.04 49.52", 64.42),
    _curve(_TEN, "bic", "CILS", "88.80 76.45 72.77 67.88 64.36 61.90 59.17 55.98 52.70 50.79", 65.08),
    _curve(_TEN, "wa", "CILS", "90.80 79.50 75.10 69.95 67.50 63.38 61.44 57.08 53.81 52.30", 67.09),
    Figure(_TEN, "icarl", "iCaRL", 64.1),
    Figure(_TEN, "icarl", "iCaRL", 59.3, head="linear"),
    Figure(_TEN, "icarl", "WA", average_without_base=61.6),
    Figure(_TEN, "eeil", "WA", average_without_base=63.6),
    Figure(_TEN, "bic", "WA", average_without_base=63.5),
    Figure(_TEN, "wa", "WA", average_without_base=64.5),
    Figure(_TEN, "joint", "iCaRL", last=68.6),
    Figure(_TEN, "joint", "WA", last=70.1),
    Figure(_FIVE, "finetune", "CILS", 17.59, last=4.83),
    Figure(_FIVE, "replay", "CILS", 58.20, last=38.69),
    _curve(
        _FIVE,
        "icarl",
        "CILS",
        "97.00 89.80 81.93 75.45 73.80 72.37 68.63 64.50 63.04 61.44 "
        "58.98 58.18 56.49 54.20 52.55 50.92 49.25 48.57 47.57 45.12",
        63.51,
    ),
    _curve(
        _FIVE,
        "bic",
        "CILS",
        "97.40 89.20 79.60 73.50 72.24 69.03 66.63 63.95 63.93 62.06 "
        "60.05 56.92 55.18 53.07 51.59 50.06 48.38 46.87 44.83 43.08",
        62.38,
    ),
    _curve(
        _FIVE,
        "wa",
        "CILS",
        "97.60 89.20 80.47 75.30 73.24 70.93 68.77 64.88 64.07 63.64 "
        "61.36 59.23 57.82 57.07 55.24 53.30 51.55 50.73 50.09 48.46",
        64.65,
    ),
    Figure(_FIVE, "icarl", "iCaRL", 61.2),
    Figure(_FIVE, "icarl", "iCaRL", 50.9, head="linear"),
    Figure(_FIVE, "icarl", "WA", average_without_base=59.7),
    Figure(_FIVE, "eeil", "WA", average_without_base=63.4),
    Figure(_FIVE, "bic", "WA", average_without_base=62.1),
    Figure(_FIVE, "wa", "WA", average_without_base=62.6),
    _curve(_TWENTY, "bic", "BiC", "84.00 74.69 67.93 61.25 56.69"),
    _curve(_TWENTY, "bic", "BiC", "85.05 72.22 59.41 50.43 40.34", head="linear_uncorrected", besides=_NO_CORRECTION),
    _curve(_TWENTY, "replay", "BiC", "84.40 68.30 55.10 48.52 39.83"),
    _curve(_TWENTY, "wa", "WA", "83.5 75.5 68.7 63.1 59.2"),
    _curve(_TWENTY, "wa", "WA", "83.5 72.8 60.1 49.9 42.9", head="linear_uncorrected", besides=_NO_CORRECTION),
    _curve(_TWENTY, "replay", "WA", "83.5 70.7 58.2 49.2 43.3"),
    Figure(_TWENTY, "icarl", "iCaRL", 67.2),
    Figure(_TWENTY, "icarl", "iCaRL", 65.6, head="linear"),
    Figure(_TWENTY, "icarl", "WA", average_without_base=63.3),
    Figure(_TWENTY, "eeil", "WA", average_without_base=63.7),
    Figure("cifar100-50x2", "icarl", "iCaRL", 57.0),
    Figure("cifar100-50x2", "icarl", "iCaRL", 36.6, head="linear"),
    Figure("cifar100-2x50", "icarl", "iCaRL", 68.6),
    Figure("cifar100-2x50", "icarl", "iCaRL", 68.2, head="linear"),
    Figure("cifar100-2x50", "icarl", "WA", average_without_base=62.0),
    Figure("cifar100-2x50", "eeil", "WA", average_without_base=60.8),
    Figure("cifar100-2x50", "bic", "WA", average_without_base=64.9),
    Figure("cifar100-2x50", "wa", "WA", average_without_base=65.1),
    _curve(_HALF, "icarl", "CILS", "76.52 66.05 62.97 56.90 53.86 52.04"),
    _curve(_HALF, "bic", "CILS", "74.14 68.62 62.06 58.29 53.77 49.19"),
    _curve(_HALF, "wa", "CILS", "76.54 68.65 66.43 60.74 57.68 55.85"),
    _curve(_HALF25, "icarl", "CILS", "76.52 64.88 57.59"),
    _curve(_HALF25, "bic", "CILS", "74.68 65.91 59.77"),
    _curve(_HALF25, "wa", "CILS", "76.54 66.57 61.49"),
    Figure("cifar100-b50-1", "icarl", "PODNet", 44.20),
    Figure("cifar100-b50-1", "bic", "PODNet", 47.09),
    Figure("cifar100-b50-2", "icarl", "PODNet", 50.60),
    Figure("cifar100-b50-2", "bic", "PODNet", 48.96),
    Figure("cifar100-b50-5", "icarl", "PODNet", 53.78),
    Figure("cifar100-b50-5", "bic", "PODNet", 53.21),
    Figure(_HALF, "icarl", "PODNet", 58.08),
    Figure(_HALF, "bic", "PODNet", 56.86),
)


def figures(protocol: str, method: str, head: str) -> list[Figure]:
    """What was published of a method's answer under a protocol, in order of the table above."""
    wanted = (protocol, method, head)
    return [f for f in FIGURES if (f.protocol, f.method, f.head or METHODS[f.method].answers_by) == wanted]
