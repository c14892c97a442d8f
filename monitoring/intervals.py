"""How far a share that was counted may be from the true one. No figure of accuracy is shown without its interval."""

import math
from dataclasses import dataclass
from typing import Self

Z = 1.959964  # of 95 %, two-sided


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95 % interval, all in 0 … 1, and what it rests on. None: nothing was counted."""

    ratio: float | None
    low: float | None
    high: float | None
    total: float  # images that it rests on; weighted ones count as what they are worth (`of_weights`)

    @classmethod
    def of(cls, right: float, total: float) -> Self:
        """`right` of `total`, by Wilson's interval (JASA 1927), which is sound for few images and shares near 1."""
        if total <= 0:
            return cls(None, None, None, 0)
        ratio = min(1.0, right / total)
        middle = (ratio + Z * Z / (2 * total)) / (1 + Z * Z / total)
        half = Z / (1 + Z * Z / total) * math.sqrt(ratio * (1 - ratio) / total + Z * Z / (4 * total * total))
        return cls(ratio, max(0.0, middle - half), min(1.0, middle + half), total)

    @classmethod
    def of_weights(cls, right: float, total: float, squares: float) -> Self:
        """The share `right` of `total`, sums of weights; `squares`: of the squares of all of them.

        Images of different weights are worth total² / squares of equal ones (Kish, 1965).
        """
        if total <= 0:
            return cls(None, None, None, 0)
        worth = total * total / squares
        return cls.of(right / total * worth, worth)


@dataclass(frozen=True, slots=True)
class Change:
    """By how much a share of the same images differs between two answers, with its 95 % interval, -1 … 1."""

    difference: float
    low: float
    high: float
    total: int

    @classmethod
    def of(cls, gained: int, lost: int, total: int) -> Self:
        """Of `total` images `gained` are right only now, and `lost` were right only before.

        Wald's interval for paired shares after adding half an image to each cell (Agresti & Min, Statistics in Medicine
        2005): without it few images would seem certain.
        """
        n, more, fewer = total + 2, gained + 0.5, lost + 0.5
        middle = (more - fewer) / n
        half = Z * math.sqrt((more + fewer) - (more - fewer) ** 2 / n) / n
        return cls((gained - lost) / total if total else 0.0, max(-1.0, middle - half), min(1.0, middle + half), total)
