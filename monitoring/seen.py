"""What one version's answers show without any label: how sure they are, and how the images look to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from lifelist.exporter.answering import Answering
from lifelist.exporter.fold import Floats
from lifelist.exporter.manifest import AnswerKind
from lifelist.exporter.provisional import HeldOut
from lifelist.monitoring.figures import NONE, Figure, Group

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """N images, as one version saw and answered them in one way."""

    best: npt.NDArray[np.int64]  # class ids
    confidence: Column  # probability that the answer is right, calibrated; NaN where the version is not
    margin: Column  # by how much the best class is more probable than the second
    unknown: Column  # unknown score; NaN where the version is not calibrated
    embedding: Floats  # N×D
    looks: Floats  # N×K (exporter/imagery.py)

    def __len__(self) -> int:
        return len(self.best)

    def of(self, which: npt.NDArray[np.intp] | slice) -> Self:
        """Some of them."""
        return type(self)(*(getattr(self, field.name)[which] for field in fields(self)))

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """Those of several, of the same version and kind of answer."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True, slots=True, eq=False)
class Believed:
    """How probable each class is for each of N images."""

    ids: npt.NDArray[np.int64]  # A class ids
    probabilities: Column  # N×A
    answered: npt.NDArray[np.intp]  # N: the column of the class that is answered, which need not be the most probable

    @property
    def right(self) -> Column:
        """N: how probable it is that the answer is right."""
        found: Column = self.probabilities[np.arange(len(self.answered)), self.answered]
        return found


def see(
    answering: Answering, kind: AnswerKind, logits: Floats, embedding: Floats, looks: Floats
) -> tuple[Seen, Believed | None]:
    """Images by what the graph said to them: logits N×C, those of provisional rows included, and unit rows N×D.

    None: this kind of answer of the version was not calibrated, and nothing can be estimated.
    """
    found = answering.evidence(kind, logits, embedding)
    best = found.scores.argmax(axis=1)
    probable = answering.probabilities_of(kind, logits, embedding)
    believed = None if probable is None else Believed(*probable, best)
    shown = found.scores if believed is None else believed.probabilities
    two = np.sort(np.partition(shown, max(shown.shape[1] - 2, 0), axis=1)[:, -2:], axis=1)
    rankings = [[(0, float(score))] for score in found.scores.max(axis=1)]  # of means, similarities
    unknown = answering.unknown_scores(kind, logits, rankings)
    nothing = np.full(len(embedding), np.nan)
    seen = Seen(
        best=found.ids[best],
        confidence=nothing if believed is None else believed.right,
        margin=two[:, -1] - two[:, 0] if shown.shape[1] > 1 else np.ones(len(embedding)),
        unknown=nothing if unknown is None else unknown,
        embedding=embedding,
        looks=looks,
    )
    return seen, believed


def reference(answering: Answering, kind: AnswerKind, held: HeldOut) -> Seen:
    """Held-out images, as the version sees them: what its answers are compared with."""
    seen, _ = see(answering, kind, answering.all_logits(held.logits, held.embedding), held.embedding, held.looks)
    return seen


def estimated(
    answering: Answering, believed: Believed, answered: int, minute: tuple[str, int], hour: tuple[str, int]
) -> Iterator[Figure]:
    """What the figures would be if labels came: the expected number of images of each class, and of right ones.

    believed   N images out of the `answered` ones, for which they stand in equal parts
    minute, hour  (where it begins, seconds) the stretches that all images, and single classes, are counted in
    """
    shown = believed.probabilities
    of_class, right = (
        shown.sum(axis=0),
        np.bincount(believed.answered, weights=believed.right, minlength=len(believed.ids)),
    )
    weight, version = answered / len(shown), answering.version

    def figure(stretch: tuple[str, int], group: Group, class_id: int, which: npt.NDArray[np.bool_] | slice) -> Figure:
        total = float(of_class[which].sum())
        sums = total * weight, float(right[which].sum()) * weight, total * weight * weight
        return Figure(*stretch, version, "estimated", group, class_id, round(total), *sums)

    yield figure(minute, "all", NONE, slice(None))
    is_new = np.isin(believed.ids, list(answering.manifest.newest))
    for group, which in (("old", ~is_new), ("new", is_new)):
        if which.any():
            yield figure(minute, group, NONE, which)  # type: ignore[arg-type]
    for place in np.flatnonzero(of_class >= 0.5):  # classes that some image may be of
        yield figure(hour, "class", int(believed.ids[place]), slice(place, place + 1))
