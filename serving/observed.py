"""What a replica saw lately: a bounded, fair sample of its answers, kept until whoever watches it takes it away."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lifelist.exporter.fold import Floats
from lifelist.exporter.manifest import AnswerKind
from lifelist.exporter.preprocess import Pixels
from lifelist.serving.live import Answer

MOST, MOST_BYTES = 256, 8 * 2**20  # images, and bytes of them with all that is said of them, of one version
MOST_SAMPLES = 4  # of versions and kinds of answer: more are not kept if nobody takes them away


@dataclass(frozen=True, slots=True, eq=False)
class Observations:
    """N images of those that one version answered in one way, each as likely to be here as any other."""

    version: int
    kind: AnswerKind
    precision: str  # of the graph: fp32 or int8
    answered: int  # images of which these are a sample
    ids: tuple[str, ...]  # of the predictions
    at: npt.NDArray[np.float64]  # Unix times, seconds
    best: npt.NDArray[np.int64]  # class ids
    logits: Floats  # N×C
    embedding: Floats  # N×D, unit rows
    images: Pixels  # N×S×S×3, as the model saw them
    sides: npt.NDArray[np.int64]  # N shorter sides of them as they came, in pixels


_Key = tuple[int, AnswerKind, str]  # version, kind, precision
_Row = tuple[str, float, int, Floats, Floats, Pixels, int]


@dataclass(slots=True)
class _Sample:
    most: int
    answered: int = 0
    rows: list[_Row] = field(default_factory=list)


class Observed:
    """Answers as they are given, sampled (reservoir sampling; Vitter 1985, algorithm R). Use it on one event loop."""

    def __init__(self, most: int = MOST, seed: int | None = None) -> None:
        self.most = most
        self._draw = random.Random(seed).random
        self._samples: dict[_Key, _Sample] = {}

    def note(self, answer: Answer, ids: Sequence[str]) -> None:
        """An answer was given, with these ids for its images. What is kept is copied: the batch is not kept alive."""
        if not self.most:
            return
        key = answer.loaded.version, answer.kind, answer.loaded.precision
        sample = self._samples.get(key)
        if sample is None:
            while len(self._samples) >= MOST_SAMPLES:  # the oldest goes, of a version that hardly answers any more
                del self._samples[next(iter(self._samples))]
            each = answer.images[0].nbytes + answer.logits[0].nbytes + answer.embedding[0].nbytes
            sample = self._samples[key] = _Sample(max(1, min(self.most, MOST_BYTES // each)))
        for k, prediction_id in enumerate(ids):
            sample.answered += 1
            place = len(sample.rows)
            if place >= sample.most and (place := int(self._draw() * sample.answered)) >= sample.most:
                continue
            said = (
                answer.rankings[k][0][0],
                answer.logits[k].copy(),
                answer.embedding[k].copy(),
                answer.images[k].copy(),
                answer.sides[k],
            )
            sample.rows[place : place + 1] = [(prediction_id, time.time(), *said)]

    def take(self) -> list["Taken"]:
        """What was seen since the last time. Made into arrays by `arrays`, in any thread."""
        samples, self._samples = self._samples, {}
        return [Taken(key, sample.answered, sample.rows) for key, sample in samples.items()]


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """Observations, row by row."""

    key: _Key
    answered: int
    rows: list[_Row]

    def arrays(self) -> Observations:
        """The same, column by column."""
        ids, at, best, logits, embedding, images, sides = zip(*self.rows, strict=True)
        return Observations(
            *self.key,
            self.answered,
            ids,
            np.array(at),
            np.array(best, np.int64),
            np.stack(logits),
            np.stack(embedding),
            np.stack(images),
            np.array(sides, np.int64),
        )
