"""Images larger than memory: that they are trained on within a limit, and how fast beside images in memory.

Two processes read the same folder, and then train and compute features in turn, an epoch each: one under the limit,
whose pixels stay in a file, as an increment's do; the other without it, with all of them in memory. A third tries to
hold them all under the same limit, and should die of it.
"""

import contextlib
import gc
import io
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from lifelist.benchmarks.machine import machine

Role = Literal["streamed", "in-memory", "held"]
Kind = Literal["folder", "parquet"]
What = Literal["epoch", "epoch-from-disk", "features", "features-from-disk"]
CLASSES = 10
DISTINCT = 64  # pictures that are drawn: the others are copies of them, with other bytes behind the end
SHARD = 4096  # images in a Parquet file
EVERYTHING = 2**62  # bytes that may be held, where nothing limits them


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    decoded_bytes: int
    limit_bytes: int  # of private memory, the program's own included; held by RLIMIT_DATA
    image_size: int = 128
    kind: Kind = "folder"
    repeats: int = 3
    threads: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))  # each has stacks and heaps, which count

    @property
    def images(self) -> int:
        """How many images that are."""
        return max(CLASSES, self.decoded_bytes // (3 * self.image_size**2))


def measure(asked: Asked, tell: Callable[[str], None]) -> dict[str, Any]:
    """Everything, as one line of JSON says it. Ratios are medians over the repeats: streamed / in memory, images/s."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary) / "images"
        draw(folder, asked)
        tell(f"{asked.images:,} images of {asked.image_size} pixels: {asked.decoded_bytes / 2**20:,.0f} MiB decoded")
        with Child("held", folder, asked) as held:
            died = held.error()
        tell(f"a loader that holds all, under the limit: {died or 'lives, so the limit is too high to show anything'}")
        streamed = stack.enter_context(Child("streamed", folder, asked))
        in_memory = stack.enter_context(Child("in-memory", folder, asked))
        read = {child.role: child.answer() for child in (streamed, in_memory)}
        tell(f"read under the limit, with at most {read['streamed']['private_bytes'] / 2**20:,.0f} MiB of its own")
        rounds: dict[What, list[tuple[float, float]]] = {
            "epoch": [], "epoch-from-disk": [], "features": [], "features-from-disk": []
        }  # fmt: skip
        disk = 0
        for k in range(asked.repeats):
            for what, found in rounds.items():
                ours = streamed.asked_for(what)
                other = in_memory.asked_for(what.removesuffix("-from-disk"))  # type: ignore[arg-type]
                found.append((ours["images_per_second"], other["images_per_second"]))
                disk = max(disk, ours["disk_bytes"])
            tell(f"repeat {k + 1} of {asked.repeats}: {rounds['epoch'][-1][0]:,.0f} images/s, "
                 f"in memory {rounds['epoch'][-1][1]:,.0f}")  # fmt: skip
        private = {child.role: child.finish()["private_bytes"] for child in (streamed, in_memory)}
    ratios = {what: [a / b for a, b in found] for what, found in rounds.items()}
    return {
        "bench": "streaming",
        **asdict(asked),
        "images": asked.images,
        "held_all_dies": died is not None,
        "ratio": _median(ratios["epoch"]),
        "ratio_spread": [round(min(ratios["epoch"]), 3), round(max(ratios["epoch"]), 3)],
        "ratio_from_disk": _median(ratios["epoch-from-disk"]),
        "ratio_features": _median(ratios["features"]),
        "ratio_features_from_disk": _median(ratios["features-from-disk"]),
        "images_per_second": _median([a for a, _ in rounds["epoch"]]),
        "in_memory_images_per_second": _median([b for _, b in rounds["epoch"]]),
        "read_images_per_second": read["streamed"]["images_per_second"],
        "peak_private_bytes": private["streamed"],
        "in_memory_peak_private_bytes": private["in-memory"],
        "disk_bytes": disk,  # that one pass read from the disk, where the page cache had been emptied of the file
        "machine": machine(),
    }


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def draw(folder: Path, asked: Asked) -> None:
    """JPEG images: a folder for each class, or Parquet shards."""
    lot = np.random.default_rng(0)
    size = asked.image_size
    ramp = np.linspace(0, 160, size, dtype=np.float32)
    pictures = []
    for _ in range(DISTINCT):
        pixels = (
            ramp[:, None, None] * lot.random(3) + ramp[None, :, None] * lot.random(3) + 24 * lot.random((size, size, 1))
        )
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=85)
        pictures.append(file.getvalue())
    images = (pictures[k % DISTINCT] + k.to_bytes(4, "big") for k in range(asked.images))
    if asked.kind == "parquet":
        _draw_shards(folder, images)
        return
    for k in range(CLASSES):
        (folder / f"class {k}").mkdir(parents=True)
    for k, image in enumerate(images):
        (folder / f"class {k % CLASSES}" / f"{k}.jpg").write_bytes(image)


def _draw_shards(folder: Path, images: Iterator[bytes]) -> None:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    for start in itertools.count(0, SHARD):
        if not (shard := list(itertools.islice(images, SHARD))):
            return
        labels = [k % CLASSES for k in range(start, start + len(shard))]
        pyarrow.parquet.write_table(
            pyarrow.table({"image": shard, "label": labels}), folder / f"{start:09}.parquet", row_group_size=SHARD // 8
        )


class Child:
    """A process that reads the images and then does what it is asked for, a line of JSON each."""

    def __init__(self, role: Role, folder: Path, asked: Asked) -> None:
        self.role = role
        limit = EVERYTHING if role == "in-memory" else asked.limit_bytes
        given = (role, str(folder), str(asked.image_size), str(limit))
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lifelist.benchmarks.streaming", *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(asked.threads),
                "OMP_WAIT_POLICY": "passive",
                "ARROW_DEFAULT_MEMORY_POOL": "system",  # the other reserves a gigabyte, which RLIMIT_DATA counts
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def answer(self) -> Mapping[str, Any]:
        """The next line; RuntimeError, with what it said, if it died."""
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the process that is {self.role} died: {self.error()}")
        found: Mapping[str, Any] = json.loads(line)
        return found

    def asked_for(self, what: What) -> Mapping[str, Any]:
        """One pass over all images."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self.answer()

    def finish(self) -> Mapping[str, Any]:
        """The last line: what it took in all."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.answer()

    def error(self) -> str | None:
        """Wait for its end: the last line of its complaint, or None if it ended well."""
        code = self._process.wait()
        self._errors.seek(0)
        return None if code == 0 else (self._errors.read().strip().splitlines() or [f"ended with {code}"])[-1]


class _Peak:
    """The most private memory that this process was seen to take."""

    def __init__(self) -> None:
        from lifelist.training.memory import private_memory

        self.bytes, self._seen = 0, private_memory
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, self._seen())
            time.sleep(0.01)


def child(role: Role, folder: Path, size: int, limit: int) -> None:
    """Read, say so, and then a pass for each line that comes."""
    import pyarrow.parquet  # noqa: F401  (this and the next before the limit: loading takes more for a moment)

    from lifelist.training import evaluate, loop  # noqa: F401
    from lifelist.training.checkpoint import write_atomically
    from lifelist.training.data import read
    from lifelist.training.memory import data_memory, private_memory
    from lifelist.training.options import TrainingOptions
    from lifelist.training.pixels import as_npy, from_npy

    if limit < EVERYTHING:  # of it the program has taken a part, and mapped more, which it may never touch
        mapped = limit - private_memory() + data_memory()
        resource.setrlimit(resource.RLIMIT_DATA, (mapped, mapped))
    peak = _Peak()
    options = TrainingOptions(image_size=size, device="cpu", precision="fp32")
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        place, began = Path(temporary), time.monotonic()
        dataset = read(folder, options, folder=place, room=None if role == "streamed" else EVERYTHING)
        seconds = time.monotonic() - began
        if role == "held":
            return
        pixels, labels = dataset.images.pixels, dataset.images.labels
        if role == "streamed":  # as job.write_task and read_task do
            write_atomically(place / "pixels.npy", as_npy(pixels))
            pixels = from_npy(place / "pixels.npy")
        del dataset
        _say(images_per_second=len(labels) / seconds, private_bytes=peak.bytes)
        for line in sys.stdin:
            what, _, disk = line.strip().partition("-from-")
            if disk:
                del pixels  # what is mapped stays in memory
                gc.collect()
                _forget(place / "pixels.npy")
                pixels = from_npy(place / "pixels.npy")
            before, began = _from_disk(), time.monotonic()
            one_pass(what, pixels, labels, options)
            rate = len(labels) / (time.monotonic() - began)
            _say(images_per_second=rate, disk_bytes=_from_disk() - before)
    _say(private_bytes=peak.bytes)


def one_pass(what: str, pixels: Any, labels: Any, options: Any) -> None:
    """An epoch of the training loop, or features of all images, by a network so small that fetching images shows."""
    import torch
    from torch import nn

    from lifelist.training import evaluate, loop
    from lifelist.training.methods import METHODS, Schedule
    from lifelist.training.network import Network

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = Network(nn.Sequential(*layers), 16, CLASSES)
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    run = loop.start(options, mean=(0.5,) * 3, std=(0.25,) * 3)
    if what == "features":
        evaluate.features(network, pixels, run)
        return
    phase = loop.Phase(
        name="main",
        method=METHODS["finetune"],
        schedule=Schedule(epochs=1, batch_size=64, learning_rate=0.01),
        pixels=pixels,
        rows=labels,
        n=0,
        heads=(),
        teacher=None,
    )
    loop.train(network, phase, run)


def _say(**facts: float) -> None:
    print(json.dumps(facts), flush=True)


def _forget(file: Path) -> None:
    """Have the page cache empty of a file."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _from_disk() -> int:
    """Bytes that this process had to wait for a disk for."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    return 0


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))  # type: ignore[arg-type]
