"""Which class each row answers, of the last layer or of the class means, where some classes are retired or merged."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from lifelist.exporter.fold import Floats
from lifelist.exporter.manifest import ClassEntry, Manifest
from lifelist.exporter.provisional import FILE
from lifelist.exporter.ranking import Ranking, best

NONE = -1  # in place of a class id


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows that answer. Those of a retired class do not; those of a merged one answer the class it went into."""

    ids: tuple[int, ...]  # A class ids, all different
    answers: npt.NDArray[np.int64]  # R+1: what each row answers, or NONE; the last one is for row -1, which is no row
    order: npt.NDArray[np.intp] | None  # the rows that answer, of one class side by side; None: each one of its own
    starts: npt.NDArray[np.intp]  # A: where the rows of each class begin in `order`

    @classmethod
    def of(cls, known: Sequence[int], instead: Mapping[int, int | None]) -> Self:
        """known: R class ids, one for each row. instead: what is answered in place of some (`Manifest.instead`)."""
        rows: defaultdict[int, list[int]] = defaultdict(list)
        answers = np.full(len(known) + 1, NONE, np.int64)
        for row, class_id in enumerate(known):
            if (answered := instead.get(class_id, class_id)) is not None:
                answers[row] = answered
                rows[answered].append(row)
        order = np.array([row for together in rows.values() for row in together], np.intp)
        starts = np.cumsum([0, *map(len, rows.values())])[:-1]
        plain = len(rows) == len(known)
        return cls(tuple(rows), answers, None if plain else order, starts)

    def scores(self, logits: Floats) -> npt.NDArray[np.float64]:
        """N×A probabilities of the classes, which sum to 1, of logits N×R: rows that do not answer are as if not there.

        A class that others are merged into has the sum of what its rows have.
        """
        shown = logits if self.order is None else logits[:, self.order]
        weights = np.exp(shown - shown.max(axis=1, keepdims=True, initial=-np.inf), dtype=np.float64)
        if self.order is not None:
            weights = np.add.reduceat(weights, self.starts, axis=1)
        found: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return found

    def logits(self, logits: Floats) -> Floats:
        """N×A, of logits N×R: `scores` are their softmax. A class of several rows has the log of their summed exp."""
        if self.order is None:
            return logits
        found: Floats = np.logaddexp.reduceat(logits[:, self.order], self.starts, axis=1)
        return found

    def by_logits(self, logits: Floats, top_k: int) -> list[Ranking]:
        """The best classes of each image, with their probabilities, of logits N×R."""
        scores = self.scores(logits)
        # of logits no two are alike for being small, as probabilities may be
        places = best(logits if self.order is None else scores, top_k)
        return [
            [(self.ids[place], float(image[place])) for place in of_image]
            for image, of_image in zip(scores, places.tolist(), strict=True)
        ]

    def highest(self, scores: Floats) -> Floats:
        """N×A of scores N×R: of the rows of a class the highest counts."""
        return scores if self.order is None else np.maximum.reduceat(scores[:, self.order], self.starts, axis=1)

    @property
    def spare(self) -> int:
        """Rows that bring no class of their own: the first A + spare of any order bring them all."""
        return len(self.answers) - 1 - len(self.ids)

    def by_rows(self, rows: npt.NDArray[np.int64], scores: Floats, top_k: int) -> list[Ranking]:
        """The best classes of each image, of its best rows and their scores, both N×K, best first.

        Row -1 is none. For top_k classes there have to be top_k + spare rows.
        """
        answered = self.answers[rows].tolist()
        return [_firsts(ids, of_image)[:top_k] for ids, of_image in zip(answered, scores.tolist(), strict=True)]


def _firsts(ids: Sequence[int], scores: Sequence[float]) -> Ranking:
    found: dict[int, float] = {}
    for class_id, score in zip(ids, scores, strict=True):
        if class_id != NONE:
            found.setdefault(class_id, score)
    return list(found.items())


def answered(manifest: Manifest) -> list[ClassEntry]:
    """The classes that the linear answer can name, in the order of the columns of logits and probabilities.

    Trained ones, then enrolled ones where they have provisional rows.
    """
    imprinted = any(entry.name == FILE for entry in manifest.files)
    named = {entry.id: entry for entry in manifest.classes}
    known = [entry.id for entry in (manifest.classes if imprinted else manifest.trained)]
    return [named[class_id] for class_id in Rows.of(known, manifest.instead).ids]
