"""The story of one increment: from a teacher and images of new classes to a student that knows both."""

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

from lifelist.exporter.errors import Corrupt
from lifelist.training import evaluate, network, workers
from lifelist.training.checkpoint import pack, remove_halves, unpack
from lifelist.training.data import GATE, HOLDOUT, TRAINING, Images, colour_statistics
from lifelist.training.exemplars import SELECTIONS, shares
from lifelist.training.forms import distillation_heads
from lifelist.training.job import Learned, Task, is_finished, read_task, write_result
from lifelist.training.loop import Event, Phase, Run, Teacher, corrected, scaled, seeded, start, train
from lifelist.training.methods import METHODS, Method
from lifelist.training.network import Network
from lifelist.training.options import TrainingOptions
from lifelist.training.rebalance import REBALANCE, Increment


def _ignore(event: Event) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """The images of an increment by what they are for; rows of the last layer instead of class ids."""

    training: Images  # exemplars, best first, and all training images of new classes
    holdout: Images  # as many of each class
    gate: Images

    def rows(self, task: Task, images: Images) -> Tensor:
        """N int64: the row that should answer each image."""
        row = {class_id: k for k, class_id in enumerate(task.class_ids)}
        return torch.tensor([row[label] for label in images.labels.tolist()], dtype=torch.int64)


def learn(task: Task, *, folder: Path | None = None, on_event: Callable[[Event], None] = _ignore) -> Learned:
    """Learn the new classes of `task` without forgetting the old ones, as its method's row says.

    folder    where a checkpoint is kept after every epoch; the same call resumes from there. None: in memory only
    on_event  gets a dict for every epoch and warning; see loop.train
    """
    began = time.monotonic()
    warnings: list[str] = []

    def tell(event: Event) -> None:
        if event["kind"] == "warning":
            warnings.append(event["message"])
        on_event(event)

    options, method = task.options, METHODS[task.options.method]
    schedules, n, m = method.schedules[options.schedule], len(task.old), len(task.new)
    heads = (*task.heads, m)
    material = sort_images(task, method)
    if task.mean is not None and task.std is not None:
        mean, std = task.mean, task.std
    else:
        mean, std = colour_statistics(material.training.pixels)
    run = start(options, mean=mean, std=std, fingerprint=task.fingerprint, folder=folder, tell=tell)
    student, teacher = _student_and_teacher(task, method, run)

    replayed = material.training if method.replays else _without_old(material.training, task)
    rows = material.rows(task, replayed)
    schedule = schedules.increment if n else schedules.base
    phase = Phase(
        name="main",
        method=method,
        schedule=scaled(schedule, options, schedule),
        pixels=_near(replayed.pixels, run),
        rows=rows,
        n=n,
        heads=distillation_heads(task.heads),
        teacher=teacher if method.distils else None,
    )
    train(student, phase, run)

    gate_rows = material.rows(task, material.gate)
    uncorrected = evaluate.head_logits(student, evaluate.features(student, material.gate.pixels, run))
    bias = None
    if n:
        increment = Increment(
            method=method,
            schedules=schedules,
            run=run,
            n=n,
            heads=heads,
            pixels=phase.pixels,
            rows=rows,
            held_pixels=material.holdout.pixels,
            held_rows=material.rows(task, material.holdout),
        )
        bias = REBALANCE[method.rebalance](student, increment)

    exemplars, means = _remember(student, task, method, run)
    _, held = shares(options, n + m, reserved=task.reserved)
    raw = evaluate.features(student, material.gate.pixels, run)
    answers = {
        "linear": evaluate.by_linear(corrected(evaluate.head_logits(student, raw), bias)),
        "linear_uncorrected": evaluate.by_linear(uncorrected),
        "nearest_mean": evaluate.by_nearest_mean(raw, means),
    }
    evaluation = {k: evaluate.accuracy(v, gate_rows, task.class_ids, n) for k, v in answers.items()}
    _sound_alarm(evaluation[method.answers_by]["per_class"], task, heads, run)
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
    )


def sort_images(task: Task, method: Method) -> Material:
    """Which images an increment trains on, corrects its bias with, and is judged by: three sets without overlap.

    Of an old class, no more exemplars than its share of the memory; of the hold-out, the same count of every class,
    old and new (B6), as large as the memory and the class with the fewest allow.
    """
    exemplars, held = shares(task.options, len(task.old), reserved=task.reserved)
    old = {c.id for c in task.old}
    training, holdout = [], []
    available = min(int(task.of(c, HOLDOUT).sum()) for c in task.class_ids)
    for class_id in task.class_ids:
        which = task.of(class_id, TRAINING).nonzero()[:, 0]
        training.append(which[:exemplars] if class_id in old and not method.keeps_all else which)
        holdout.append(task.of(class_id, HOLDOUT).nonzero()[:, 0][: min(held, available)])
    images = task.images
    return Material(images.take(torch.cat(training)), images.take(torch.cat(holdout)), images.take(task.roles == GATE))


def _sound_alarm(per_class: Mapping[str, float | None], task: Task, heads: Sequence[int], run: Run) -> None:
    """Warn if the classes of some increment are answered worse than by chance: it has collapsed (methods.md B18)."""
    ids = iter(task.class_ids)
    worst = evaluate.worst_group(per_class, [list(itertools.islice(ids, size)) for size in heads])
    if worst is not None and len(task.class_ids) > 1 and worst < 1 / len(task.class_ids):
        run.warn("group.collapsed", f"the classes of one increment are right in {worst:.1%} only; see per_class")


def _without_old(images: Images, task: Task) -> Images:
    return images.take(torch.isin(images.labels, torch.tensor([c.id for c in task.new])))


def _near(pixels: Tensor, run: Run) -> Tensor:
    """On the GPU if they take less than a quarter of what is free there, else where they are."""
    if run.device.type == "cuda" and pixels.nbytes * 4 < torch.cuda.mem_get_info(run.device)[0]:
        return pixels.to(run.device)
    return pixels


def _student_and_teacher(task: Task, method: Method, run: Run) -> tuple[Network, Teacher | None]:
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
        student.grow(m, seeded(options.seed, "new rows", n))
    for module in (student, teacher):
        if module is not None:
            module.to(device=run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return student, None if teacher is None else Teacher(teacher, task.bias)


def _remember(student: Network, task: Task, method: Method, run: Run) -> tuple[dict[int, tuple[str, ...]], Tensor]:
    """(exemplars of each class, best first; class means C×D).

    An old class was ranked when it came, and keeps a prefix of that; a new one is ranked now, once. The means are of
    the exemplars, with the new network, for every class (Rebuffi et al. 2017, section 2.2).
    """
    options, old = task.options, {c.id for c in task.old}
    share, _ = shares(options, len(task.class_ids), reserved=task.reserved)
    kept: dict[int, tuple[str, ...]] = {}
    means = []
    for row, class_id in enumerate(task.class_ids):
        images = task.images.take(task.of(class_id, TRAINING))
        count = len(images) if method.keeps_all else min(share, len(images))
        ranked = images
        if class_id not in old and count:
            raw = evaluate.features(student, images.pixels, run)
            lot = seeded(options.seed, "exemplars", class_id)
            ranked = images.take(SELECTIONS[options.selection](evaluate.unit(raw), count, lot))
        kept[class_id] = ranked.ids[:count]
        shown = ranked.pixels[:count] if count else images.pixels  # no memory: a new class's images are still here
        if len(shown):
            plain = evaluate.features(student, shown, run)
            mirrored = evaluate.features(student, shown, run, mirrored=True) if options.flip else None
            means.append(evaluate.class_mean(plain, mirrored))
        else:
            run.warn("mean.from-weights", f"class {class_id} has no exemplar; its row of the last layer is its mean")
            means.append(evaluate.unit(student.head.weight[row].detach().float().cpu()))
    return kept, torch.stack(means)


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
