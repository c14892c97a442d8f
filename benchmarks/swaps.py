"""Swaps under load: that nobody notices. Clients ask all the time; each answer is held against the version it names.

Versions differ in how many classes they have, in the ids of these, and in whether they answer in fp32 or int8; they
go live in turn, always one that is not loaded yet.
"""

import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from lifelist.benchmarks import models
from lifelist.benchmarks.contenders import LIFELIST, started
from lifelist.benchmarks.machine import machine
from lifelist.exporter import session
from lifelist.exporter.registry import Registry

VARIANTS = ((32, True), (24, False), (16, True), (28, False))  # (classes, int8)
STALE_S = 0.05  # after a swap was acknowledged no query that begins may be answered by the old version
SETTLED_S = 0.1  # after the acknowledgement the window of a swap ends
EARLY = 10  # swaps after which memory is measured first


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    swaps: int = 200
    replicas: Sequence[int] = (1, 2)
    clients: int = 8
    pause_s: float = 0.5  # between swaps
    images: int = 4  # in every other request, which must all be answered by one version


@dataclass(slots=True)
class Answered:
    """One request: when it began and ended, and by which version it was answered; 0: it failed."""

    began: float
    ended: float
    version: int
    right: bool


@dataclass(slots=True)
class Swap:
    """One swap: when it was asked for and acknowledged, and between which versions."""

    asked: float
    acknowledged: float
    before: int
    after: int


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
                content = json.loads(answer.read())
                if answer.status != 200:
                    raise ValueError(f"{answer.status}: {content}")
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.problems.append(repr(error))
                self.answered.append(Answered(began, time.monotonic(), 0, False))
                connection.close()
                continue
            version = content["version"]
            found = [image["classes"][0]["id"] for image in content["images"]]
            right = found == [self.expected[version][k] for k in numbers]
            self.answered.append(Answered(began, time.monotonic(), version, right))


def measure(asked: Asked, tell: Callable[[str], None]) -> dict[str, Any]:
    """Each bar's figure for every count of replicas, and the worst of each as one line."""
    with tempfile.TemporaryDirectory() as temporary:
        model = models.resnet32(Path(temporary))
        registry = Registry(model.registry)
        for k, (classes, int8) in enumerate(VARIANTS):
            models.publish(model, classes, first_id=100 * (k + 1), int8=int8)
        expected = {number: _classes(registry, number, model) for number in registry.versions()}
        rows = {str(count): _swapped(asked, model, expected, count, tell) for count in asked.replicas}
    worst = {name: max(row[name] for row in rows.values()) for name in next(iter(rows.values())) if name != "swaps"}
    return {
        "bench": "swap",
        "line": {"swaps": sum(row["swaps"] for row in rows.values()), **worst},
        "rows": rows,
        "asked": {"swaps": asked.swaps, "clients": asked.clients, "pause_s": asked.pause_s},
        "machine": machine(),
    }


def _classes(registry: Registry, number: int, model: models.Model) -> list[int]:
    """What a version answers to each image, as it is served here."""
    loaded = session.load(registry, number, provider="cpu", precision="auto")
    logits, _ = loaded.run(model.pixels)
    return [ranking[0][0] for ranking in loaded.linear(logits, 1)]


def _swapped(
    asked: Asked, model: models.Model, expected: Mapping[int, Sequence[int]], replicas: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    lot = np.random.default_rng(0)
    bodies = []
    for k in range(2 * models.IMAGES):
        numbers = lot.integers(0, models.IMAGES, asked.images).tolist() if k % 2 else [k // 2]
        pixels = model.pixels[numbers]
        bodies.append((pixels.tobytes(), ",".join(map(str, pixels.shape)), numbers))
    swaps: list[Swap] = []
    memory: dict[int, int] = {}
    flags = ("--serving.replicas", str(replicas))
    with (
        started(LIFELIST, model, "auto", flags) as url,
        httpx.Client(base_url=url, timeout=120, trust_env=False) as http,
    ):
        port = int(url.rpartition(":")[2])
        with Clients(port, bodies, expected, asked.clients) as clients:
            time.sleep(2)
            for k in range(asked.swaps):
                before = http.get("/v1/health/ready").json()["version"]
                after = 2 + k % len(VARIANTS)
                began = time.monotonic()
                found = http.post(f"/v1/versions/{after}:promote", json={"force": True})
                swaps.append(Swap(began, time.monotonic(), before, after))
                if found.status_code != 200:
                    clients.problems.append(f"swap to version {after}: {found.status_code} {found.text}")
                time.sleep(asked.pause_s)
                if k + 1 in (EARLY, asked.swaps):
                    memory[k + 1] = sum(
                        _resident(row["process_id"]) for row in http.get("/v1/health/ready").json()["replicas"]
                    )
                if (k + 1) % 20 == 0:
                    tell(f"{replicas} replicas: {k + 1} swaps, {len(clients.answered):,} answers")
    row = figures(clients.answered, swaps)
    row["rss_ratio"] = round(memory[asked.swaps] / memory[min(EARLY, asked.swaps)], 3)
    for problem in clients.problems[:5]:
        tell(problem)
    return row


def figures(answered: Sequence[Answered], swaps: Sequence[Swap]) -> dict[str, Any]:
    """What the bars are about, of the requests of one run."""
    sound = [one for one in answered if one.version]
    inside = [one for one in sound if any(_meets(one, swap) for swap in swaps)]
    ids = {id(one) for one in inside}
    outside = [one for one in sound if id(one) not in ids]
    stale = sum(_is_stale(one, swaps) for one in sound)
    slow = [_p99(some) for some in (inside, outside)]
    return {
        "swaps": len(swaps),
        "answers": len(answered),
        "failed_requests": len(answered) - len(sound),
        "mixed_answers": sum(not one.right for one in sound),
        "p99_ratio": round(slow[0] / slow[1], 3),
        "p99_ms_inside": round(1e3 * slow[0], 2),
        "p99_ms_outside": round(1e3 * slow[1], 2),
        "stale_answers": stale,
        "swap_seconds": round(statistics.median(swap.acknowledged - swap.asked for swap in swaps), 3),
    }


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


def _p99(some: Sequence[Answered]) -> float:
    return float(np.percentile([one.ended - one.began for one in some], 99))


def _resident(process_id: int) -> int:
    """Bytes of memory that a process holds now."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
