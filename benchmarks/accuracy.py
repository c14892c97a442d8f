"""The papers' experiments: every method and seed of a protocol, each kept as soon as it has ended.

A run is one method with one seed. It stands in `<folder>/<method>-<seed>.json` once it has ended, and until then in a
folder of that name, from whose last epoch the same call goes on.
"""

import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from lifelist.benchmarks.machine import processor
from lifelist.benchmarks.protocols import Protocol, order
from lifelist.exporter.errors import BadInput, BadSetting
from lifelist.training import data, evaluate
from lifelist.training.checkpoint import write_atomically
from lifelist.training.experiment import run_experiment
from lifelist.training.loop import Event, quickest
from lifelist.training.methods import METHODS, Schedule, ScheduleName, possible
from lifelist.training.options import TrainingOptions

HEADS = {"linear": "linear", "linear_uncorrected": "linear, before correction", "nearest_mean": "nearest mean"}
Run = Mapping[str, Any]  # one of the JSON files


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to run. BadSetting if one of the methods cannot be."""

    protocol: Protocol
    data: str
    methods: Sequence[str]
    seeds: Sequence[int]
    order: str
    schedule: ScheduleName
    device: str = "auto"

    def __post_init__(self) -> None:
        for method in self.methods:
            options = self.options(method, 0)
            if method not in METHODS:
                raise BadSetting(
                    f"method {method!r} picks a row of the table for each increment, so that there is no one method to "
                    f"compare; name one of {', '.join(METHODS)}"
                )
            row = METHODS[method]
            replays = row.replays and not row.keeps_all and not row.frozen
            if replays and not (options.memory_total or options.memory_per_class):
                raise BadSetting(
                    f"{method} replays exemplars, and a memory of 0 holds none; give it at least an image of each "
                    "class, or choose finetune, which needs none"
                )

    def options(self, method: str, seed: int) -> TrainingOptions:
        """Those of a run. iCaRL has its own network, without the last ReLU (methods.md 1.4)."""
        return TrainingOptions(
            method=method,
            network="resnet32-icarl" if method == "icarl" else "resnet32",
            image_size=self.protocol.image_size,
            epochs=self.protocol.epochs,
            schedule=self.schedule,
            memory_total=self.protocol.memory_total,
            memory_per_class=self.protocol.memory_per_class,
            flip=self.protocol.flip,
            precision=self.protocol.precision or quickest(self.device),
            device=self.device,
            seed=seed,
        )


def run_all(asked: Asked, folder: Path, *, jobs: int, on_event: Callable[[str, Event], None]) -> list[Run]:
    """Make what is missing of the runs of `asked`; every run in `folder`, those of earlier calls too (see `ended`).

    jobs      how many at a time, each in a process of its own: several small networks fill a GPU better than one.
    on_event  gets the name of a run and an event of training (experiment.run_experiment); with several jobs, of each
              phase of training the last epoch only
    """
    wanted = list(dict.fromkeys(itertools.product(asked.methods, asked.seeds)))
    for one in wanted:
        if _file(folder, *one).exists():  # killed between the two, a run leaves its folder, too
            shutil.rmtree(folder / _name(*one), ignore_errors=True)
    left = [one for one in wanted if not _file(folder, *one).exists()]
    if left:
        dataset = data.read(asked.data, asked.options(*left[0]))
        _check(asked.protocol, dataset)
        if jobs == 1:
            for one in left:
                _one(asked, folder, *one, dataset, partial(on_event, _name(*one)))
        else:
            _side_by_side(asked, folder, left, dataset, jobs, on_event)
    return ended(asked, folder)


def ended(asked: Asked, folder: Path) -> list[Run]:
    """Every run in `folder`, by method in the table's order, then by seed. BadInput if one was of something else."""
    found = []
    for file in folder.glob("*.json"):
        method, _, seed = file.stem.rpartition("-")
        if method not in METHODS or not seed.isdecimal():
            raise BadInput(f"{file} is not a run of this command; remove it, or choose another folder")
        found.append((method, int(seed)))
    return [_read(asked, folder, *one) for one in sorted(found, key=lambda one: (list(METHODS).index(one[0]), one[1]))]


def _side_by_side(
    asked: Asked,
    folder: Path,
    left: Sequence[tuple[str, int]],
    dataset: data.Dataset,
    jobs: int,
    on_event: Callable[[str, Event], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(_end_with, (os.getpid(),))
    with manager:
        told = manager.Queue()
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        with ProcessPoolExecutor(jobs, context, _as_worker, (threads, os.getpid())) as pool:
            running = [pool.submit(_one, asked, folder, *one, dataset, _Teller(told, _name(*one))) for one in left]
            while running:
                ended, running = [r for r in running if r.done()], [r for r in running if not r.done()]
                for one in ended:
                    one.result()
                with contextlib.suppress(queue.Empty):
                    on_event(*told.get(timeout=1.0))


def _as_worker(threads: int, parent: int) -> None:
    torch.set_num_threads(threads)
    _end_with(parent)


def _end_with(parent: int) -> None:
    """End this process as soon as its parent has ended: killed, it could not tell us, and we would go on writing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True, slots=True)
class _Teller:
    """Tells another process of the last epoch of each phase, and of warnings."""

    queue: Any
    run: str

    def __call__(self, event: Event) -> None:
        if event.get("epoch") == event.get("epochs"):
            self.queue.put((self.run, event))


def _read(asked: Asked, folder: Path, method: str, seed: int) -> Run:
    """A run that has ended. BadInput if it was of something else."""
    file = _file(folder, method, seed)
    found: Run = json.loads(file.read_text())
    wanted = {"protocol": asked.protocol.name, "order": asked.order, "options": asked.options(method, seed)}
    made = {**found, "options": TrainingOptions.from_dict(found["options"])}  # an option that came since: its default
    if changed := [key for key in wanted if made[key] != wanted[key]]:
        raise BadInput(f"{file} is a run with other {' and '.join(changed)}; choose another folder, or remove it")
    if _filled(found.get("schedules", {})) != _schedules(asked, method):
        raise BadInput(
            f"{file} was trained by another schedule than {method} has under {asked.schedule!r} now; remove it, or "
            "choose another folder"
        )
    return found


def _schedules(asked: Asked, method: str) -> Any:
    """How long a method trains, and how fast, as JSON has it: without tuples."""
    return json.loads(json.dumps(asdict(METHODS[method].schedules[asked.schedule])))


def _filled(schedules: Mapping[str, Any]) -> Any:
    """What a run says of its schedules, with the default of each field that came since."""
    since = {f.name: f.default for f in fields(Schedule) if f.default is not MISSING}
    filled = {name: None if phase is None else {**since, **phase} for name, phase in schedules.items()}
    return json.loads(json.dumps(filled))


def _check(protocol: Protocol, dataset: data.Dataset) -> None:
    if len(dataset.names) != protocol.classes:
        raise BadInput(
            f"protocol {protocol.name} is of {protocol.data} with {protocol.classes} classes; "
            f"the data have {len(dataset.names)}"
        )


def _name(method: str, seed: int) -> str:
    return f"{method}-{seed}"


def _file(folder: Path, method: str, seed: int) -> Path:
    return folder / f"{_name(method, seed)}.json"


@contextlib.contextmanager
def _alone(place: Path, on_event: Callable[[Event], None]) -> Iterator[None]:
    """Have the folder of a run to ourselves; waits for another process that has it, and says so."""
    place.mkdir(parents=True, exist_ok=True)
    folder = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_event({"kind": "warning", "what": "run.held", "message": f"waits for another process that has {place}"})
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _one(
    asked: Asked, folder: Path, method: str, seed: int, dataset: data.Dataset, on_event: Callable[[Event], None]
) -> None:
    """One run, to its file, unless another process made it meanwhile."""
    place, file = folder / _name(method, seed), _file(folder, method, seed)
    with _alone(place, on_event):
        if not file.exists():
            facts = _facts(asked, method, seed, dataset, place, on_event)
            write_atomically(file, json.dumps(facts).encode())
        shutil.rmtree(place, ignore_errors=True)  # whoever waited for us finds it gone


def _facts(
    asked: Asked, method: str, seed: int, dataset: data.Dataset, place: Path, on_event: Callable[[Event], None]
) -> Run:
    """Train and measure in the folder `place`."""
    options = asked.options(method, seed)
    found = run_experiment(
        dataset,
        options,
        classes_per_increment=asked.protocol.step,
        base_classes=asked.protocol.base,
        order=order(asked.order),
        folder=place,
        on_event=on_event,
    )
    last = found.steps[-1]
    return {
        "method": method,
        "seed": seed,
        "protocol": asked.protocol.name,
        "order": asked.order,
        "options": options.as_dict(),
        "schedules": _schedules(asked, method),
        "answers_by": last.answers_by,
        "heads": {
            head: {
                "accuracies": found.accuracies(head),
                "old": last.evaluation[head]["old"],
                "new": last.evaluation[head]["new"],
                "forgetting": evaluate.forgetting(found.matrix(head)),
                "confusion": last.evaluation[head]["confusion"],
            }
            for head in HEADS
        },
        "classes": [sum(map(len, found.groups[: k + 1])) for k in range(len(found.groups))],
        "bias": [None if step.bias is None else [step.bias.alpha, step.bias.beta] for step in found.steps],
        "seconds": [max(s.seconds, _trained(place / f"increment-{k}")) for k, s in enumerate(found.steps)],
        "warnings": [text for step in found.steps for text in step.warnings],
        "software": dict(last.software),
        "processor": processor(),
        "ended": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _trained(place: Path) -> float:
    """Seconds of all epochs of an increment, those before it was stopped included: its own count begins anew then."""
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    return float(sum(event["seconds"] for event in events if event["kind"] == "epoch"))


@dataclass(frozen=True, slots=True)
class Row:
    """A method and a head: what its seeds reached, in %."""

    method: str
    head: str
    answers: bool  # whether the method itself answers by this head
    seeds: tuple[int, ...]
    curves: tuple[tuple[float, ...], ...]  # of each seed, after each increment
    last: tuple[float, ...]  # of each seed
    average: tuple[float, ...]  # the base included
    average_without_base: tuple[float, ...]
    old: tuple[float, ...]  # after the last increment, on classes known before it
    new: tuple[float, ...]
    answers_new: tuple[float, ...]  # share of all test images that are taken for a class of the last increment …
    images_new: float  # … and that are of one
    forgetting: tuple[float, ...]
    seconds: tuple[float, ...]  # of a whole run

    @property
    def steps(self) -> list[tuple[float, ...]]:
        """After each increment, of each seed."""
        return list(zip(*self.curves, strict=True))

    @property
    def curve(self) -> list[float]:
        """After each increment, the mean of the seeds."""
        return [mean(step) for step in self.steps]


def rows(runs: Sequence[Run]) -> list[Row]:
    """One for each method and head that differ, in the order of the runs."""
    found = []
    for method in dict.fromkeys(run["method"] for run in runs):
        of_method = [run for run in runs if run["method"] == method]
        rebalanced = any(row.rebalance != "none" for row in possible(method))
        for head in HEADS:
            if head != "linear_uncorrected" or rebalanced:
                found.append(_row(method, head, of_method))
    return found


def _row(method: str, head: str, runs: Sequence[Run]) -> Row:
    of_head = [run["heads"][head] for run in runs]
    curves = tuple(tuple(100 * a for a in found["accuracies"]) for found in of_head)
    shares = [_new(found["confusion"], run["classes"][-2]) for found, run in zip(of_head, runs, strict=True)]
    return Row(
        method=method,
        head=head,
        answers=all(run["answers_by"] == head for run in runs),
        seeds=tuple(run["seed"] for run in runs),
        curves=curves,
        last=tuple(curve[-1] for curve in curves),
        average=tuple(mean(curve) for curve in curves),
        average_without_base=tuple(mean(curve[1:]) for curve in curves),
        old=tuple(100 * found["old"] for found in of_head),
        new=tuple(100 * found["new"] for found in of_head),
        answers_new=tuple(answered for answered, _ in shares),
        images_new=mean(there for _, there in shares),
        forgetting=tuple(100 * found["forgetting"] for found in of_head),
        seconds=tuple(sum(run["seconds"]) for run in runs),
    )


def _new(confusion: Mapping[str, Mapping[str, int]], known: int) -> tuple[float, float]:
    """(answers, images) of the classes from number `known` on, in % of all."""
    every = [(int(c), int(answer), n) for c, answers in confusion.items() for answer, n in answers.items()]
    whole = sum(n for _, _, n in every)
    answered = sum(n for _, answer, n in every if answer >= known)
    there = sum(n for c, _, n in every if c >= known)
    return 100 * answered / whole, 100 * there / whole


def shown(values: Sequence[float], form: str = ".1f") -> str:
    """Mean, and with several seeds their standard deviation: 50.8 ± 0.4."""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")
