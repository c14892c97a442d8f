"""How far a share that was counted may be from the true one. No figure of accuracy is shown without its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

Z = 1.959964  # of 95 %, two-sided


def points(difference: float) -> str:
    """A difference of two shares in percentage points: of 80 % to 60 %, 20.0, which is no loss of 20 % of what was."""
    return f"{100 * difference:.1f}"


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95 % interval, or that of another z, all in 0 … 1, and what it rests on.

    None: nothing was counted.
    """

    ratio: float | None
    low: float | None
    high: float | None
    total: float  # images that it rests on; weighted ones count as what they are worth (`of_weights`)

    @classmethod
    def of(cls, right: float, total: float, z: float = Z) -> Self:
        """`right` of `total`, by Wilson's interval (JASA 1927), which is sound for few images and shares near 1."""
        if total <= 0:
            return cls(None, None, None, 0)
        ratio = min(1.0, right / total)
        middle = (ratio + z * z / (2 * total)) / (1 + z * z / total)
        half = z / (1 + z * z / total) * math.sqrt(ratio * (1 - ratio) / total + z * z / (4 * total * total))
        return cls(ratio, min(ratio, max(0.0, middle - half)), max(ratio, min(1.0, middle + half)), total)

    @classmethod
    def of_weights(cls, right: float, total: float, squares: float, z: float = Z) -> Self:
        """The share `right` of `total`, sums of weights; `squares`: of the squares of all of them.

        Images of different weights are worth total² / squares of equal ones (Kish, 1965).
        """
        if total <= 0:
            return cls(None, None, None, 0)
        worth = total * total / squares
        return cls.of(right / total * worth, worth, z)

    @classmethod
    def mean(cls, counts: Sequence[tuple[float, float]], z: float = Z) -> Self:
        """The mean of the shares of several classes, (right, total) each, as if images were drawn from all of them.

        That is a little wide, since of each class so many are asked about as there are.
        """
        return cls.of_weights(sum(r / n for r, n in counts), len(counts), sum(1 / n for _, n in counts), z)


@dataclass(frozen=True, slots=True)
class Change:
    """By how much a share differs between two answers, with its 95 % interval, -1 … 1."""

    difference: float
    low: float
    high: float
    total: int

    @classmethod
    def of(cls, gained: int, lost: int, total: int) -> Self:
        """Of the same `total` images `gained` are right only now, and `lost` were right only before.

        Wald's interval for paired shares after adding half an image to each cell (Agresti & Min, Statistics in Medicine
        2005): without it few images would seem certain.
        """
        n, more, fewer = total + 2, gained + 0.5, lost + 0.5
        middle = (more - fewer) / n
        half = Z * math.sqrt((more + fewer) - (more - fewer) ** 2 / n) / n
        return cls((gained - lost) / total if total else 0.0, max(-1.0, middle - half), min(1.0, middle + half), total)

    @classmethod
    def between(cls, before: Share, now: Share) -> Self | None:
        """By how much `now` is above `before`, of different images; None if either rests on none.

        The hybrid score interval, made of both of Wilson's (Newcombe, Statistics in Medicine 1998, method 10).
        """
        if before.ratio is None or now.ratio is None:
            return None
        assert before.low is not None
        assert before.high is not None
        assert now.low is not None
        assert now.high is not None
        difference = now.ratio - before.ratio
        low = difference - math.hypot(now.ratio - now.low, before.high - before.ratio)
        high = difference + math.hypot(now.high - now.ratio, before.ratio - before.low)
        return cls(difference, max(-1.0, low), min(1.0, high), int(now.total))


@dataclass(frozen=True, slots=True)
class Bounded:
    """A ratio that may be above 1, with its 95 % interval and the images that it rests on."""

    ratio: float
    low: float
    high: float
    total: float

    @classmethod
    def of_share(cls, share: Share, of: float) -> Self:
        """A share of some images as a multiple of another, `of`, which is known."""
        assert share.ratio is not None
        assert share.low is not None
        assert share.high is not None
        return cls(share.ratio / of, share.low / of, share.high / of, share.total)
