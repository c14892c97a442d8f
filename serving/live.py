"""The versions that a replica holds. Which of them answers is one reference, replaced whole and read once per batch."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lifelist.exporter.errors import Conflict, NotPrepared
from lifelist.exporter.fold import Floats
from lifelist.exporter.manifest import AnswerKind
from lifelist.exporter.preprocess import Pixels
from lifelist.exporter.ranking import Ranking
from lifelist.exporter.registry import Ref
from lifelist.exporter.session import Loaded


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """The images of one request. They travel together, and one version answers them all."""

    images: Pixels  # N×S×S×3
    sides: Sequence[int]  # N shorter sides of them as they came, in pixels
    seen_for: Loaded  # whose preprocessing made them
    answer: AnswerKind | None  # None: as the version that answers does by default
    top_k: int
    queued_at: float  # time.perf_counter()
    pinned: bool = False  # no other version than `seen_for` may answer
    traffic: bool = True  # False: a probe, which statistics do not count


Unknown = npt.NDArray[np.float64] | None  # N unknown scores; None if the version was not calibrated


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What one version said to a query, and how long that took."""

    loaded: Loaded
    images: Pixels  # N×S×S×3, the query's
    sides: Sequence[int]  # the same
    kind: AnswerKind
    rankings: list[Ranking]  # one for each image, best first
    logits: Floats  # N×C, raw; a view of the whole batch's
    embedding: Floats  # N×D, unit rows; the same
    unknown: Unknown
    queue_s: float
    model_s: float  # of the whole batch


_Said = tuple[AnswerKind, list[Ranking], Floats, Floats, Unknown]  # of Answer: from kind to unknown


@dataclass(frozen=True, slots=True)
class _Held:
    loaded: Loaded
    expected: int  # the generation of `live` that it hopes to follow


class Live:
    """One version answers; others are held ready. Call it from one event loop, but `answer` from any thread."""

    def __init__(
        self,
        first: Loaded,
        ref: Ref,
        max_batch: int = 64,
        max_pinned: int = 4,
        on_run: Callable[[int, int, float], None] = lambda version, images, seconds: None,
    ) -> None:
        self.ref, self.max_batch, self.max_pinned, self.on_run = ref, max_batch, max_pinned, on_run
        self.pinned: set[int] = set()  # those that were asked for by number, and stay until they are let go
        self._current = first  # the one reference that a swap replaces
        self._held = {first.version: _Held(first, ref.generation)}
        self._names: dict[int, Mapping[int, str]] = {}

    @property
    def current(self) -> Loaded:
        """The version that answers now."""
        return self._current

    @property
    def held(self) -> dict[int, Loaded]:
        """The versions that could answer at once."""
        return {version: held.loaded for version, held in self._held.items()}

    def hold(self, loaded: Loaded, expected: int) -> None:
        """Keep a version ready for the swap that saw `live` at generation `expected`."""
        before = self._held.get(loaded.version)
        self._held[loaded.version] = _Held(loaded, max(expected, before.expected if before else 0))

    def pin(self, version: int) -> None:
        """Keep a version, once it is held, beyond any swap. Conflict if that would be one too many."""
        if version not in self.pinned and len(self.pinned) >= self.max_pinned:
            raise Conflict(
                f"versions {sorted(self.pinned)} are loaded, as many as serving.max_loaded allows; unload one of them"
            )
        self.pinned.add(version)

    def commit(self, ref: Ref) -> bool:
        """Let the version of `ref` answer, from the next batch on. False if something later answers already.

        Rolling back is the same call with the previous number. NotPrepared if the version is not held.
        """
        if ref.generation <= self.ref.generation:  # commits may arrive in any order; the generation decides
            return False
        if ref.version not in self._held:
            raise NotPrepared(
                f"version {ref.version} is not loaded here; loaded: {sorted(self._held)}. Prepare it first"
            )
        self._current = self._held[ref.version].loaded
        self.ref = ref
        return True

    def release(self, keep: Iterable[int], generation: int, abandoned: int | None = None) -> list[int]:
        """Let go of versions: their numbers. A batch that still uses one ends with it.

        keep        those that stay: live and previous
        generation  where `live` stands; a version that was prepared for later than that stays too
        abandoned   one that goes although it was prepared for later: its swap has failed
        """
        staying = {*keep, self._current.version} | self.pinned
        gone = [
            version
            for version, held in self._held.items()
            if version not in staying and (held.expected < generation or version == abandoned)
        ]
        for version in gone:
            del self._held[version]
            self._names.pop(version, None)
        return gone

    def names(self, loaded: Loaded) -> Mapping[int, str]:
        """The names of a version's classes by id; kept, since every answer needs them."""
        if loaded.version not in self._names:
            self._names[loaded.version] = {entry.id: entry.name for entry in loaded.manifest.classes}
        return self._names[loaded.version]

    def answer(self, queries: Sequence[Query], alone: bool = True) -> list[Answer]:
        """One answer for each query, each from one version. alone: no other thread answers at the same time.

        That is the current one, but for a query that asks for another, or whose images were cut to another size because
        a swap between versions of different input sizes came in between: the version that it was cut for answers those.
        """
        current, began = self._current, time.perf_counter()
        groups: defaultdict[int, list[int]] = defaultdict(list)
        by_version = {query.seen_for.version: query.seen_for for query in queries} | {current.version: current}
        for place, query in enumerate(queries):
            keeps = query.pinned or not _same_pixels(query.seen_for, current)
            chosen = query.seen_for if keeps else current
            groups[chosen.version].append(place)
        answers: dict[int, Answer] = {}
        for version, places in groups.items():
            loaded = by_version[version]
            said = self._said(loaded, [queries[place] for place in places], alone)
            took = time.perf_counter() - began
            for place, parts in zip(places, said, strict=True):
                query = queries[place]
                answers[place] = Answer(loaded, query.images, query.sides, *parts, began - query.queued_at, took)
        return [answers[place] for place in range(len(queries))]

    def _said(self, loaded: Loaded, queries: Sequence[Query], alone: bool) -> list[_Said]:
        """What each query is answered. One model run gives both kinds of answer."""
        images = queries[0].images if len(queries) == 1 else np.concatenate([query.images for query in queries])
        counted = sum(len(query.images) for query in queries if query.traffic)
        runs = [
            self._run(loaded, images[k : k + self.max_batch], min(self.max_batch, max(0, counted - k)), alone)
            for k in range(0, len(images), self.max_batch)
        ]
        logits, embedding = (
            parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*runs, strict=True)
        )
        said: list[_Said] = []
        end = 0
        for query in queries:
            begin, end = end, end + len(query.images)
            kind, raw = query.answer or loaded.manifest.default_answer, (logits[begin:end], embedding[begin:end])
            rankings = _rankings(loaded, kind, *raw, query.top_k)
            said.append((kind, rankings, *raw, loaded.unknown_scores(kind, raw[0], rankings)))
        return said

    def _run(self, loaded: Loaded, images: Pixels, counted: int, alone: bool) -> tuple[Floats, Floats]:
        """counted: as many of the images as are no probe's; a run for probes alone is none for the statistics."""
        began = time.perf_counter()
        found = loaded.run(images, alone)
        if counted:
            self.on_run(loaded.version, counted, time.perf_counter() - began)
        return found


def _rankings(loaded: Loaded, kind: AnswerKind, logits: Floats, embedding: Floats, top_k: int) -> list[Ranking]:
    if kind == "linear":
        return loaded.linear(logits, top_k)
    return loaded.nearest_mean(embedding, top_k)


def _same_pixels(one: Loaded, other: Loaded) -> bool:
    """Whether both see an image as the same pixels; mean and standard deviation are inside the graph."""
    a, b = one.manifest.preprocess, other.manifest.preprocess
    return (a.size, a.resize_to) == (b.size, b.resize_to)
