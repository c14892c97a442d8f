"""How fast queries are answered: beside the limit of the machine, the least that a server can be, and other servers.

In each repeat every server is started anew, loaded for some seconds in each cell, and ended; then the next one. Ratios
are taken within a repeat, and their medians over the repeats count.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifelist.benchmarks import load, models
from lifelist.benchmarks.contenders import BARE, LIFELIST, Contender, Kind, started
from lifelist.benchmarks.machine import machine
from lifelist.benchmarks.models import Model
from lifelist.exporter.errors import Failed

RAW_BATCHES = (1, 8, 32)  # the limit is the best of these
SETTLE_S = 15  # for what a server still does behind its first answer: imports, the first look and probe of watching
WARM_S = 1
CHECK_S = (1, 5, 30)  # one client asks for so many seconds; if that is too short for an answer, for more


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent, by how many clients at once: to Lifelist, to bare uvicorn, and to each peer."""

    model: str  # resnet32 or resnet18
    precision: str  # fp32, or auto: int8
    kind: Kind
    images: int  # in a request
    clients: tuple[int, ...]
    bare: tuple[int, ...] = ()
    peers: tuple[int, ...] = ()
    longer: int = 1  # a cell takes so many times as long as others, since one request does

    def counts(self, contender: Contender) -> tuple[int, ...]:
        """Clients at once, in each cell of one server."""
        return {LIFELIST.name: self.clients, BARE.name: self.bare}.get(contender.name, self.peers)

    @property
    def name(self) -> str:
        """How tables call it."""
        what = {("resnet32", "file"): "PNG 32×32", ("resnet18", "file"): "JPEG 500×375"}.get(
            (self.model, self.kind), "tensor"
        )
        several = f" × {self.images}" if self.images > 1 else ""
        return f"{self.model} {'int8' if self.precision == 'auto' else 'fp32'}, {what}{several}"


ALL = (1, 8, 32, 64)
CASES = (
    Case("resnet32", "fp32", "tensor", 1, ALL, bare=ALL, peers=(1, 32)),
    Case("resnet32", "fp32", "file", 1, ALL, bare=ALL, peers=(1, 32)),
    Case("resnet32", "fp32", "tensor", 32, ALL, bare=(1, 8), peers=(8,), longer=2),
    Case("resnet32", "fp32", "file", 32, ALL, bare=(1, 8), peers=(8,), longer=2),
    # at 100 images a second those of 64 clients that are under way when it ends would be a part that counts
    Case("resnet18", "fp32", "file", 1, ALL, bare=(1, 8), peers=(8,), longer=3),
    # 32 clients would have 1,024 images under way, and two cores take 20 s for these; what 8 have would be one batch of
    # 5 s for some peers
    Case("resnet18", "fp32", "file", 32, (1, 8), peers=(1,), longer=5),
    Case("resnet18", "auto", "file", 1, ALL, longer=2),  # its bar is about raw ONNX Runtime alone
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    contenders: Sequence[Contender]
    cases: Sequence[Case] = CASES
    repeats: int = 3
    seconds: float = 3.0  # of load in each cell
    folder: Path | None = None  # where models are kept; unless given, for this once


@dataclass(frozen=True, slots=True)
class Cell:
    """What one server did in one cell, over the repeats."""

    contender: str
    case: str
    clients: int
    images_per_second: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    first_error: list[str] = field(default_factory=list)
    generator_cores: list[float] = field(default_factory=list)


def measure(asked: Asked, tell: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the page and the line of JSON say."""
    load.wrk()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        made = {name: getattr(models, name)(folder) for name in sorted({case.model for case in asked.cases})}
        cells: dict[tuple[str, str, int], Cell] = {}
        raw: dict[str, list[dict[str, Any]]] = {case.name: [] for case in asked.cases}
        for repeat in range(asked.repeats):
            for model, precision in dict.fromkeys((case.model, case.precision) for case in asked.cases):
                cases = [case for case in asked.cases if (case.model, case.precision) == (model, precision)]
                for case in cases:
                    raw[case.name].append(_limit(made[model], case, asked.seconds))
                    tell(
                        f"repeat {repeat + 1}: {case.name}, raw: "
                        f"{raw[case.name][-1]['images_per_second']:,.0f} images/s"
                    )
                for contender in asked.contenders:
                    if not any(case.counts(contender) for case in cases):
                        continue
                    with started(contender, made[model], precision) as url:
                        time.sleep(SETTLE_S)
                        for case in cases:
                            query = Query(url, contender, made[model], case, repeat, raw[case.name][-1]["classes"])
                            if repeat == 0:
                                check(query)
                            for clients in case.counts(contender):
                                # one client with many images: else they would be at work on what nobody waits for
                                query.load(1 if case.images > 1 else clients, WARM_S)
                                found = query.load(clients, asked.seconds * case.longer)
                                key = contender.name, case.name, clients
                                cell = cells.setdefault(key, Cell(*key))
                                _note(cell, found, case)
                                tell(
                                    f"repeat {repeat + 1}: {case.name}, {clients} clients, {contender.name}: "
                                    f"{cell.images_per_second[-1]:,.0f} images/s, p50 {found.p50_ms:.1f} ms, "
                                    f"p99 {found.p99_ms:.1f} ms, {found.errors} errors {found.first_error}"
                                )
    return {
        "bench": "serving",
        "cells": [_as_json(cell) for cell in cells.values()],
        "raw": raw,
        "how": {contender.name: contender.how for contender in asked.contenders},
        "repeats": asked.repeats,
        "seconds": asked.seconds,
        "machine": machine(),
    }


def _as_json(cell: Cell) -> dict[str, Any]:
    """A cell as JSON holds it."""
    return {name: getattr(cell, name) for name in cell.__slots__}


def _limit(model: Model, case: Case, seconds: float) -> dict[str, Any]:
    """What ONNX Runtime does alone, in a process of its own: the best over batch sizes and ways to use the cores."""
    with tempfile.TemporaryDirectory() as temporary:
        paths = []
        for number, data in enumerate(model.files):
            path = Path(temporary) / str(number)
            path.write_bytes(data)
            paths.append(str(path))
        batches = (case.images,) if case.images > 1 else RAW_BATCHES
        each = max(1.0, seconds * case.longer / len(batches) / 2)  # for each batch in either way
        words = [case.precision, case.kind, ",".join(map(str, batches)), str(each), *paths]
        command = [sys.executable, "-m", "lifelist.benchmarks.raw", model.registry, str(model.version), *words]
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Failed(f"raw ONNX Runtime ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@dataclass(frozen=True, slots=True)
class Query:
    """What one server is asked in one case of one repeat; each answer must name the classes that raw ORT names."""

    url: str
    contender: Contender
    model: Model
    case: Case
    first: int  # number of the first image
    classes: Sequence[int]  # of all images

    def load(self, clients: int, seconds: float) -> load.Load:
        """So many clients at once for some seconds."""
        numbers = [(self.first + k) % models.IMAGES for k in range(self.case.images)]
        sent = self.contender.sent(self.model, self.case.kind, numbers)
        expected = [self.classes[number] for number in numbers]
        return load.run(
            self.url + sent.path, sent.body, sent.headers,
            clients=clients, seconds=seconds, pattern=self.contender.pattern, expected=expected,
        )  # fmt: skip


def check(query: Query) -> None:
    """Failed, with the answer, unless what one client is answered is right: there would be no speed to measure.

    Once for each server and case: what goes wrong later is counted, and a long run is not lost by it.
    """
    for seconds in CHECK_S:
        found = query.load(1, seconds)
        if found.errors:
            said = found.first_error or "connections that break"
            raise Failed(f"{query.contender.name} does not answer {query.case.name} as ONNX Runtime alone does: {said}")
        if found.right:
            return
    raise Failed(f"{query.contender.name} does not answer {query.case.name} within {CHECK_S[-1]} s")


def _note(cell: Cell, found: load.Load, case: Case) -> None:
    cell.images_per_second.append(found.requests_per_second * case.images)
    cell.p50_ms.append(found.p50_ms)
    cell.p99_ms.append(found.p99_ms)
    cell.errors.append(found.errors)
    cell.first_error.append(found.first_error)
    cell.generator_cores.append(found.generator_cores)
