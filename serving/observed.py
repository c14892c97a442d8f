"""What a replica saw lately: a bounded, fair sample of its answers, kept until whoever watches it takes it away."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
_Row = tuple[str, float, int, bytes, bytes, bytes, int]
_Form = tuple[np.dtype[Any], tuple[int, ...]]


@dataclass(slots=True)
class _Sample:
    most: int
    forms: list[_Form]  # of an image's logits, embedding and pixels
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
            one = answer.logits[0], answer.embedding[0], answer.images[0]
            most = max(1, min(self.most, MOST_BYTES // sum(part.nbytes for part in one)))
            sample = self._samples[key] = _Sample(most, [(part.dtype, part.shape) for part in one])
        for k, prediction_id in enumerate(ids):
            sample.answered += 1
            place = len(sample.rows)
            if place >= sample.most and (place := int(self._draw() * sample.answered)) >= sample.most:
                continue
            said = (  # bytes: to copy an array, NumPy lets go of the interpreter, and the event loop would wait for it
                answer.rankings[k][0][0],
                answer.logits[k].tobytes(),
                answer.embedding[k].tobytes(),
                answer.images[k].tobytes(),
                answer.sides[k],
            )
            sample.rows[place : place + 1] = [(prediction_id, time.time(), *said)]

    def take(self) -> list["Taken"]:
        """What was seen since the last time. Made into arrays by `arrays`, in any thread."""
        samples, self._samples = self._samples, {}
        return [Taken(key, sample.answered, sample.forms, sample.rows) for key, sample in samples.items()]


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """Observations, row by row."""

    key: _Key
    answered: int
    forms: list[_Form]
    rows: list[_Row]

    def arrays(self) -> Observations:
        """The same, column by column."""
        ids, at, best, *parts, sides = zip(*self.rows, strict=True)
        logits, embedding, images = (
            np.frombuffer(b"".join(part), dtype).reshape(-1, *shape)
            for part, (dtype, shape) in zip(parts, self.forms, strict=True)
        )
        return Observations(
            *self.key,
            self.answered,
            ids,
            np.array(at),
            np.array(best, np.int64),
            logits,
            embedding,
            images,
            np.array(sides, np.int64),
        )
