"""The papers' experiments: every method and seed of a protocol, each kept as soon as it has ended.

A run is one method with one seed. It stands in `<folder>/<method>-<seed>.json` once it has ended, and until then in a
folder of that name, from whose last epoch the same call goes on.
"""

import contextlib
import json
import multiprocessing
import os
import queue
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from lifelist.benchmarks.protocols import Protocol, order
from lifelist.exporter.errors import BadInput
from lifelist.training import data, evaluate
from lifelist.training.checkpoint import write_atomically
from lifelist.training.experiment import run_experiment
from lifelist.training.loop import Event, quickest
from lifelist.training.methods import METHODS, ScheduleName, possible
from lifelist.training.options import TrainingOptions

HEADS = {"linear": "linear", "linear_uncorrected": "linear, before correction", "nearest_mean": "nearest mean"}
Run = Mapping[str, Any]  # one of the JSON files


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to run."""

    protocol: Protocol
    data: str
    methods: Sequence[str]
    seeds: Sequence[int]
    order: str
    schedule: ScheduleName
    device: str = "auto"

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
    wanted = [(method, seed) for method in asked.methods for seed in asked.seeds]
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
    names = [file.stem.rpartition("-") for file in folder.glob("*.json")]
    found = [(method, int(seed)) for method, _, seed in names]
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
    with context.Manager() as manager:
        told = manager.Queue()
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
            running = [pool.submit(_one, asked, folder, *one, dataset, _Teller(told, _name(*one))) for one in left]
            while running:
                ended, running = [r for r in running if r.done()], [r for r in running if not r.done()]
                for one in ended:
                    one.result()
                with contextlib.suppress(queue.Empty):
                    on_event(*told.get(timeout=1.0))


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
    return found


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


def _one(
    asked: Asked, folder: Path, method: str, seed: int, dataset: data.Dataset, on_event: Callable[[Event], None]
) -> None:
    """One run, to its file."""
    options, place = asked.options(method, seed), folder / _name(method, seed)
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
    facts = {
        "method": method,
        "seed": seed,
        "protocol": asked.protocol.name,
        "order": asked.order,
        "options": options.as_dict(),
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
        "ended": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    write_atomically(_file(folder, method, seed), json.dumps(facts).encode())
    shutil.rmtree(place)


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
    curve: tuple[float, ...]  # mean after each increment
    last: tuple[float, ...]  # of each seed
    average: tuple[float, ...]  # the base included
    average_without_base: tuple[float, ...]
    old: tuple[float, ...]  # after the last increment, on classes known before it
    new: tuple[float, ...]
    forgetting: tuple[float, ...]
    seconds: float  # mean of a run


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
    curves = [[100 * a for a in run["heads"][head]["accuracies"]] for run in runs]
    return Row(
        method=method,
        head=head,
        answers=all(run["answers_by"] == head for run in runs),
        seeds=tuple(run["seed"] for run in runs),
        curve=tuple(mean(step) for step in zip(*curves, strict=True)),
        last=tuple(curve[-1] for curve in curves),
        average=tuple(mean(curve) for curve in curves),
        average_without_base=tuple(mean(curve[1:]) for curve in curves),
        old=tuple(100 * run["heads"][head]["old"] for run in runs),
        new=tuple(100 * run["heads"][head]["new"] for run in runs),
        forgetting=tuple(100 * run["heads"][head]["forgetting"] for run in runs),
        seconds=mean(sum(run["seconds"]) for run in runs),
    )


def shown(values: Sequence[float]) -> str:
    """Mean, and with several seeds their standard deviation: 50.8 ± 0.4."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
