"""Swaps under load: that nobody notices. Clients ask all the time; each answer is held against the version it names.

Versions differ in how many classes they have, in the ids of these, and in whether they answer in fp32 or int8; they
go live in turn, always one that is not loaded yet.
"""

import http.client
import json
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from lifelist.benchmarks import models
from lifelist.benchmarks.contenders import LIFELIST, started
from lifelist.benchmarks.machine import machine
from lifelist.exporter import session
from lifelist.exporter.errors import Failed
from lifelist.exporter.registry import Registry

VARIANTS = ((32, True), (24, False), (16, True), (28, False))  # (classes, int8)
STALE_S = 0.05  # after a swap was acknowledged no query that begins may be answered by the old version
SETTLED_S = 0.1  # after the acknowledgement the window of a swap ends
PATIENCE_S = 30  # with a rollback that nobody sees
EARLY = 10  # swaps after which memory counts first
PARTS = 10  # of a run, for the picture
SUMMED = {"swaps", "answers", "failed_requests", "mixed_answers", "stale_answers"}
FAILED, UNREADABLE = 0, -1  # in place of a version


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    swaps: int = 200
    replicas: Sequence[int] = (1, 2)
    clients: int = 8
    pause_s: float = 0.5  # between swaps
    rollbacks: int = 10  # after the swaps, to and fro
    images: int = 4  # in every other request, which must all be answered by one version


@dataclass(slots=True)
class Answered:
    """One request: when it began and ended, by which version it was answered, and whether as that version should."""

    began: float
    ended: float
    version: int  # or FAILED: without an answer of status 200; or UNREADABLE: the answer is not what it should be
    right: bool


@dataclass(slots=True)
class Swap:
    """One swap: when it was asked for and acknowledged, and between which versions."""

    asked: float
    acknowledged: float
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Run:
    """All that was seen with one count of replicas.

    memory: resident bytes of the replicas after each swap; rollbacks: from each call to the first answer by the version
    before, in seconds; meanwhile: answers while live was rolled back, which no window of a swap is about.
    """

    answered: Sequence[Answered]
    swaps: Sequence[Swap]
    memory: Sequence[int]
    rollbacks: Sequence[float] = ()
    meanwhile: Sequence[Answered] = ()

    def figures(self) -> dict[str, Any]:
        """What the bars are about."""
        sound = [one for one in self.answered if one.version != FAILED]
        every = [*self.answered, *self.meanwhile]
        failed = sum(one.version == FAILED for one in every)
        inside, outside = _sides(sound, self.swaps)
        slow = [_percentile(some, 99) for some in (inside, outside)]
        return {
            "swaps": len(self.swaps),
            "answers": len(every),
            "failed_requests": failed,
            "mixed_answers": sum(not one.right for one in every) - failed,
            "p99_ratio": round(slow[0] / slow[1], 3),
            "p99_ms_inside": round(1e3 * slow[0], 2),
            "p99_ms_outside": round(1e3 * slow[1], 2),
            "stale_answers": sum(_is_stale(one, self.swaps) for one in sound),
            "swap_seconds": round(statistics.median(swap.acknowledged - swap.asked for swap in self.swaps), 3),
            "rss_ratio": round(self.memory[-1] / self.memory[min(EARLY, len(self.memory)) - 1], 3),
            "rollback_seconds": round(max(self.rollbacks, default=math.nan), 3),
        }

    def course(self) -> list[dict[str, Any]]:
        """Latency by parts of the run, in ms: {"swaps": number of the last, "inside": {"50", "99"}, "outside": …}."""
        found = []
        for numbers in np.array_split(np.arange(len(self.swaps)), min(PARTS, len(self.swaps))):
            first, last = int(numbers[0]), int(numbers[-1])
            until = self.swaps[last + 1].asked if last + 1 < len(self.swaps) else math.inf
            began = [one for one in self.answered if self.swaps[first].asked <= one.began < until]
            sides = _sides([one for one in began if one.version != FAILED], self.swaps[first : last + 1])
            latency = {
                name: {str(share): round(1e3 * _percentile(side, share), 2) for share in (50, 99)}
                for name, side in zip(("inside", "outside"), sides, strict=True)
            }
            found.append({"swaps": last + 1} | latency)
        return found


def _sides(some: Sequence[Answered], swaps: Sequence[Swap]) -> tuple[list[Answered], list[Answered]]:
    """Requests that met the window of a swap, and the others."""
    sides: tuple[list[Answered], list[Answered]] = ([], [])
    for one in some:
        sides[not any(_meets(one, swap) for swap in swaps)].append(one)
    return sides


@dataclass
class Clients:
    """So many threads that ask all the time, each on a connection of its own."""

    port: int
    bodies: Sequence[tuple[bytes, str, Sequence[int]]]  # (tensor, its shape, numbers of images)
    expected: Mapping[int, Sequence[int]]  # version → class id of each image
    count: int
    answered: list[Answered] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Clients":
        self._threads = [threading.Thread(target=self._ask, args=(k,)) for k in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def is_asking(self) -> bool:
        """Whether no client has ended before its time."""
        return all(thread.is_alive() for thread in self._threads)

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        turn = number
        while not self._end.is_set():
            body, shape, numbers = self.bodies[turn % len(self.bodies)]
            turn += 1
            began = time.monotonic()
            try:
                connection.request("POST", "/v1/classify?top_k=1", body, {"X-Tensor-Shape": shape})
                answer = connection.getresponse()
                content, ended = answer.read(), time.monotonic()
                version, right = self._read(content, numbers) if answer.status == 200 else (FAILED, False)
                if not right:
                    self.problems.append(f"{answer.status} {content[:300]!r}")
            except (OSError, http.client.HTTPException) as error:
                version, right, ended = FAILED, False, time.monotonic()
                self.problems.append(repr(error))
                connection.close()
            self.answered.append(Answered(began, ended, version, right))

    def _read(self, content: bytes, numbers: Sequence[int]) -> tuple[int, bool]:
        """The version that an answer names, and whether its classes are what that one says to these images."""
        try:
            answer = json.loads(content)
            version = int(answer["version"])
            found = [image["classes"][0]["id"] for image in answer["images"]]
        except (ValueError, LookupError, TypeError):
            return UNREADABLE, False
        return version, version in self.expected and found == [self.expected[version][k] for k in numbers]


def measure(asked: Asked, tell: Callable[[str], None]) -> dict[str, Any]:
    """Each bar's figure for every count of replicas, and as one line: what is counted in all, the worst of the rest."""
    with tempfile.TemporaryDirectory() as temporary:
        model = models.resnet32(Path(temporary))
        registry = Registry(model.registry)
        for k, (classes, int8) in enumerate(VARIANTS):
            models.publish(model, classes, first_id=100 * (k + 1), int8=int8)
        expected = {number: _classes(registry, number, model) for number in registry.versions()}
        runs = {str(count): _swapped(asked, model, expected, count, tell) for count in asked.replicas}
    rows = {count: run.figures() for count, run in runs.items()}
    return {
        "bench": "swap",
        "line": one_line(rows.values()),
        "rows": rows,
        "course": {count: {"latency": run.course(), "rss_bytes": run.memory} for count, run in runs.items()},
        "asked": {
            "swaps": asked.swaps, "clients": asked.clients, "pause_s": asked.pause_s, "images": asked.images,
            "rollbacks": asked.rollbacks,
        },
        "machine": machine(),
    }  # fmt: skip


def one_line(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of some runs' figures: what is counted in all, and the worst of the rest."""
    rows = list(rows)
    return {name: (sum if name in SUMMED else max)(row[name] for row in rows) for name in rows[0]}


def _classes(registry: Registry, number: int, model: models.Model) -> list[int]:
    """What a version answers to each image, as it is served here."""
    loaded = session.load(registry, number, provider="cpu", precision="auto")
    logits, _ = loaded.run(model.pixels)
    return [ranking[0][0] for ranking in loaded.linear(logits, 1)]


def _swapped(
    asked: Asked, model: models.Model, expected: Mapping[int, Sequence[int]], replicas: int, tell: Callable[[str], None]
) -> Run:
    """All swaps with so many replicas. Failed if one is refused: then there is nothing to be noticed."""
    lot = np.random.default_rng(0)
    bodies = []
    for k in range(2 * models.IMAGES):
        numbers = lot.integers(0, models.IMAGES, asked.images).tolist() if k % 2 else [k // 2]
        pixels = model.pixels[numbers]
        bodies.append((pixels.tobytes(), ",".join(map(str, pixels.shape)), numbers))
    swaps, memory = list[Swap](), list[int]()
    flags = ("--serving.replicas", str(replicas))
    with (
        started(LIFELIST, model, "auto", flags) as url,
        httpx.Client(base_url=url, timeout=120, trust_env=False) as http,
    ):
        port = int(url.rpartition(":")[2])
        with Clients(port, bodies, expected, asked.clients) as clients:
            time.sleep(2)
            before = http.get("/v1/health/ready").json()["version"]
            for k in range(asked.swaps):
                after = 2 + k % len(VARIANTS)
                if not clients.is_asking():
                    raise Failed(f"a client ended before swap {k + 1}: its error is above")
                swaps.append(_swap(http, before, after))
                time.sleep(asked.pause_s)
                health = http.get("/v1/health/ready").json()
                before = health["version"]
                memory.append(sum(_resident(row["process_id"]) for row in health["replicas"]))
                if (k + 1) % 20 == 0:
                    tell(f"{replicas} replicas: {k + 1} swaps, {len(clients.answered):,} answers")
        with Clients(port, bodies, expected, asked.clients) as others:
            rollbacks = [_rolled_back(http, others, asked.pause_s) for _ in range(asked.rollbacks)]
    for problem in (clients.problems + others.problems)[:5]:
        tell(problem)
    return Run(clients.answered, swaps, memory, rollbacks, others.answered)


def _swap(http: httpx.Client, before: int, after: int) -> Swap:
    """Make a version live. Failed, with what was said, if the server does not."""
    began = time.monotonic()
    answer = http.post(f"/v1/versions/{after}:promote", json={"force": True})
    ended = time.monotonic()
    if answer.status_code != 200:
        raise Failed(f"the swap from version {before} to {after} was refused: {answer.status_code} {answer.text[:300]}")
    return Swap(began, ended, before, after)


def _rolled_back(http: httpx.Client, clients: Clients, pause_s: float) -> float:
    """Roll live back; seconds from asking for it to the first answer by the version before. Failed if none comes."""
    time.sleep(pause_s)
    began, seen = time.monotonic(), len(clients.answered)
    answer = http.post("/v1/rollback")
    if answer.status_code != 200:
        raise Failed(f"the rollback was refused: {answer.status_code} {answer.text[:300]}")
    wanted = answer.json()["live"]
    while time.monotonic() < began + PATIENCE_S:
        ends = [one.ended for one in clients.answered[seen:] if one.version == wanted]
        if ends:
            return min(ends) - began
        time.sleep(0.01)
    raise Failed(f"no answer by version {wanted} within {PATIENCE_S} s of its rollback")


def _meets(one: Answered, swap: Swap) -> bool:
    return one.ended >= swap.asked and one.began <= swap.acknowledged + SETTLED_S


def _is_stale(one: Answered, swaps: Sequence[Swap]) -> bool:
    """Whether it began well after a swap was acknowledged, ended before the next, and was by another version."""
    done = [swap for swap in swaps if swap.acknowledged + STALE_S <= one.began]
    if not done:
        return False
    latest = done[-1]
    following = [swap for swap in swaps if swap.asked > latest.asked]
    undisturbed = not following or one.ended < following[0].asked
    return undisturbed and one.version != latest.after


def _percentile(some: Sequence[Answered], share: int) -> float:
    """Of the latency, in seconds; not a number if there is no request."""
    return float(np.percentile([one.ended - one.began for one in some], share)) if some else math.nan


def _resident(process_id: int) -> int:
    """Bytes of memory that a process holds now."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
