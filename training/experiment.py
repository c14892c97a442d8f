"""A whole class-incremental experiment without any server: classes arrive in groups, and the same increments run.

Each increment sees only what a server would have: its new images, the exemplars and hold-out that the one before
kept, and the teacher. Test images judge, and are never trained on.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lifelist.exporter.errors import BadInput, BadSetting
from lifelist.training import evaluate, increment
from lifelist.training.checkpoint import write_atomically
from lifelist.training.data import GATE, TRAINING, Dataset, Images, read, roles_on_arrival
from lifelist.training.job import Class, Learned, Task, read_result, write_task
from lifelist.training.loop import Event, seeded
from lifelist.training.methods import METHODS, certainly_trains, possible
from lifelist.training.options import TrainingOptions, check, uncorrected

TEST_SHARE, HOLDOUT_SHARE = 0.2, 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came of an experiment: one Learned for each increment, in order."""

    options: TrainingOptions
    names: tuple[str, ...]  # of all classes, by class id
    groups: tuple[tuple[int, ...], ...]  # the class ids that each increment brought
    steps: tuple[Learned, ...]

    def matrix(self, answer: str | None = None) -> list[list[float | None]]:
        """[k][j]: accuracy on the classes of increment j after increment k, for j ≤ k; None without test images.

        answer: "linear", "linear_uncorrected" or "nearest_mean"; None: as the method answers.
        """
        rows = []
        for k, step in enumerate(self.steps):
            per_class = step.evaluation[answer or step.answers_by]["per_class"]
            rows.append([_mean([per_class[str(c)] for c in group]) for group in self.groups[: k + 1]])
        return rows

    def accuracies(self, answer: str | None = None) -> list[float | None]:
        """Accuracy on all classes known after each increment; the last is the headline, not the best (B16)."""
        return [step.evaluation[answer or step.answers_by]["all"] for step in self.steps]

    def table(self) -> str:
        """The accuracy matrix as text: a line for each increment, a column for the classes that each one brought."""
        answers = ("linear", "linear_uncorrected", "nearest_mean")
        titles = [f"inc {j}" if j else "base" for j in range(len(self.steps))]
        head = ["after", "classes", *titles, "all", "| linear", "uncorrected", "nearest mean", "seconds"]
        lines = [head]
        for k, row in enumerate(self.matrix()):
            cells = [*map(_percent, row), *[""] * (len(self.steps) - len(row))]
            every = [_percent(self.accuracies(answer)[k]) for answer in answers]
            known = str(sum(map(len, self.groups[: k + 1])))
            seconds = f"{self.steps[k].seconds:.1f}"
            lines.append(
                [titles[k], known, *cells, _percent(self.accuracies()[k]), f"| {every[0]}", *every[1:], seconds]
            )
        widths = [max(len(line[c]) for line in lines) for c in range(len(head))]
        text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        average = _mean(self.accuracies())
        lost = evaluate.forgetting(self.matrix())
        by = self.steps[-1].answers_by.replace("_", " ")
        chosen = ", ".join(step.method for step in self.steps)
        method = self.options.method if self.options.method in METHODS else f"{self.options.method} ({chosen})"
        text += [
            "",
            f"method {method}, answers by {by}, seed {self.options.seed}; accuracy in % on test images",
            f"last {_percent(self.accuracies()[-1])}, average of all increments, base included, {_percent(average)}, "
            f"forgetting {_percent(lost)}",
        ]
        return "\n".join(text)

    def as_json(self) -> dict[str, Any]:
        """Everything but weights and means."""
        return {
            "options": self.options.as_dict(),
            "names": list(self.names),
            "groups": [list(group) for group in self.groups],
            "matrix": self.matrix(),
            "accuracies": self.accuracies(),
            "forgetting": evaluate.forgetting(self.matrix()),
            "steps": [
                {
                    "method": step.method,
                    "reason": step.reason,
                    "evaluation": step.evaluation,
                    "bias": dataclasses.asdict(step.bias) if step.bias else None,
                    "seconds": step.seconds,
                    "warnings": list(step.warnings),
                    "software": dict(step.software),
                }
                for step in self.steps
            ],
        }


def run_experiment(
    data: Path | str | Dataset,
    options: TrainingOptions,
    *,
    classes_per_increment: int | Sequence[int] = 2,
    base_classes: int = 0,
    order: Callable[[int], Sequence[int]] = range,
    folder: Path | None = None,
    strict: bool = False,
    report: Path | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Result:
    """Learn the classes of `data` group after group; see `groups_of` for the groups.

    data             "digits", a folder per class, or Parquet (sources.py); its own train and test split if it has one
    order            from the number of classes, their places in the source, in order of arrival; see `shuffled`
    folder           where every increment keeps its epochs: the same call resumes there. None: nothing is kept
    strict, report   see data.read
    on_event         gets every event of every increment, with "increment" (0 is the base) and "increments" added, and
                     warnings before any work: images left out, class names that look alike, a memory that is too small
    """
    dataset = data if isinstance(data, Dataset) else read(data, options, strict=strict, report=report, folder=folder)
    for what, message in dataset.screening.warnings():
        on_event({"kind": "warning", "what": what, "message": message})
    arrival = order(len(dataset.names))
    groups = groups_of(arrival, classes_per_increment, base_classes)
    dataset = _in_order(dataset, arrival)
    roles = _roles(dataset, options)
    groups = _numbered(groups)
    _check(dataset, roles, groups, options)
    if len(groups) > 1 and (told := uncorrected(options, sum(map(len, groups[:-1])))):
        on_event({"kind": "warning", "what": "memory.no-correction", "message": told})
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        _claim(root, options, groups, dataset)
        steps: list[Learned] = []
        for k in range(len(groups)):
            task = next_task(dataset, roles, groups, steps, options)
            place = root / f"increment-{k}"
            if not (place / "job.json").exists():
                write_task(place, task)

            def tell(event: Event, k: int = k) -> None:
                on_event({"increment": k, "increments": len(groups), **event})

            increment.run(place, tell)
            steps.append(read_result(place))
    return Result(options, dataset.names, groups, tuple(steps))


def shuffled(seed: int) -> Callable[[int], Sequence[int]]:
    """An order of arrival by lot."""
    return lambda count: torch.randperm(count, generator=seeded(seed, "class order")).tolist()


def groups_of(
    order: Sequence[int], classes_per_increment: int | Sequence[int], base_classes: int = 0
) -> tuple[tuple[int, ...], ...]:
    """`order`, cut: `base_classes` first (0: as many as an increment brings), then an increment's worth at a time.

    classes_per_increment: one number, whose last group may be smaller, or the sizes of all increments after the base.
    """
    left = list(order)
    if not 0 <= base_classes <= len(left):
        raise BadSetting(f"base_classes should be at most {len(left)}, the classes of the data, not {base_classes}")
    if isinstance(classes_per_increment, int):
        if classes_per_increment < 1:
            raise BadSetting(f"classes_per_increment should be at least 1, not {classes_per_increment}")
        rest = len(left) - base_classes
        if classes_per_increment > rest > 0:
            which = f"that a base of {base_classes} leaves" if base_classes else "of the data"
            raise BadSetting(
                f"classes_per_increment {classes_per_increment} is more than the {rest} "
                f"{'class' if rest == 1 else 'classes'} {which}; use at most {rest}"
            )
        first = base_classes or classes_per_increment
        rest = len(left) - first
        sizes = [first] + [min(classes_per_increment, rest - at) for at in range(0, rest, classes_per_increment)]
    else:
        sizes = [base_classes or len(left) - sum(classes_per_increment), *classes_per_increment]
    if min(sizes) < 1 or sum(sizes) != len(left):
        raise BadSetting(f"increments of {sizes} classes do not add up to the {len(left)} classes of the data")
    found = []
    for size in sizes:
        found.append(tuple(left[:size]))
        del left[:size]
    return tuple(found)


def next_task(
    dataset: Dataset,
    roles: torch.Tensor,
    groups: Sequence[Sequence[int]],
    steps: Sequence[Learned],
    options: TrainingOptions,
) -> Task:
    """What the increment after `steps` is given: of old classes, only what the last one kept, and the test images."""
    images, k = dataset.images, len(steps)
    last = steps[-1] if steps else None
    place = {image_id: at for at, image_id in enumerate(images.ids)}
    old = [c for group in groups[:k] for c in group]
    kept = {c: (*last.exemplars[c], *last.holdout[c]) for c in old} if last else {}
    chosen: list[int] = []
    for class_id in old:
        chosen += [place[image_id] for image_id in kept[class_id]]
        chosen += ((images.labels == class_id) & (roles == GATE)).nonzero()[:, 0].tolist()
    for class_id in groups[k]:
        chosen += (images.labels == class_id).nonzero()[:, 0].tolist()
    which = torch.tensor(chosen)
    return Task(
        options=options,
        old=tuple(Class(c, dataset.names[c]) for c in old),
        new=tuple(Class(c, dataset.names[c]) for c in groups[k]),
        heads=last.heads if last else (),
        teacher=last.checkpoint if last else None,
        statistics=last.statistics if last else None,
        bias=last.bias if last else None,
        mean=last.mean if last else None,
        std=last.std if last else None,
        images=images.take(which),
        roles=roles[which],
    )


def _roles(dataset: Dataset, options: TrainingOptions) -> torch.Tensor:
    """The source's own test images are the gate's; else a share of each class. Hold-out where the method may use it."""
    holdout = HOLDOUT_SHARE if any(method.holdout for method in possible(options.method)) else 0.0
    lot = seeded(options.seed, "roles")
    if not bool(dataset.test.any()):
        return roles_on_arrival(dataset.images.labels, gate=TEST_SHARE, holdout=holdout, generator=lot)
    roles = torch.full(dataset.test.shape, TRAINING, dtype=torch.uint8)
    seen = ~dataset.test
    roles[seen] = roles_on_arrival(dataset.images.labels[seen], gate=0.0, holdout=holdout, generator=lot)
    roles[dataset.test] = GATE
    return roles


def _in_order(dataset: Dataset, order: Sequence[int]) -> Dataset:
    """The same images with class ids in order of arrival: the class that comes k-th has id k, and keeps its name."""
    number = torch.empty(len(order), dtype=torch.int64)
    number[torch.tensor(order)] = torch.arange(len(order))
    images = Images(dataset.images.pixels, number[dataset.images.labels], dataset.images.ids)
    return replace(dataset, images=images, names=tuple(dataset.names[c] for c in order))


def _check(dataset: Dataset, roles: torch.Tensor, groups: Sequence[Sequence[int]], options: TrainingOptions) -> None:
    """BadSetting, before anything is trained, if the options do not do for one of the increments."""
    counts = torch.bincount(dataset.images.labels[roles == TRAINING], minlength=len(dataset.names)).tolist()
    rows = possible(options.method)
    check(options, classes=len(dataset.names))  # the last increment needs the largest memory
    for k, group in enumerate(groups):
        before = [c for earlier in groups[:k] for c in earlier]
        old = [counts[c] for c in before] if any(row.replays for row in rows) else []
        share = max(counts) if any(row.keeps_all for row in rows) else options.quota(len(before))
        images = sum(counts[c] for c in group) + sum(min(count, share) for count in old)
        trains = certainly_trains(options.method, len(before))
        check(options, classes=len(before) + len(group), images=images if trains else None)


def _numbered(groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    ends = [sum(len(g) for g in groups[: k + 1]) for k in range(len(groups))]
    return tuple(tuple(range(end - len(group), end)) for end, group in zip(ends, groups, strict=True))


def _claim(root: Path, options: TrainingOptions, groups: Sequence[Sequence[int]], dataset: Dataset) -> None:
    """A folder belongs to one experiment: another one's increments are not taken for this one's."""
    images = [*dataset.images.ids, *dataset.images.labels.tolist(), *dataset.test.tolist()]
    wanted = {
        "options": options.as_dict(),
        "schedules": [dataclasses.asdict(method.schedules[options.schedule]) for method in possible(options.method)],
        "groups": [list(g) for g in groups],
        "names": list(dataset.names),  # in order of arrival
        "images": hashlib.sha256(json.dumps(images).encode()).hexdigest(),
    }
    wanted = json.loads(json.dumps(wanted))  # as it is read again: without tuples
    file = root / "experiment.json"
    if file.exists():
        if (found := json.loads(file.read_text())) != wanted:
            changed = [key for key in wanted if found.get(key) != wanted[key]]
            raise BadInput(f"{root} holds another experiment ({', '.join(changed)} differ); choose another folder")
        return
    write_atomically(file, json.dumps(wanted, indent=2).encode())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
