"""Which class each row of the last layer answers, where some are retired or merged."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from lifelist.exporter.fold import Floats
from lifelist.exporter.manifest import ClassEntry, Manifest
from lifelist.exporter.provisional import FILE


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows that answer. Those of a retired class do not; those of a merged one answer the class it went into."""

    ids: tuple[int, ...]  # A class ids, all different
    order: npt.NDArray[np.intp] | None  # the rows that answer, of one class side by side; None: each one of its own
    starts: npt.NDArray[np.intp]  # A: where the rows of each class begin in `order`

    @classmethod
    def of(cls, manifest: Manifest, provisional: Sequence[int] = ()) -> Self:
        """Those of a version: of its trained classes, then the `provisional` ones, of these classes."""
        rows: defaultdict[int, list[int]] = defaultdict(list)
        instead = manifest.instead
        known = [*(entry.id for entry in manifest.trained), *provisional]
        for row, class_id in enumerate(known):
            if (answered := instead.get(class_id, class_id)) is not None:
                rows[answered].append(row)
        order = [row for together in rows.values() for row in together]
        starts = np.cumsum([0, *map(len, rows.values())])[:-1]
        plain = order == list(range(len(known))) and len(rows) == len(order)
        return cls(tuple(rows), None if plain else np.array(order, np.intp), starts)

    def scores(self, logits: Floats) -> npt.NDArray[np.float64]:
        """N×A probabilities of the classes, which sum to 1, of logits N×C: rows that do not answer are as if not there.

        A class that others are merged into has the sum of what its rows have.
        """
        shown = logits if self.order is None else logits[:, self.order]
        weights = np.exp(shown - shown.max(axis=1, keepdims=True, initial=-np.inf), dtype=np.float64)
        if self.order is not None:
            weights = np.add.reduceat(weights, self.starts, axis=1)
        found: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return found


def columns(manifest: Manifest) -> tuple[ClassEntry, ...]:
    """The classes of the columns of logits: trained ones, then enrolled ones where they have provisional rows."""
    imprinted = any(entry.name == FILE for entry in manifest.files)
    return manifest.classes if imprinted else manifest.trained


def answered(manifest: Manifest) -> list[ClassEntry]:
    """The classes of the columns of probabilities: those that the linear answer can name."""
    named = {entry.id: entry for entry in manifest.classes}
    provisional = [entry.id for entry in columns(manifest)[len(manifest.trained) :]]
    return [named[class_id] for class_id in Rows.of(manifest, provisional).ids]
