"""The best few of many scores."""

import numpy as np
import numpy.typing as npt

Ranking = list[tuple[int, float]]  # (class id, score), best first

FEW = 256  # scores: up to here it is as quick to sort them all


def best(scores: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
    """Where the highest of each row's scores are, best first: N×k of N×A, k = count, or A if that is less.

    Of equal ones the first comes first.
    """
    least_first = -scores
    if scores.shape[1] <= max(FEW, count):
        return np.argsort(least_first, axis=1, kind="stable")[:, :count]
    bound = np.partition(least_first, count - 1, axis=1)[:, count - 1 : count]
    found = np.empty((len(scores), count), np.intp)
    for image, row, near in zip(found, least_first, ~(least_first > bound), strict=True):  # ~: what is NaN, comes last
        places = np.flatnonzero(near)  # `count` and those that are equal to the last of them
        image[:] = places[np.argsort(row[places], kind="stable")[:count]]
    return found
