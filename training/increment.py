"""The story of one increment: from a teacher and images of new classes to a student that knows both.

A class that is known and brings new images is *refreshed*: it keeps its row, and its images count as new ones do.
"""

import importlib.metadata
import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelist.exporter.errors import BadInput, Corrupt
from lifelist.training import auto, evaluate, network, workers
from lifelist.training.checkpoint import pack, remove_halves, unpack
from lifelist.training.data import GATE, HOLDOUT, TRAINING, Images, colour_statistics
from lifelist.training.exemplars import SELECTIONS, shares
from lifelist.training.forms import distillation_heads
from lifelist.training.job import Learned, Task, is_finished, read_task, write_result
from lifelist.training.loop import Event, Phase, Run, Teacher, corrected, scaled, seeded, start, train
from lifelist.training.methods import METHODS, Method
from lifelist.training.network import Network
from lifelist.training.options import TrainingOptions
from lifelist.training.pixels import Pixels
from lifelist.training.rebalance import REBALANCE, Increment
from lifelist.training.statistics import Statistics, Sums, add, as_bytes, from_bytes

UNBALANCED = 20  # times as many images of one class as of another that is learned with it
LITTLE_BETTER = 1.5  # than chance, which is 1; see evaluate.alike


def _ignore(event: Event) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """The images of an increment by what they are for; rows of the last layer instead of class ids."""

    training: Images  # exemplars, best first, and all training images of new and refreshed classes
    holdout: Images  # as many of each class
    gate: Images

    def rows(self, task: Task, images: Images) -> Tensor:
        """N int64: the row that should answer each image."""
        row = {class_id: k for k, class_id in enumerate(task.class_ids)}
        return torch.tensor([row[label] for label in images.labels.tolist()], dtype=torch.int64)


def learn(task: Task, *, folder: Path | None = None, on_event: Callable[[Event], None] = _ignore) -> Learned:
    """Learn what is new in `task` without forgetting the old classes, as its method's row says.

    folder    where a checkpoint is kept after every epoch; the same call resumes from there. None: in memory only
    on_event  gets a dict for every epoch and warning; see loop.train
    """
    began = time.monotonic()
    warnings: list[str] = []

    def tell(event: Event) -> None:
        if event["kind"] == "warning":
            warnings.append(event["message"])
        on_event(event)

    options = task.options
    name, reason = auto.resolve(task)
    if reason:
        tell({"kind": "method", "method": name, "reason": reason})
    method = METHODS[name]
    schedules, n, m = method.schedules[options.schedule], len(task.old), len(task.new)
    heads = (*task.heads, m) if m else task.heads
    refreshed = [row for row, c in enumerate(task.old) if c.id in task.refreshed]
    material = sort_images(task, method)
    if task.mean is not None and task.std is not None:
        mean, std = task.mean, task.std
    else:
        mean, std = colour_statistics(material.training.pixels)
    run = start(options, mean=mean, std=std, fingerprint=task.fingerprint, folder=folder, tell=tell)
    student, teacher = student_and_teacher(task, method, run)

    replayed = material.training if method.replays else _with_news(material.training, task)
    rows = material.rows(task, replayed)
    _compare_counts(task, name, run)
    schedule = schedules.increment if n else schedules.base
    pixels = _near(replayed.pixels, run)
    phase = Phase(
        name="main",
        method=method,
        schedule=scaled(schedule, options, schedule),
        pixels=pixels,
        rows=rows,
        n=n,
        heads=distillation_heads(task.heads),
        teacher=teacher if method.distils else None,
        refreshed=refreshed,
    )
    if not (n and method.frozen):
        train(student, phase, run)
    statistics = _statistics(student, task, run) if method.frozen else {}

    gate_rows = material.rows(task, material.gate)
    raw = evaluate.features(student, material.gate.pixels, run)
    uncorrected = evaluate.head_logits(student, raw)
    bias = None
    if n or method.frozen:
        increment = Increment(
            method=method,
            schedules=schedules,
            run=run,
            n=n,
            refreshed=refreshed,
            heads=heads,
            pixels=pixels,
            rows=rows,
            held_pixels=material.holdout.pixels,
            held_rows=material.rows(task, material.holdout),
            statistics=[statistics[c] for c in task.class_ids] if statistics else (),
        )
        bias = REBALANCE[method.rebalance](student, increment)

    exemplars, means = _remember(student, task, method, run, statistics)
    _, held = shares(options, n + m, reserved=task.reserved)
    if n and schedules.balanced is not None:  # the features have changed since
        raw = evaluate.features(student, material.gate.pixels, run)
    answers = {
        "linear": evaluate.by_linear(corrected(evaluate.head_logits(student, raw), bias)),
        "linear_uncorrected": evaluate.by_linear(uncorrected),
        "nearest_mean": evaluate.by_nearest_mean(raw, means),
    }
    evaluation = {k: evaluate.accuracy(v, gate_rows, task.class_ids, n) for k, v in answers.items()}
    _sound_alarm(evaluation[method.answers_by]["per_class"], task, heads, run)
    unseen = torch.cat([raw, evaluate.features(student, material.holdout.pixels, run)])
    own = evaluate.by_linear(corrected(evaluate.head_logits(student, unseen), bias))
    _tell_alike(
        evaluate.by_nearest_mean(unseen, means),
        own if method.answers_by == "linear" else None,
        torch.cat([gate_rows, material.rows(task, material.holdout)]),
        task,
        run,
    )
    return Learned(
        checkpoint=pack(student.state_dict()),
        class_ids=task.class_ids,
        means=means,
        heads=heads,
        bias=bias,
        mean=mean,
        std=std,
        exemplars=exemplars,
        holdout={c: task.images.take(task.of(c, HOLDOUT)).ids[:held] for c in task.class_ids},
        evaluation=evaluation,
        answers_by=method.answers_by,
        embedding_dim=student.dim,
        seconds=round(time.monotonic() - began, 3),
        warnings=tuple(warnings),
        software=software(run),
        method=name,
        reason=reason,
        statistics=as_bytes(statistics) if statistics else None,
    )


def sort_images(task: Task, method: Method) -> Material:
    """Which images an increment trains on, corrects its bias with, and is judged by: three sets without overlap.

    Of an old class without new images, no more exemplars than its share of the memory; of the hold-out, the same count
    of every class, old and new (B6), as large as the memory and the class with the fewest allow.
    """
    exemplars, held = shares(task.options, len(task.old), reserved=task.reserved)
    training, holdout = [], []
    available = min(int(task.of(c, HOLDOUT).sum()) for c in task.class_ids)
    for class_id in task.class_ids:
        which = task.of(class_id, TRAINING).nonzero()[:, 0]
        training.append(which if class_id in task.with_news or method.keeps_all else which[:exemplars])
        holdout.append(task.of(class_id, HOLDOUT).nonzero()[:, 0][: min(held, available)])
    images = task.images
    return Material(images.take(torch.cat(training)), images.take(torch.cat(holdout)), images.take(task.roles == GATE))


def _sound_alarm(per_class: Mapping[str, float | None], task: Task, heads: Sequence[int], run: Run) -> None:
    """Warn if the classes of some increment are answered worse than by chance: it has collapsed (methods.md B18)."""
    ids = iter(task.class_ids)
    worst = evaluate.worst_group(per_class, [list(itertools.islice(ids, size)) for size in heads])
    if worst is not None and len(task.class_ids) > 1 and worst < 1 / len(task.class_ids):
        run.warn("group.collapsed", f"the classes of one increment are right in {worst:.1%} only; see per_class")


def _compare_counts(task: Task, name: str, run: Run) -> None:
    """Warn before training if a class may be drowned by another: every image counts the same in the loss (B19)."""
    names = {c.id: c.name for c in (*task.old, *task.new)}
    counts = {class_id: int(task.of(class_id, TRAINING).sum()) for class_id in task.with_news}
    few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    method = METHODS[name]
    if method.answers_by == "linear" and not method.frozen and counts[many] >= UNBALANCED * counts[few]:
        run.warn(
            "classes.unbalanced",
            f"{names[few]} has {counts[few]} images to train on, {names[many]} {counts[many]}: in a short training "
            f"{name} may not learn to answer {names[few]}. Send more images of it, or choose method "
            "icarl, which answers by nearest mean",
        )


def _tell_alike(nearest: Tensor, linear: Tensor | None, rows: Tensor, task: Task, run: Run) -> None:
    """Warn of a new class that cannot be told from another, by images that were not trained on; once of each pair.

    nearest: what is answered by nearest mean, whatever the method.  linear: by the last layer, if the method answers by
    it. That may prefer one class for the count of its images, or for a short training: it is believed only of a pair
    whose counts are alike, and which the nearest mean tells apart a little better than by chance at most.
    """
    names = [c.name for c in (*task.old, *task.new)]
    counts = [int(task.of(c, TRAINING).sum()) for c in task.class_ids]
    new = range(len(task.old), len(names))
    pairs = evaluate.alike(nearest, rows, new)
    if linear is not None:
        told = {(a, b) for a, b, _, _ in pairs}
        doubtful = {(a, b) for a, b, _, _ in evaluate.alike(nearest, rows, new, most_right=LITTLE_BETTER)}
        for a, b, confused, count in evaluate.alike(linear, rows, new):
            even = max(counts[a], counts[b]) < UNBALANCED * min(counts[a], counts[b])
            if (a, b) in doubtful - told and even:
                pairs.append((a, b, confused, count))
    for a, b, confused, count in pairs:
        run.warn(
            "classes.alike",
            f"{names[a]} and {names[b]} are taken for one another in {confused} of {count} images, as often as by "
            "chance: if they are one class under two names, go back to the version before, and add images under one",
        )


def _with_news(images: Images, task: Task) -> Images:
    return images.take(torch.isin(images.labels, torch.tensor(task.with_news)))


def _near(pixels: Pixels, run: Run) -> Pixels:
    """On the GPU if they take less than a quarter of what is free there, else where they are."""
    if run.device.type == "cuda" and pixels.nbytes * 4 < torch.cuda.mem_get_info(run.device)[0]:
        return pixels.to(run.device)
    return pixels


def student_and_teacher(task: Task, method: Method, run: Run) -> tuple[Network, Teacher | None]:
    """The student starts from the teacher's *uncorrected* checkpoint; only the teacher's answers are corrected."""
    options, n, m = task.options, len(task.old), len(task.new)
    teacher = None if task.teacher is None else load_network(task.teacher, options, n)
    if teacher is None or method.afresh:
        seed = seeded(options.seed, "weights", n + m).initial_seed()
        student = network.build(
            options.network, classes=n + m, image_size=options.image_size, seed=seed, pretrained=options.pretrained
        )
    else:
        student = teacher.copy()
        if m:
            student.grow(m, seeded(options.seed, "new rows", n))
    for module in (student, teacher):
        if module is not None:
            module.to(device=run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if teacher is None:
        return student, None
    return student, Teacher(run.asked(teacher), task.bias)


def _statistics(student: Network, task: Task, run: Run) -> Statistics:
    """Of every class: what the teacher's version has, and those of all new images.

    A version whose backbone was trained has none: its exemplars then stand for all images of old classes. BadInput if
    a class has no exemplar either.
    """
    known = {} if task.statistics is None else from_bytes(task.statistics, student.dim)
    found: Statistics = {c.id: known[c.id] for c in task.old if c.id in known}
    lacking = [c for c in task.old if c.id not in found]
    if gone := [f"{c.id} ({c.name})" for c in lacking if not bool(task.of(c.id, TRAINING).any())]:
        raise BadInput(
            f"the live version has neither statistics nor exemplars of classes {', '.join(gone)}, so "
            "a method whose backbone is frozen cannot answer them; choose one that trains, such as wa"
        )
    for class_id in dict.fromkeys((*(c.id for c in lacking), *task.with_news)):
        pixels = task.images.take(task.of(class_id, TRAINING)).pixels
        if class_id in known:  # which its exemplars are part of
            pixels = pixels.take(slice(-task.refreshed[class_id], None))
        found = add(found, class_id, Sums.of(*_views(student, pixels, run)))
    if lacking:
        run.warn(
            "statistics.from-exemplars",
            f"the live version has no statistics of {len(lacking)} old classes, as its backbone was trained last: "
            "their exemplars stand for all their images, which is an approximation",
        )
    return found


def _views(student: Network, pixels: Pixels, run: Run) -> list[Tensor]:
    """N×D raw features of images, and of their mirror images where training mirrors."""
    mirrored = (False, True) if run.options.flip else (False,)
    return [evaluate.features(student, pixels, run, mirrored=which) for which in mirrored]


def _remember(
    student: Network, task: Task, method: Method, run: Run, statistics: Statistics
) -> tuple[dict[int, tuple[str, ...]], Tensor]:
    """(exemplars of each class, best first; class means C×D).

    An old class was ranked when it last brought images, and keeps a prefix of that; one that brings some is ranked now,
    its exemplars among them. The means are of the exemplars, with the new network, for every class (Rebuffi et al.
    2017, section 2.2); with statistics, of every image ever seen.
    """
    options = task.options
    share, _ = shares(options, len(task.class_ids), reserved=task.reserved)
    kept: dict[int, tuple[str, ...]] = {}
    means = []
    ranking = run.asked(student)
    for row, class_id in enumerate(task.class_ids):
        images = task.images.take(task.of(class_id, TRAINING))
        count = len(images) if method.keeps_all else min(share, len(images))
        best_first = images
        if class_id in task.with_news and count:
            best_first = ranked(ranking, images, count, class_id, run)
        kept[class_id] = best_first.ids[:count]
        shown = best_first.pixels.take(slice(count)) if count else images.pixels  # no memory: new images are still here
        if class_id in statistics:
            means.append(statistics[class_id].mean)
        elif len(shown):
            means.append(evaluate.class_mean(*_views(student, shown, run)))
        else:
            run.warn("mean.from-weights", f"class {class_id} has no exemplar; its row of the last layer is its mean")
            means.append(evaluate.unit(student.head.weight[row].detach().float().cpu()))
    return kept, torch.stack(means)


def ranked(network: Network, images: Images, count: int, class_id: int, run: Run) -> Images:
    """The `count` best exemplars of a class in a network's features, best first, as the option `selection` says."""
    raw = evaluate.features(network, images.pixels, run)
    lot = seeded(run.options.seed, "exemplars", class_id)
    return images.take(SELECTIONS[run.options.selection](evaluate.unit(raw), count, lot))


def load_network(checkpoint: bytes | Path, options: TrainingOptions, classes: int) -> Network:
    """The network of a checkpoint, in eval mode on the CPU. Corrupt if it is not one of these options and classes."""
    data = checkpoint if isinstance(checkpoint, bytes) else checkpoint.read_bytes()
    found = network.build(options.network, classes=classes, image_size=options.image_size)
    try:
        found.load_state_dict(unpack(data, "the checkpoint"))
    except RuntimeError as error:
        raise Corrupt(f"the checkpoint is not of {options.network} with {classes} classes: {error}") from error
    return found.eval()


def software(run: Run) -> dict[str, str]:
    """Versions of what computed, and on what."""
    packages = ("torch", "torchvision", "numpy", "safetensors")
    found = {package: importlib.metadata.version(package) for package in packages}
    on_gpu = run.device.type == "cuda"
    found["device"] = torch.cuda.get_device_name(run.device) if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    found["precision"] = "bf16" if run.half else "fp32"
    return found | ({"workers": str(workers.count())} if workers.count() > 1 else {})


def run(folder: Path, on_event: Callable[[Event], None] = _ignore) -> None:
    """The increment in `folder` (see job.py), to its end. Again after a kill: it resumes. After its end: nothing to do.

    A result of another task (its fingerprint differs) is thrown away with its epochs, and it starts afresh.
    ctrl-C, or a kill at any moment, leaves a folder that the same call resumes from its last epoch. Of several workers
    (workers.py), each of which makes this call, one writes: the others only read the folder, and `on_event` is silent.
    """
    task = read_task(folder)
    if is_finished(folder, task.fingerprint):
        return
    if workers.rank() > 0:
        workers.meet()
        learn(task, folder=folder / "epochs")
        return
    if (folder / "result" / "result.json").exists():  # of another task, and so are its epochs
        for part in ("result", "epochs"):
            shutil.rmtree(folder / part, ignore_errors=True)
    for part in ("epochs", "result"):
        remove_halves(folder / part)
    workers.meet()  # no other looks for an epoch before those of another task are gone
    with _Journal(folder / "events.jsonl") as journal:

        def tell(event: Event) -> None:
            journal.append(event)
            on_event(event)

        write_result(folder, learn(task, folder=folder / "epochs", on_event=tell), task.fingerprint)


class _Journal:
    """Events, one JSON object a line, each once: a resumed run tells some again, word for word.

    A last line that a kill left half-written is cut off.
    """

    def __init__(self, path: Path) -> None:
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            path.write_bytes(whole)
        self.lines = set(whole.decode().splitlines())
        self.file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def append(self, event: Any) -> None:
        """Write and flush, so that whoever follows the file sees it now."""
        line = json.dumps(event, sort_keys=True)
        if line not in self.lines:
            self.lines.add(line)
            self.file.write(line + "\n")
            self.file.flush()
