"""What the Open Inference Protocol counts for each version, in Triton's terms; summed over the replicas.

A query is a success or a failure; each of its images is an inference; each run of the model is an execution, so that
inferences / executions is the mean batch. Times are nanoseconds, and a stage has as many counts as there are successes.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from lifelist.serving.live import Answer

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")  # of a query that was answered

Json = dict[str, Any]
Times = tuple[int, int]  # how often, nanoseconds in all
NONE: Times = (0, 0)
Key = TypeVar("Key")


@dataclass(slots=True)
class Counts:
    """Of one version."""

    inferences: int = 0  # images
    executions: int = 0
    last_inference: int = 0  # milliseconds since 1970
    times: dict[str, Times] = field(default_factory=dict)  # success, fail and the stages
    batches: dict[int, Times] = field(default_factory=dict)  # by images in one run


@dataclass(slots=True)
class Query:
    """One query while it is answered; what its answer tells is filled in then."""

    version: int
    images: int = 0
    seconds: tuple[float, ...] = (0, 0, 0, 0)  # by stage

    def answered(self, answer: Answer, decode_s: float, write_s: float) -> None:
        """Fill in what its answer tells."""
        self.version, self.images = answer.loaded.version, len(answer.rankings)
        self.seconds = answer.queue_s, decode_s, answer.model_s, write_s


class Statistics:
    """The counts of one replica. `ran` is called in the threads of the model, all else on the event loop."""

    def __init__(self) -> None:
        self.versions: dict[int, Counts] = {}
        self._runs = threading.Lock()

    def ran(self, version: int, images: int, seconds: float) -> None:
        """The model of a version has run once."""
        with self._runs:
            counts = self._of(version)
            counts.executions += 1
            counts.batches[images] = _plus(counts.batches.get(images, NONE), (1, _ns(seconds)))

    @contextmanager
    def query(self, version: int) -> Iterator[Query]:
        """Count a query, for the version that is to answer unless its answer says another: failed if the block does."""
        query, began = Query(version), time.perf_counter()
        try:
            yield query
        except BaseException:
            self._took(self._of(version), "fail", time.perf_counter() - began)
            raise
        counts = self._of(query.version)
        counts.inferences += query.images
        counts.last_inference = round(time.time() * 1000)
        self._took(counts, "success", time.perf_counter() - began)
        for stage, seconds in zip(STAGES, query.seconds, strict=True):
            self._took(counts, stage, seconds)

    def snapshot(self) -> dict[int, Counts]:
        """The counts as they are now; the model's thread goes on counting."""
        return {
            version: replace(counts, times=dict(counts.times), batches=dict(counts.batches))
            for version, counts in dict(self.versions).items()
        }

    def _of(self, version: int) -> Counts:
        return self.versions.setdefault(version, Counts())

    def _took(self, counts: Counts, what: str, seconds: float) -> None:
        counts.times[what] = _plus(counts.times.get(what, NONE), (1, _ns(seconds)))


def together(replicas: Iterable[Mapping[int, Counts]]) -> dict[int, Counts]:
    """The counts of several replicas, added."""
    found: dict[int, Counts] = {}
    for versions in replicas:
        for version, counts in versions.items():
            sums = found.setdefault(version, Counts())
            sums.inferences += counts.inferences
            sums.executions += counts.executions
            sums.last_inference = max(sums.last_inference, counts.last_inference)
            _add(sums.times, counts.times)
            _add(sums.batches, counts.batches)
    return found


def as_json(model: str, version: int, counts: Counts) -> Json:
    """One row of the protocol's model_stats. There is no response cache; its counts are 0."""
    kinds = ("success", "fail", *STAGES, "cache_hit", "cache_miss")
    return {
        "name": model,
        "version": str(version),
        "last_inference": counts.last_inference,
        "inference_count": counts.inferences,
        "execution_count": counts.executions,
        "inference_stats": {kind: _shown(counts.times.get(kind, NONE)) for kind in kinds},
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": images,
                "compute_input": _shown((times[0], 0)),  # decoding and writing belong to a query, not to a batch
                "compute_infer": _shown(times),
                "compute_output": _shown((times[0], 0)),
            }
            for images, times in sorted(counts.batches.items())
        ],
        "memory_usage": [],
    }


def _add(whole: dict[Key, Times], part: Mapping[Key, Times]) -> None:
    for key, times in part.items():
        whole[key] = _plus(whole.get(key, NONE), times)


def _shown(times: Times) -> Json:
    return {"count": times[0], "ns": times[1]}


def _plus(one: Times, other: Times) -> Times:
    return one[0] + other[0], one[1] + other[1]


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
