"""Rows of the last layer for classes that have none yet: imprinted weights (Qi, Brown and Lowe, CVPR 2018).

An enrolled class is known by its mean, a unit vector. Its logit is scale·(embedding·mean) + offset, beside those of the
graph, until an increment trains a row. Scale and offset are the same for all enrolled classes of a version.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from lifelist.exporter.errors import Corrupt, few
from lifelist.exporter.fold import Floats
from lifelist.exporter.imagery import LOOKS

FILE = "provisional.json"  # of a version that has any
HELD_OUT = "reference.safetensors"  # what a version's graph says to held-out images, and how they look
HELD_OUT_INT8 = "reference.int8.safetensors"  # the same of its graph in 8 bits, if that is used
ROUNDING = 1e-5  # so that a draw is none in 32 bits


@dataclass(frozen=True, slots=True)
class Provisional:
    """The rows of a version's enrolled classes; they come after those of the graph, in this order."""

    ids: tuple[int, ...]  # class ids
    scale: float
    offset: float

    def logits(self, embedding: Floats, means: Floats) -> Floats:
        """N×E float32, of unit rows N×D and the classes' means E×D."""
        found: Floats = np.float32(self.scale) * (embedding @ means.T) + np.float32(self.offset)
        return found

    def as_bytes(self) -> bytes:
        """The file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes, enrolled: Sequence[int]) -> Self:
        """What `as_bytes` wrote; Corrupt if it is not of these enrolled classes."""
        try:
            value = json.loads(data)
            found = cls(tuple(value["ids"]), float(value["scale"]), float(value["offset"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"{FILE} does not describe rows of enrolled classes: {error!r}") from error
        if found.ids != tuple(enrolled) or not np.isfinite([found.scale, found.offset]).all():
            raise Corrupt(f"{FILE} has rows of classes {few(found.ids)}; the enrolled ones are {few(enrolled)}")
        return found


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What a graph says to N images that it was not trained on, and how they look."""

    embedding: Floats  # N×D, unit rows
    logits: Floats  # N×T
    rows: npt.NDArray[np.int64]  # T class ids, of the columns of `logits`
    labels: npt.NDArray[np.int64]  # N class ids
    looks: Floats  # N×K (imagery.py); NaN is what a version did not keep that was made before it was looked at

    @property
    def best(self) -> Floats:
        """N: the largest logit."""
        found: Floats = self.logits.max(axis=1)
        return found

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """N: whether that is the true class's."""
        found: npt.NDArray[np.bool_] = self.rows[self.logits.argmax(axis=1)] == self.labels
        return found

    def of(self, which: npt.NDArray[np.bool_] | slice) -> "HeldOut":
        """That of some of the images."""
        return HeldOut(self.embedding[which], self.logits[which], self.rows, self.labels[which], self.looks[which])

    def fit(self, means: Floats, most_lost: float) -> tuple[float, float]:
        """(scale, offset) of rows for classes with these means, E×D unit rows, E ≥ 1.

        Of the images that are right without the rows, at most the share `most_lost` is answered by one of them, and
        the offset is the largest with which that is so. The scale makes similarities spread as much as logits do.
        """
        similar = (self.embedding @ means.T).max(axis=1)
        spread = float(similar.std())
        scale = float(self.best.std()) / spread if spread > 0 else 1.0
        margin = self.best - np.float32(scale) * similar  # an image is answered by a new row if the offset is larger
        margin = np.sort(margin[self.right] if self.right.any() else margin)
        offset = float(margin[int(most_lost * len(margin))])
        return scale, offset - ROUNDING * max(1.0, abs(offset))

    def as_bytes(self) -> bytes:
        """The file, as safetensors."""
        found: bytes = safetensors.numpy.save(
            {
                "embedding": self.embedding,
                "logits": self.logits,
                "rows": self.rows,
                "labels": self.labels,
                "looks": self.looks,
            }
        )
        return found

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `as_bytes` wrote; Corrupt if it is not that."""
        try:
            found = safetensors.numpy.load(data)
            missing = max(0, len(LOOKS) - found["looks"].shape[1])
            found["looks"] = np.pad(found["looks"], ((0, 0), (0, missing)), constant_values=np.nan)
            return cls(*(found[name] for name in ("embedding", "logits", "rows", "labels", "looks")))
        except (KeyError, safetensors.SafetensorError) as error:
            raise Corrupt(f"what was said to held-out images cannot be read: {error!r}") from error
