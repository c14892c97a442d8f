"""From ten classes to a million: memory, time and recall of the index of class means, and of the last layer.

Means are drawn as classes lie in embedding space: in groups of like ones. A query is a mean, and noise. All is measured
with one thread, as a replica searches.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from lifelist.benchmarks.machine import machine
from lifelist.exporter import index
from lifelist.exporter.fold import Floats, unit
from lifelist.exporter.rows import Rows

GROUP = 20  # like classes
SPREAD, NOISE = 0.6, 0.5  # of classes about their group, of images about their class: lengths, where a mean has 1
QUERIES = 256
TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured."""

    counts: Sequence[int] = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
    dim: int = 64


def measure(asked: Asked, tell: Callable[[str], None]) -> dict[str, Any]:
    """{"rows": one for each count of classes, …}; times in seconds, sizes in bytes."""
    before = faiss.omp_get_max_threads()
    rows = []
    for count in asked.counts:
        rows.append(_row(count, asked.dim))
        row = rows[-1]
        tell(
            f"{count:>9,} classes: exact {row['exact']['seconds_one'] * 1e3:.2f} ms a query, "
            f"graph {row['graph']['seconds_one'] * 1e3:.2f} ms, recall {row['graph']['recall_1']:.3f}, "
            f"built in {row['graph']['build_seconds']:.1f} s; last layer {row['linear']['seconds_one'] * 1e3:.2f} ms"
        )
    faiss.omp_set_num_threads(before)
    return {
        "bench": "index",
        "dim": asked.dim,
        "chosen": {str(count): "exact" if index.is_exact(count, asked.dim) else "graph" for count in asked.counts},
        "rows": rows,
        "machine": machine(),
    }


def _row(count: int, dim: int) -> dict[str, Any]:
    lot = np.random.default_rng(count)
    means = _means(lot, count, dim)
    shown = lot.integers(0, count, QUERIES)
    queries = unit(means[shown] + NOISE * unit(lot.normal(size=(QUERIES, dim))))
    exact, graph = _index(index.flat(dim), means, queries), _index(index.graph(dim), means, queries)
    wanted, found = exact.pop("found"), graph.pop("found")
    graph["recall_1"] = float((wanted[:, 0] == found[:, 0]).mean())
    graph["recall_5"] = float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(wanted, found, strict=True)]))
    return {"classes": count, "exact": exact, "graph": graph, "linear": _last_layer(means, queries)}


def _means(lot: np.random.Generator, count: int, dim: int) -> Floats:
    centres = unit(lot.normal(size=(1 + count // GROUP, dim)))
    found: Floats = unit(centres[np.arange(count) // GROUP] + SPREAD * unit(lot.normal(size=(count, dim))))
    return found


def _index(inner: Any, means: Floats, queries: Floats) -> dict[str, Any]:
    faiss.omp_set_num_threads(os.cpu_count() or 1)  # as a version is made
    began = time.perf_counter()
    made = faiss.IndexIDMap2(inner)
    made.add_with_ids(means, np.arange(len(means)))
    built = time.perf_counter()
    if index.is_exact(*means.shape) == isinstance(inner, faiss.IndexFlatIP):  # as the rule has it
        known = index.ClassMeans(tuple(range(len(means))), means.shape[1], made, inner)
        index.extended(known, [len(means)], queries[:1])
    extended = time.perf_counter()
    index.one_thread()  # as a replica searches
    top = min(TOP, len(means))
    return {
        "build_seconds": built - began,
        "one_more_seconds": extended - built,
        "bytes": len(faiss.serialize_index(made)),
        "seconds_one": _each(lambda k: made.search(queries[k : k + 1], top)),
        "seconds_of_64": _each(lambda k: made.search(queries[:64], top), times=8) / 64,
        "found": made.search(queries, top)[1],
    }


def _last_layer(weight: Floats, queries: Floats) -> dict[str, Any]:
    """The linear answer: every logit, the softmax over all, the best few. One query at a time."""
    rows = Rows.of(range(len(weight)), {})
    took = _each(lambda k: rows.by_logits(queries[k : k + 1] @ weight.T, TOP))
    return {"bytes": weight.nbytes, "seconds_one": took}


def _each(work: Callable[[int], object], times: int = 50) -> float:
    """Seconds of one call: the median of several, the first not counted."""
    work(0)
    found = []
    for k in range(times):
        began = time.perf_counter()
        work(k)
        found.append(time.perf_counter() - began)
    return float(np.median(found))
