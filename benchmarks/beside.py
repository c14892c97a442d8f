"""A server that learns while it serves: how soon a new class is answered, and what queries notice of an increment.

A small model of digits, served under half of the load that it can bear: a class is enrolled, and then two are learned,
one without load and one beside it. p99 is of the same load, with and without an increment under way.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from lifelist.benchmarks import load
from lifelist.benchmarks.contenders import served
from lifelist.exporter.errors import Failed
from lifelist.training.sources import encoded

BASE, ENROLLED, ALONE, LOADED = 6, 6, 7, 8  # classes of the base; then the numbers of the others
ENROL_IMAGES = 50
CLIENTS = 8
OPTIONS = ("--training.image_size", "32", "--training.flip", "false", "--training.memory_total", "300")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    epochs: int = 40  # of an increment
    seconds: float = 5.0  # of load at a time
    idle_stretches: int = 5


def measure(asked: Asked, tell: Callable[[str], None]) -> dict[str, Any]:
    """{"p99_while_training_of_idle", "enrol_seconds", and the seconds and rates behind them}."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        classes = _images(folder / "all")
        for name in classes[:BASE]:
            (folder / "base").mkdir(exist_ok=True)
            (folder / "base" / name).symlink_to(folder / "all" / name)
        home = folder / "home"
        _command("base", str(folder / "base"), "--home", str(home), *OPTIONS, "--training.epochs", "6")
        flags = [*OPTIONS, "--training.epochs", str(asked.epochs), "--serving.provider", "cpu"]
        with served(home, flags) as url, httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
            picture = next((folder / "all" / classes[0]).iterdir()).read_bytes()
            peak = _load(url, picture, asked.seconds, None).requests_per_second
            half = peak / 2
            tell(f"peak {peak:,.0f} queries/s; from now on {half:,.0f}")
            idle = [_load(url, picture, asked.seconds, half) for _ in range(asked.idle_stretches)]
            tell(f"idle: p99 {median(one.p99_ms for one in idle):.1f} ms")
            with _Going(url, picture, asked.seconds, half):
                enrol_seconds = _enrol(http, folder / "all" / classes[ENROLLED])
            tell(f"{ENROL_IMAGES} images of a new class: named {enrol_seconds:.2f} s after they were sent")
            alone = _learn(http, folder / "all" / classes[ALONE])
            tell(f"an increment without load: {alone:.1f} s")
            with _Going(url, picture, asked.seconds, half) as going:
                loaded = _learn(http, folder / "all" / classes[LOADED])
            busy = going.found
    figures = [median(one.p99_ms for one in some) for some in (busy, idle)]
    tell(f"beside load: {loaded:.1f} s; p99 of queries {figures[0]:.1f} ms")
    return {
        "p99_while_training_of_idle": round(figures[0] / figures[1], 3),
        "p99_ms_idle": round(figures[1], 2),
        "p99_ms_while_training": round(figures[0], 2),
        "enrol_seconds": round(enrol_seconds, 3),
        "increment_seconds_alone": round(alone, 1),
        "increment_seconds_beside_load": round(loaded, 1),
        "peak_queries_per_second": round(peak),
        "errors": sum(one.errors for one in (*idle, *busy)),
    }


def _images(folder: Path) -> list[str]:
    for image in encoded("digits"):
        place = folder / image.class_name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{len(list(place.iterdir()))}.png").write_bytes(image.data)
    return sorted(path.name for path in folder.iterdir())


def _command(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "lifelist.deploy.cli", *words], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"lifelist {words[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def _load(url: str, picture: bytes, seconds: float, rate: float | None) -> load.Load:
    return load.run(
        url + "/v1/classify?top_k=1", picture, {"Content-Type": "image/png"},
        clients=CLIENTS, seconds=seconds, rate=rate,
    )  # fmt: skip


class _Going:
    """Load that goes on for the time of a `with` block, in stretches; those that began and ended in it are kept."""

    def __init__(self, url: str, picture: bytes, seconds: float, rate: float) -> None:
        self.found: list[load.Load] = []
        self._end = threading.Event()

        def go() -> None:
            while not self._end.is_set():
                one = _load(url, picture, seconds, rate)
                if not self._end.is_set() or not self.found:
                    self.found.append(one)

        self._thread = threading.Thread(target=go)

    def __enter__(self) -> "_Going":
        self._thread.start()
        time.sleep(1)
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()


def _enrol(http: httpx.Client, folder: Path) -> float:
    """Seconds from sending images of a new class to the first answer that can name it."""
    files = sorted(folder.iterdir())
    sent = [("images", (file.name, file.read_bytes(), "image/png")) for file in files[:ENROL_IMAGES]]
    asked = files[ENROL_IMAGES].read_bytes()
    began = time.perf_counter()
    threading.Thread(target=lambda: http.post("/v1/examples", data={"class": folder.name}, files=sent)).start()
    while True:
        answer = http.post("/v1/classify?top_k=100", content=asked, headers={"Content-Type": "image/png"}).json()
        if any(found["name"] == folder.name for found in answer["images"][0]["classes"]):
            return time.perf_counter() - began
        if time.perf_counter() - began > 60:
            raise Failed(f"{folder.name} was not answered within a minute")


def _learn(http: httpx.Client, folder: Path) -> float:
    """Seconds that an increment trains for."""
    sent = [("images", (file.name, file.read_bytes(), "image/png")) for file in sorted(folder.iterdir())]
    http.post("/v1/examples", data={"class": folder.name}, files=sent).raise_for_status()
    started = http.post("/v1/increments", json={"classes": [folder.name]}).raise_for_status().json()["id"]
    while True:
        found = http.get(f"/v1/increments/{started}").json()
        if found["state"] == "done":
            return float(next(step["facts"]["seconds"] for step in found["steps"] if step["state"] == "train"))
        if found["state"] in ("failed", "rejected", "cancelled"):
            raise Failed(f"the increment ended as {found['state']}: {found['reason']}")
        time.sleep(0.5)
