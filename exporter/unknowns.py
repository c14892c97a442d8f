"""Whether an image is of a class that is known: how it looks beside held-out images, which are of known ones.

What is compared is the largest logit (Hendrycks et al., ICML 2022) for the linear answer, and the cosine similarity to
the nearest mean for the other; both are at hand when an image is answered. Of CIFAR-100 the energy and the largest
probability tell no more (docs/accuracy/newclasses). An image's unknown score is the share of held-out images that look
more known: to call unknown what is above 1 - a is a false alarm for the share a of them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lifelist.exporter.fold import Floats
from lifelist.exporter.manifest import QUANTILES, KnownScores
from lifelist.exporter.provisional import HeldOut, Provisional

LEAST = 20  # images, to say anything of a share of 5 %
_SHARES = np.linspace(0, 1, QUANTILES)


def calibrate(held: HeldOut, means: Floats, provisional: Provisional | None = None) -> KnownScores | None:
    """How known held-out images look to a version with these class means, K×D; None if they are too few.

    provisional: its rows, which are of the last of the means. Classes that are retired count as if they were not.
    """
    if len(held.best) < LEAST:
        return None
    best = held.best
    if provisional is not None:
        rows = provisional.logits(held.embedding, means[-len(provisional.ids) :])
        best = np.maximum(best, rows.max(axis=1))
    return KnownScores(len(best), _quantiles(best), _quantiles((held.embedding @ means.T).max(axis=1)))


def unknown_scores(known: Sequence[float] | Floats, quantiles: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """0 … 1 for each of N known scores: the share of held-out images, of which these are quantiles, that have more."""
    return 1 - np.interp(known, quantiles, _SHARES)


def _quantiles(known: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in np.quantile(known, _SHARES))
