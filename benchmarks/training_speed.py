"""How fast an increment is learnt, as ratios to a reference and to the bare passes, all in one run.

One BiC increment from 10 to 20 classes: 480 training images of each new class, 180 exemplars of each old one, and 20
held-out images of each; 6,600 to train on where a class has 500 (CIFAR-100). Both sides get the same teacher, and the
same images.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelist.benchmarks import reference
from lifelist.benchmarks.machine import processor
from lifelist.benchmarks.phases import profiled
from lifelist.exporter import fold, graph
from lifelist.exporter.errors import BadInput
from lifelist.exporter.manifest import Preprocess
from lifelist.training import experiment, increment
from lifelist.training.data import GATE, Dataset, Images, read, roles_on_arrival
from lifelist.training.exemplars import shares
from lifelist.training.job import Learned, Task
from lifelist.training.loop import Event, Run, Teacher, quickest, seeded, start
from lifelist.training.methods import METHODS
from lifelist.training.network import Network
from lifelist.training.options import TrainingOptions

CLASSES, NEW = 20, 10
HELD = 20  # hold-out images of each class, or a tenth of a smaller one
MEMORY = 2000
FLOOR_STEPS = 30
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure."""

    data: str = "turned-digits"
    epochs: int = 6
    repeats: int = 3
    image_size: int = 32
    workers: int | None = None  # of the reference's DataLoader; None: what is best here
    device: str = "auto"

    def options(self, **changed: Any) -> TrainingOptions:
        """BiC by the paper's schedule, shortened; in the precision that `bench accuracy` takes, too."""
        return replace(
            TrainingOptions(
                schedule="paper",
                epochs=self.epochs,
                image_size=self.image_size,
                flip=not self.data.endswith("digits"),
                memory_total=MEMORY,
                precision=quickest(self.device),
                device=self.device,
            ),
            **changed,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Round:
    """One repeat: ours, ours with small images first, the reference, and the bare passes, one after the other."""

    ours: Learned
    phases: Mapping[str, float]  # seconds, export included
    passes: Mapping[str, float]  # of these, in the networks
    trained: tuple[float, float]  # images, seconds of all epochs
    small: Learned
    small_phases: Mapping[str, float]
    reference: reference.Outcome
    floor: float  # images/s, just before and after ours
    selection: float  # seconds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """What every repeat starts from."""

    task: Task  # the increment
    base: Learned  # of the first ten classes
    images: Images  # all that are not for testing, of all classes: what exemplars are chosen from

    def run(self) -> Run:
        return start(self.task.options, mean=self.base.mean, std=self.base.std)


def measure(asked: Asked, tell: Callable[[str], None]) -> Facts:
    """Everything that the page shows. tell: gets a line of progress now and then."""
    tell("a teacher of ten classes, for both")
    setting = prepare(asked)
    workers = asked.workers
    if workers is None:
        workers = reference.best_workers(given(setting, workers=0))
        tell(f"the reference's DataLoader is quickest with {workers} workers here")
    rounds = []
    for k in range(asked.repeats):
        rounds.append(_round(setting, seed=k, workers=workers))
        ours, other = rounds[-1].ours.seconds, rounds[-1].reference.seconds
        tell(f"repeat {k + 1} of {asked.repeats}: ours {ours:.1f} s, the reference {other:.1f} s")
    return _facts(asked, setting, rounds, workers)


def prepare(asked: Asked) -> Setting:
    """Read the images, give each its role, and train the base. BadInput if there are too few classes."""
    options = asked.options()
    dataset = read(asked.data, options)
    if len(dataset.names) < CLASSES:
        raise BadInput(f"{asked.data} has {len(dataset.names)} classes; this takes {CLASSES}, half of them as the base")
    chosen = dataset.images.labels < CLASSES
    images, test = dataset.images.take(chosen), dataset.test[chosen]
    gate = 0.0 if bool(test.any()) else experiment.TEST_SHARE
    held = min(experiment.HOLDOUT_SHARE, (HELD + 0.5) * CLASSES / int((~test).sum()))
    roles = torch.full(images.labels.shape, GATE, dtype=torch.uint8)
    roles[~test] = roles_on_arrival(images.labels[~test], gate=gate, holdout=held, generator=seeded(0, "roles"))
    dataset = Dataset(images, dataset.names[:CLASSES], test)
    groups = experiment.groups_of(range(CLASSES), NEW)
    as_base = replace(options, schedule="short", epochs=2 * asked.epochs)
    base = increment.learn(experiment.next_task(dataset, roles, groups, [], as_base))
    task = experiment.next_task(dataset, roles, groups, [base], options)
    return Setting(task=task, base=base, images=images.take(roles != GATE))


def given(setting: Setting, *, workers: int) -> reference.Given:
    """What the reference starts from: the same student, teacher and images as ours."""
    task, run = setting.task, setting.run()
    student, _ = _networks(setting)
    assert task.teacher is not None  # the increment is not a base
    teacher = increment.load_network(task.teacher, task.options, len(task.old)).to(run.device)
    material = increment.sort_images(task, METHODS["bic"])

    def plain(images: Images) -> tuple[reference.Bytes, Tensor]:
        return images.pixels[:].numpy(), material.rows(task, images)

    return reference.Given(
        teacher=teacher,
        student=student.to(memory_format=torch.contiguous_format),
        train=plain(material.training),
        holdout=plain(material.holdout),
        test=plain(material.gate),
        exemplars=shares(task.options, CLASSES, reserved=True)[0],
        mean=run.mean,
        std=run.std,
        flip=task.options.flip,
        epochs=task.options.epochs,
        seed=task.options.seed,
        workers=workers,
    )


def _networks(setting: Setting) -> tuple[Network, Teacher]:
    student, teacher = increment.student_and_teacher(setting.task, METHODS["bic"], setting.run())
    assert teacher is not None  # the increment is not a base
    return student, teacher


def _round(setting: Setting, *, seed: int, workers: int) -> Round:
    options = replace(setting.task.options, seed=seed)
    setting = replace(setting, task=replace(setting.task, options=options))
    before = floor(setting)
    ours, phases, passes, trained = _ours(setting.task)
    after = floor(setting)
    other = reference.run(given(setting, workers=workers))
    small, small_phases, _, _ = _ours(replace(setting.task, options=replace(options, schedule="short")))
    export = {"export": export_seconds(setting.task, ours)}
    return Round(
        ours=ours,
        phases=phases | export,
        passes=passes,
        trained=trained,
        small=small,
        small_phases=small_phases | export,
        reference=other,
        floor=(before + after) / 2,
        selection=selection(setting, ours),
    )


def _ours(task: Task) -> tuple[Learned, dict[str, float], dict[str, float], tuple[float, float]]:
    """(the increment, seconds by phase, of these in the networks, (images, seconds) of its epochs)."""
    epochs: list[Event] = []
    with profiled() as profile:
        learned = increment.learn(task, on_event=lambda event: epochs.append(event) if "epoch" in event else None)
    images = sum(event["images_per_second"] * event["seconds"] for event in epochs)
    trained = images, sum(event["seconds"] for event in epochs)
    return learned, profile.seconds(learned.seconds), profile.passes(), trained


def export_seconds(task: Task, learned: Learned) -> float:
    """Of putting it into a graph, as a rollout does after training."""
    began = time.perf_counter()
    network = increment.load_network(learned.checkpoint, task.options, len(learned.class_ids))
    weight, bias = (tensor.detach().numpy() for tensor in (network.head.weight, network.head.bias))
    weight, bias = fold.fold_bias(weight, bias, learned.bias)
    size = task.options.image_size
    graph.export(network, weight=weight, bias=bias, preprocess=Preprocess(size, size, learned.mean, learned.std))
    return time.perf_counter() - began


def floor(setting: Setting) -> float:
    """Images/s of the bare passes: forward and backward of the student, forward of the teacher, on one ready batch.

    Nothing else: no images to fetch or augment, no loss but a sum, no optimiser. Arranged as the loop arranges it: on a
    CPU every core has a share of the batch, and a student of its own.
    """
    task, run = setting.task, setting.run()
    student, teacher = _networks(setting)
    threads = torch.get_num_threads()
    cores = threads if run.device.type == "cpu" else 1
    size, batch = task.options.image_size, METHODS["bic"].schedules["paper"].increment.batch_size
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(run.device)
    shares = images.contiguous(memory_format=torch.channels_last).chunk(cores)

    def pass_through(network: Network, share: Tensor) -> None:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.half):
            loss = network.logits(share).sum() + teacher(share).sum()
        torch.autograd.grad(loss, list(network.parameters()))

    def steps(network: Network, share: Tensor, count: int) -> None:
        for _ in range(count):
            pass_through(network, share)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)

    students = [student.train(), *(student.copy().train() for _ in shares[1:])]
    with ThreadPoolExecutor(len(shares), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for count in (3, FLOOR_STEPS):  # the first to warm up
            began = time.perf_counter()
            list(pool.map(steps, students, shares, [count] * len(shares)))
            seconds = time.perf_counter() - began
    torch.set_num_threads(threads)
    return batch * FLOOR_STEPS / seconds


def selection(setting: Setting, learned: Learned) -> float:
    """Seconds to choose MEMORY exemplars of CLASSES classes from all their images, feature pass included."""
    options, run = setting.task.options, setting.run()
    network = increment.load_network(learned.checkpoint, options, CLASSES)
    network.to(device=run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    classes = {c: setting.images.take(setting.images.labels == c) for c in range(CLASSES)}
    began = time.perf_counter()
    ranking = run.asked(network)
    for class_id, images in classes.items():
        increment.ranked(ranking, images, min(len(images), options.quota(CLASSES)), class_id, run)
    return time.perf_counter() - began


def _facts(asked: Asked, setting: Setting, rounds: Sequence[Round], workers: int) -> Facts:
    def median(of: Callable[[Round], float]) -> float:
        return statistics.median(map(of, rounds))

    def phases(of: Callable[[Round], Mapping[str, float]]) -> dict[str, float]:
        found = [of(r) for r in rounds]
        return {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}

    ratios = sorted(r.reference.seconds / r.ours.seconds for r in rounds)
    images = int(rounds[0].reference.images / asked.epochs)
    run = setting.run()
    line = {
        "bench": "training",
        "ratio": round(statistics.median(ratios), 2),
        "ratio_spread": [round(ratios[0], 2), round(ratios[-1], 2)],
        "ratio_without_evaluation": round(median(lambda r: r.reference.without_evaluation / r.ours.seconds), 2),
        "ratio_small_images": round(median(lambda r: r.reference.seconds / r.small.seconds), 2),
        "exemplar_selection_seconds": round(median(lambda r: r.selection), 3),
        "bias_correction_seconds": round(median(lambda r: r.phases["bias correction"]), 3),
        "share_of_floor": round(median(lambda r: r.trained[0] / r.trained[1] / r.floor), 3),
        "images_per_second": round(median(lambda r: r.trained[0] / r.trained[1])),
        "floor_images_per_second": round(median(lambda r: r.floor)),
        "reference_images_per_second": round(median(lambda r: r.reference.images / r.reference.parts["training"])),
        "accuracy": _mean(r.ours.evaluation["linear"]["all"] for r in rounds),
        "reference_accuracy": _mean(r.reference.linear for r in rounds),
        "small_images_accuracy": _mean(r.small.evaluation["linear"]["all"] for r in rounds),
        "images": images,
        "selected": CLASSES * min(setting.task.options.quota(CLASSES), len(setting.images) // CLASSES),
        "epochs": asked.epochs,
        "repeats": asked.repeats,
    }
    return {
        "line": line,
        "seconds": {
            "reference": round(median(lambda r: r.reference.seconds), 2),
            "ours": round(median(lambda r: r.ours.seconds), 2),
            "small": round(median(lambda r: r.small.seconds), 2),
        },
        "phases": {
            "reference": phases(lambda r: r.reference.parts),
            "ours": phases(lambda r: r.phases),
            "small": phases(lambda r: r.small_phases),
        },
        "passes": phases(lambda r: r.passes),
        "accuracies": {
            "reference": [[r.reference.linear, r.reference.nearest_mean] for r in rounds],
            "ours": [[r.ours.evaluation[a]["all"] for a in ("linear", "nearest_mean")] for r in rounds],
            "small": [[r.small.evaluation[a]["all"] for a in ("linear", "nearest_mean")] for r in rounds],
        },
        "bias": {
            "reference": [[r.reference.alpha, r.reference.beta] for r in rounds],
            "ours": [[r.ours.bias.alpha, r.ours.bias.beta] for r in rounds if r.ours.bias],
            "small": [[r.small.bias.alpha, r.small.bias.beta] for r in rounds if r.small.bias],
        },
        "data": Path(asked.data).name,
        "image_size": asked.image_size,
        "workers": workers,
        "precision": "bf16" if run.half else "fp32",
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "load": [round(load, 1) for load in os.getloadavg()],
            "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
        },
    }


def _mean(values: Iterable[float]) -> float:
    return round(statistics.mean(values), 4)
