"""The limit: ONNX Runtime in a loop, decoding included where files are sent, on all cores, with no server around it.

    python -m lifelist.benchmarks.raw REGISTRY PRECISION KIND BATCH SECONDS FILE…

KIND tensor: the pixels are there already; file: each image is decoded first. Prints one line of JSON. Several ways of
using the cores are tried in turn, and the quickest is the limit: one session with a thread for each core, or a session
of one thread for each core.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lifelist.exporter.preprocess import Pixels, decode
from lifelist.exporter.registry import Registry
from lifelist.exporter.session import Loaded, load


def limit(
    registry: str, precision: str, kind: str, batch: int, seconds: float, files: Sequence[bytes]
) -> dict[str, Any]:
    """{"images_per_second", "way", "by_way", "classes": the best class of each file}."""
    found, cores = Registry(registry), len(os.sched_getaffinity(0))
    ref = found.ref("live")
    assert ref is not None

    def opened(threads: int) -> Loaded:
        loaded = load(found, ref.version, threads=threads, provider="cpu", precision=precision)
        loaded.warm((1, batch))
        return loaded

    wide = opened(cores)
    narrow = [opened(1) for _ in range(cores)]
    preprocess = wide.manifest.preprocess
    pixels = np.stack([decode(data, preprocess) for data in files])
    logits, _ = wide.run(pixels)
    decoders = ThreadPoolExecutor(cores)

    def taken(start: int) -> Pixels:
        chosen = [(start + k) % len(files) for k in range(batch)]
        return pixels[chosen] if kind == "tensor" else np.stack([decode(files[k], preprocess) for k in chosen])

    def taken_by_all(start: int) -> Pixels:
        chosen = [files[(start + k) % len(files)] for k in range(batch)]
        return np.stack(list(decoders.map(lambda data: decode(data, preprocess), chosen)))

    together = taken if kind == "tensor" or batch == 1 else taken_by_all
    ways = {
        f"1 session × {cores} threads": _rate([wide], together, batch, seconds),
        f"{cores} sessions × 1 thread": _rate(narrow, taken, batch, seconds),
    }
    way = max(ways, key=lambda name: ways[name])
    best = [loaded[0][0] for loaded in wide.linear(logits, 1)]
    return {"images_per_second": ways[way], "way": way, "by_way": ways, "classes": best, "precision": wide.precision}


def _rate(sessions: Sequence[Loaded], taken: Callable[[int], Pixels], batch: int, seconds: float) -> float:
    """Images each second of all sessions together, each in a thread of its own."""
    counts = [0] * len(sessions)
    end = time.perf_counter() + seconds

    def work(place: int) -> None:
        while time.perf_counter() < end:
            sessions[place].run(taken(counts[place]))
            counts[place] += batch

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


if __name__ == "__main__":
    registry, precision, kind, batch, seconds, *paths = sys.argv[1:]
    files = [Path(path).read_bytes() for path in paths]
    print(json.dumps(limit(registry, precision, kind, int(batch), float(seconds), files)))
