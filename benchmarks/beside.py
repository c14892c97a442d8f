"""What learning does to serving: new classes, and a training step, while queries come at half of the peak rate.

A server of its own knows the digits. Digits turned by a quarter, ten classes that it does not know, are enrolled under
load, and the time is taken until answers can name each. Then they are trained, under the same load and without any: the
version before is made live again in between, so that each time the same is learned.
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lifelist.benchmarks import contenders, load
from lifelist.benchmarks.machine import machine
from lifelist.client.answers import ENDED, Increment
from lifelist.client.blocking import Client
from lifelist.exporter.errors import Failed
from lifelist.training.sources import encoded

CASE = "learning beside serving"  # what tables call it
SETTINGS = """\
gate = []  # how well it learns is measured elsewhere
[training]
flip = false
epochs = {epochs}
image_size = {image_size}
"""
KNOWN = 10  # of the classes of `turned-digits`: those that are upright
CLIENTS = {"peak": 32, "half": 64}  # as many that their rests, and not the answers, decide when they ask
ENROL_S, LONG_S = 60, 3600  # a class is enrolled, and an increment trained, before
MANY = 1000  # more classes than there are: an answer then lists all that it can name
LOOK_S = 0.01
TYPE = {"Content-Type": "application/octet-stream"}
PATH = "/v1/classify?top_k=1"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    repeats: int = 2  # increments under load, each with one without
    seconds: float = 20  # of load while nothing is learned
    peak_seconds: float = 10  # of load to find the most that it takes, and then half of that
    epochs: int = 6  # of the increment
    classes: int = 10  # new ones
    images: int = 50  # at most, with which a class is enrolled
    image_size: int = 32


@dataclass(frozen=True, slots=True)
class Round:
    """The same increment twice, and how queries were answered meanwhile."""

    idle: load.Load
    training: load.Load
    seconds: float  # of the training step, under load
    seconds_alone: float  # the same without load

    @property
    def p99_of_idle(self) -> float:
        """p99 while it trains, to p99 while nothing does."""
        return self.training.p99_ms / self.idle.p99_ms


def measure(asked: Asked, tell: Tell) -> dict[str, Any]:
    """Everything that the page and the line of JSON say of learning beside serving."""
    images = defaultdict[str, list[bytes]](list)
    for image in encoded("turned-digits"):
        images[image.class_name].append(image.data)
    new = list(images)[KNOWN : KNOWN + asked.classes]
    sent = images[next(iter(images))][0]
    with (
        tempfile.TemporaryDirectory() as folder,
        _served(Path(folder), asked, tell) as url,
        Client(url, timeout_s=120) as client,
    ):
        peak = _load(url, sent, asked.peak_seconds).requests_per_second
        rate = peak / 2
        rate *= rate / _load(url, sent, asked.peak_seconds, rate).requests_per_second  # answers take time, too
        tell(f"{peak:,.0f} requests a second at most; half of them from here on")
        waits = [_enrolled(client, url, sent, rate, name, images[name][: asked.images], tell) for name in new]
        for name in new:
            client.add_examples(name, images[name][asked.images :])
        rounds = [_round(client, url, sent, rate, asked.seconds, tell) for _ in range(asked.repeats)]
    return figures(peak, waits, rounds) | {"asked": asdict(asked), "machine": machine()}


def figures(peak: float, waits: Sequence[float], rounds: Sequence[Round]) -> dict[str, Any]:
    """What the bars are about: medians, and of enrolments the longest too."""
    return {
        "p99_while_training_of_idle": statistics.median(one.p99_of_idle for one in rounds),
        "enrol_seconds": statistics.median(waits),
        "enrol_seconds_worst": max(waits),
        "enrolled": len(waits),
        "training_slowdown": statistics.median(one.seconds / one.seconds_alone for one in rounds),
        "peak_per_second": peak,
        "rounds": [asdict(one) for one in rounds],
    }


@contextlib.contextmanager
def _served(folder: Path, asked: Asked, tell: Tell) -> Iterator[str]:
    """The URL of a server whose live version was trained on the digits."""
    settings, home, port = folder / "lifelist.toml", folder / "home", contenders.free_port()
    settings.write_text(SETTINGS.format(epochs=asked.epochs, image_size=asked.image_size))
    lifelist = [sys.executable, "-m", "lifelist.deploy.cli", "--config", str(settings)]
    tell("a base of the digits, to be served")
    done = subprocess.run([*lifelist, "base", "digits", "--home", str(home)], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"`lifelist base digits` ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    command = [*lifelist, "serve", "--home", str(home), "--port", str(port)]
    with contenders.running(command, port, contenders.LIFELIST.ready, folder) as url:
        yield url


def _load(
    url: str, image: bytes, seconds: float, rate: float | None = None, until: Callable[[], bool] | None = None
) -> load.Load:
    return load.run(
        url + PATH, image, TYPE, clients=CLIENTS["half" if rate else "peak"], seconds=seconds, rate=rate, until=until
    )


# ------------------------------------------------------------------------------------------------------- enrolment


def _enrolled(
    client: Client, url: str, sent: bytes, rate: float, name: str, images: Sequence[bytes], tell: Tell
) -> float:
    """Seconds from posting a new class's images, under load, until both kinds of answer can name it."""
    done = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(_load, url, sent, ENROL_S, rate, done.is_set)
        try:
            time.sleep(1)  # the load has come up
            began = time.perf_counter()
            posting = pool.submit(client.add_examples, name, images)
            for answer in ("nearest_mean", "linear"):
                while not _names(client, images[0], answer, name):
                    if posting.done():
                        posting.result()  # raises if the images were refused: the class would be waited for in vain
                    if time.perf_counter() > began + ENROL_S:
                        raise Failed(f"no answer by {answer} names {name} {ENROL_S} s after its images were posted")
                    time.sleep(LOOK_S)
            seconds = time.perf_counter() - began
            posting.result()
        finally:
            done.set()
        under = loading.result()
    tell(f"{name}: {len(images)} images, named after {seconds:.2f} s; {under.requests_per_second:,.0f} requests/s")
    return seconds


def _names(client: Client, image: bytes, answer: str, name: str) -> bool:
    """Whether the class is among those that an answer of this kind lists."""
    found = client.classify(image, top_k=MANY, answer=answer)
    return any(entry["name"] == name for entry in found["images"][0]["classes"])


# -------------------------------------------------------------------------------------------------------- training


def _round(client: Client, url: str, sent: bytes, rate: float, seconds: float, tell: Tell) -> Round:
    idle = _load(url, sent, seconds, rate)
    loaded: list[load.Load] = []
    took = _trained(client, lambda until: loaded.append(_load(url, sent, LONG_S, rate, until)))
    alone = _trained(client, _wait)
    found = Round(idle, loaded[0], took, alone)
    tell(
        f"p99 {idle.p99_ms:.1f} ms, while training {found.training.p99_ms:.1f} ms, {found.p99_of_idle:.2f} times; "
        f"{found.training.requests_per_second:,.0f} requests/s; {took:.1f} s, alone {alone:.1f} s"
    )
    return found


def _trained(client: Client, meanwhile: Callable[[Callable[[], bool]], object]) -> float:
    """Learn what waits, and make the version before live again. Seconds of the step `train`, all of which `meanwhile`
    lasts: it ends when the function that it gets says so. Failed if the increment does not end well.
    """
    number = client.start_increment()["id"]
    while (state := client.increment(number)["state"]) not in {"train", *ENDED}:
        time.sleep(LOOK_S)
    if state == "train":
        meanwhile(lambda: client.increment(number)["state"] != "train")
    ended = client.wait(number)
    if ended["state"] != "done":
        raise Failed(f"increment {number} ended as {ended['state']}: {ended['reason']}")
    client.rollback()
    return _seconds(ended)


def _wait(until: Callable[[], bool]) -> None:
    while not until():
        time.sleep(load.LOOK_S)


def _seconds(ended: Increment) -> float:
    step = next(step for step in ended["steps"] if step["state"] == "train")
    assert step["ended"] is not None
    return (datetime.fromisoformat(step["ended"]) - datetime.fromisoformat(step["began"])).total_seconds()
