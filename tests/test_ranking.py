"""The best few of many scores are the first of all, sorted; of equal ones the first."""

import numpy as np
import pytest

from lifelist.exporter.ranking import FEW, best


@pytest.mark.parametrize("columns", [1, 3, FEW, FEW + 1, 3000])
@pytest.mark.parametrize("count", [1, 5, FEW + 1, 9999])
@pytest.mark.parametrize("levels", [1, 4, 10**9])
def test_the_best_are_those_of_a_full_sort_ties_included(columns: int, count: int, levels: int) -> None:
    scores = np.random.default_rng(columns).integers(0, levels, (5, columns)).astype(np.float32)
    found = best(scores, count)
    assert found.tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :count].tolist()
    assert best(scores[:0], count).shape == (0, min(count, columns))


def test_what_is_no_number_comes_last() -> None:
    scores = np.full((1, 3000), np.nan)
    scores[0, [7, 2000]] = 1, 2
    assert best(scores, 4)[0, :2].tolist() == [2000, 7]
