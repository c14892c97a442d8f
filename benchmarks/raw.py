"""The limit: ONNX Runtime in a loop, decoding included where files are sent, on all cores, with no server around it.

    python -m lifelist.benchmarks.raw REGISTRY VERSION PRECISION KIND BATCHES SECONDS FILE…

KIND tensor: the pixels are there already; file: each image is decoded first. BATCHES: 1,8,32, images in a run. Prints
one line of JSON. Several ways of using the cores are tried in turn with each batch, for SECONDS each, and the quickest
is the limit: one session with a thread for each core, or a session of one thread for each core.
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
    registry: str,
    version: int,
    precision: str,
    kind: str,
    batches: Sequence[int],
    seconds: float,
    files: Sequence[bytes],
) -> dict[str, Any]:
    """{"images_per_second", "way", "batch", "by_way", "classes": the best class of each file}."""
    found, cores = Registry(registry), len(os.sched_getaffinity(0))

    def opened(threads: int) -> Loaded:
        loaded = load(found, version, threads=threads, provider="cpu", precision=precision)
        loaded.warm((1, *batches))
        return loaded

    wide = opened(cores)
    narrow = [opened(1) for _ in range(cores)]
    preprocess = wide.manifest.preprocess
    pixels = np.stack([decode(data, preprocess) for data in files])
    logits, _ = wide.run(pixels)
    decoders = ThreadPoolExecutor(cores)

    def taken(start: int, batch: int) -> Pixels:
        chosen = [(start + k) % len(files) for k in range(batch)]
        return pixels[chosen] if kind == "tensor" else np.stack([decode(files[k], preprocess) for k in chosen])

    def taken_by_all(start: int, batch: int) -> Pixels:
        chosen = [files[(start + k) % len(files)] for k in range(batch)]
        return np.stack(list(decoders.map(lambda data: decode(data, preprocess), chosen)))

    rates = {}
    for batch in batches:
        together = taken if kind == "tensor" or batch == 1 else taken_by_all
        rates[f"1 session × {cores} threads", batch] = _rate([wide], together, batch, seconds)
        rates[f"{cores} sessions × 1 thread", batch] = _rate(narrow, taken, batch, seconds)
    way, batch = max(rates, key=lambda name: rates[name])
    return {
        "images_per_second": rates[way, batch],
        "way": way,
        "batch": batch,
        "by_way": {f"{way}, batch {batch}": rate for (way, batch), rate in rates.items()},
        "classes": [ranking[0][0] for ranking in wide.linear(logits, 1)],
        "precision": wide.precision,
    }


def _rate(sessions: Sequence[Loaded], taken: Callable[[int, int], Pixels], batch: int, seconds: float) -> float:
    """Images each second of all sessions together, each in a thread of its own."""
    counts = [0] * len(sessions)
    end = time.perf_counter() + seconds

    def work(place: int) -> None:
        while time.perf_counter() < end:
            sessions[place].run(taken(counts[place], batch))
            counts[place] += batch

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


if __name__ == "__main__":
    registry, version, precision, kind, batches, seconds, *paths = sys.argv[1:]
    files = [Path(path).read_bytes() for path in paths]
    sizes = [int(batch) for batch in batches.split(",")]
    print(json.dumps(limit(registry, int(version), precision, kind, sizes, float(seconds), files)))
