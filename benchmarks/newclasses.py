"""Classes that a model was not trained on: how well they are told from known ones, and named once they are enrolled.

A base learns four fifths of the classes and becomes a version. Test images of the rest are shown to it as unknown; then
they are enrolled with few images, one at a time and all together: by their means, and by rows of the last layer that
are made of them, as exporter/provisional.py makes them.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lifelist.benchmarks import trained
from lifelist.benchmarks.machine import machine
from lifelist.benchmarks.protocols import order
from lifelist.benchmarks.trained import PROVISIONAL_LOSS, TEST, Around, Said, base_options, said, sorted_into_roles
from lifelist.exporter import session
from lifelist.exporter.fold import Floats, unit
from lifelist.exporter.provisional import HeldOut, Provisional
from lifelist.exporter.registry import Registry
from lifelist.exporter.unknowns import calibrate, unknown_scores
from lifelist.training.data import GATE, TRAINING, Dataset, read
from lifelist.training.job import Class, Learned, Task
from lifelist.training.loop import Event, seeded
from lifelist.training.options import TrainingOptions

LEFT_OUT = 5  # every fifth class: those that would arrive last
HELD_SHARE = 0.1  # of a known class's images for training: the gate's
TEST_SHARE = 0.2  # where the data set has no test images of its own
FALSE_ALARMS = 0.05
KINDS = ("linear", "nearest_mean")

Facts = dict[str, Any]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    data: str = "turned-digits"
    epochs: int = 12
    image_size: int = 32
    images: Sequence[int] = (5, 20, 100)  # of a class that is enrolled
    order: str = "facil"
    device: str = "auto"

    @property
    def options(self) -> TrainingOptions:
        """Those of the base."""
        return base_options(self.data, self.epochs, self.image_size, self.device)


def measure(asked: Asked, folder: Path, tell: Tell, on_event: Callable[[Event], None]) -> Facts:
    """Train, or go on from what `folder` has, and measure. Shares and accuracies are in 0 … 1."""
    dataset, roles, task = _given(asked)
    learned = trained.learned(task, folder / "base", on_event)
    with tempfile.TemporaryDirectory() as temporary:
        loaded = _version(asked, dataset, learned, Path(temporary))
    known, means = np.array(learned.class_ids), unit(learned.means.numpy())
    tell("asks the version about all test and held-out images")
    test = said(loaded, dataset.images.take(roles == TEST))
    of_known = torch.isin(dataset.images.labels, torch.tensor(learned.class_ids))
    gate = said(loaded, dataset.images.take((roles == GATE) & of_known))
    held = HeldOut(gate.embedding, gate.logits, known, gate.labels, np.zeros((len(gate.labels), 0), np.float32))
    is_known = np.isin(test.labels, known)
    left_out = [c for c in range(len(dataset.names)) if c not in known]
    facts: Facts = {
        "bench": "newclasses",
        "classes": {"known": len(known), "left_out": [dataset.names[c] for c in left_out]},
        "images": {"known": int(is_known.sum()), "left_out": int((~is_known).sum()), "held_out": len(gate.labels)},
        "epochs": asked.epochs,
        "accuracy": _accuracies(test.of(is_known), known, means),
        "unknown": _unknown(test, is_known, means, held),
        "enrolled": {},
        "together": {},
    }
    for count in asked.images:
        new = np.stack([_mean(loaded, dataset, roles, c, count, asked.options) for c in left_out])
        each = [_enrolled(test, known, means, held, [c], new[[k]]) for k, c in enumerate(left_out)]
        facts["enrolled"][str(count)] = {name: [one[name] for one in each] for name in each[0]}
        facts["together"][str(count)] = _enrolled(test, known, means, held, left_out, new)
        tell(f"{count} images of a class: {_shown(facts, count)}")
    facts["machine"] = machine()
    facts["line"] = line(facts)
    return facts


def line(facts: Facts) -> dict[str, Any]:
    """The figures that matter, in one object."""
    found = {f"auroc_{name.replace(' ', '_')}": round(value, 4) for name, value in facts["unknown"]["auroc"].items()}
    for count, rows in facts["enrolled"].items():
        found |= {f"recall_{count}_{kind}": round(float(np.mean(rows[f"recall_{kind}"])), 4) for kind in KINDS}
    return found


def _shown(facts: Facts, count: int) -> str:
    rows = facts["enrolled"][str(count)]
    return ", ".join(f"{kind} names {np.mean(rows[f'recall_{kind}']):.1%} of its test images" for kind in KINDS)


# ------------------------------------------------------------------------------------------------------- the version


def _given(asked: Asked) -> tuple[Dataset, torch.Tensor, Task]:
    """(images, the role of each, what the base is given)."""
    dataset = read(asked.data, asked.options)
    arrival = [int(c) for c in order(asked.order)(len(dataset.names))]
    known = arrival[: len(arrival) - len(arrival) // LEFT_OUT]
    roles = sorted_into_roles(dataset, asked.options.seed, gate=HELD_SHARE, test=TEST_SHARE)
    which = torch.isin(dataset.images.labels, torch.tensor(known)) & (roles != TEST)
    task = Task(
        options=asked.options,
        new=tuple(Class(c, dataset.names[c]) for c in known),
        images=dataset.images.take(which),
        roles=roles[which],
    )
    return dataset, roles, task


def _version(asked: Asked, dataset: Dataset, learned: Learned, place: Path) -> session.Loaded:
    """The base as a version of a registry, loaded to answer on the CPU."""
    registry = Registry(str(place))
    version = trained.publish(registry, learned, Around(names=dict(enumerate(dataset.names)), options=asked.options))
    return session.load(registry, version.version, provider="cpu")


# ---------------------------------------------------------------------------------------------------------- unknowns


def _unknown(test: Said, is_known: npt.NDArray[np.bool_], means: Floats, held: HeldOut) -> Facts:
    """How well test images of known classes are told from those of others, by score; and what is called unknown."""
    best = test.logits.max(axis=1)
    total = np.log(np.exp(test.logits - best[:, None]).sum(axis=1))  # of the softmax, beside its largest term
    scores = {
        "largest logit": best,
        "largest probability": -total,  # its logarithm, which orders images alike
        "energy": best + total,  # Liu et al., NeurIPS 2020
        "nearest mean": (test.embedding @ means.T).max(axis=1),
    }
    calibrated = calibrate(held, means)
    facts: Facts = {"auroc": {name: auroc(score[is_known], score[~is_known]) for name, score in scores.items()}}
    if calibrated is not None:
        for kind, name in zip(KINDS, ("largest logit", "nearest mean"), strict=True):
            called = unknown_scores(scores[name], getattr(calibrated, kind)) > 1 - FALSE_ALARMS
            facts[kind] = {"false_alarms": float(called[is_known].mean()), "found": float(called[~is_known].mean())}
    facts["curves"] = {name: _curve(score[is_known], score[~is_known]) for name, score in scores.items()}
    return facts


def auroc(known: Floats, unknown: Floats) -> float:
    """The share of pairs of a known and an unknown image in which the known one has the larger score; ties are half."""
    ranked = np.sort(known)
    below = np.searchsorted(ranked, unknown, "left") + np.searchsorted(ranked, unknown, "right")
    return 1 - float(below.mean()) / (2 * len(known))


def _curve(known: Floats, unknown: Floats) -> list[float]:
    """The share of unknown images that are found, at false alarms of 0, 0.02, … 1."""
    return [round(float((unknown < bound).mean()), 4) for bound in np.quantile(known, np.linspace(0, 1, 51))]


# --------------------------------------------------------------------------------------------------------- enrolment


def _mean(
    loaded: session.Loaded, dataset: Dataset, roles: torch.Tensor, class_id: int, count: int, options: TrainingOptions
) -> Floats:
    """The mean of some images of a class, drawn by lot, as an enrolment computes it."""
    which = ((dataset.images.labels == class_id) & (roles == TRAINING)).nonzero()[:, 0]
    chosen = which[torch.randperm(len(which), generator=seeded(options.seed, "enrolled", class_id))[:count]]
    pixels = dataset.images.pixels.take(chosen)[:].numpy()
    shown = [pixels, np.ascontiguousarray(pixels[:, :, ::-1])] if options.flip else [pixels]
    found: Floats = unit(np.concatenate([loaded.run(view)[1] for view in shown]).mean(axis=0, dtype=np.float64))
    return found


def _enrolled(
    test: Said, known: npt.NDArray[np.int64], means: Floats, held: HeldOut, ids: Sequence[int], new: Floats
) -> dict[str, float]:
    """What is right of the test images of classes `ids`, E×D means, once they are enrolled; and of the known ones."""
    scale, offset = held.fit(new, PROVISIONAL_LOSS)
    rows = Provisional(tuple(ids), scale, offset)
    logits = np.concatenate([test.logits, rows.logits(test.embedding, new)], axis=1)
    after = Said(test.labels, logits, test.embedding)
    every, all_means = np.array([*known, *ids]), np.concatenate([means, new])
    shown, old = after.of(np.isin(test.labels, ids)), after.of(np.isin(test.labels, known))
    found = {}
    for kind in KINDS:
        found[f"recall_{kind}"] = _accuracies(shown, every, all_means)[kind]
        found[f"old_{kind}"] = _accuracies(old, every, all_means)[kind]
    for name, on, row in (("before", means, None), ("after", all_means, rows)):
        if (calibrated := calibrate(held, on, row)) is not None:
            looks = {
                "linear": shown.logits[:, : None if row else len(known)].max(axis=1),
                "nearest_mean": (shown.embedding @ on.T).max(axis=1),
            }
            for kind in KINDS:
                called = unknown_scores(looks[kind], getattr(calibrated, kind)) > 1 - FALSE_ALARMS
                found[f"unknown_{name}_{kind}"] = float(called.mean())
    return found


def _accuracies(said: Said, ids: npt.NDArray[np.int64], means: Floats) -> dict[str, float]:
    """By kind of answer, over the classes `ids`: those of the columns of logits, and of the means."""
    answered = {"linear": said.logits.argmax(axis=1), "nearest_mean": (said.embedding @ means.T).argmax(axis=1)}
    return {kind: float((ids[rows] == said.labels).mean()) for kind, rows in answered.items()}
