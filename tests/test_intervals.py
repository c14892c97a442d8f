"""Shares and their intervals: beside scipy's, and how often they hold the true share."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from lifelist.monitoring.classes import Counts, forgotten
from lifelist.monitoring.intervals import Bounded, Change, Share


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (941, 1000)])
def test_a_share_has_wilsons_interval(right: int, total: int) -> None:
    found = Share.of(right, total)
    wanted = stats.binomtest(right, total).proportion_ci(0.95, "wilson")
    assert found.ratio == right / total
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_a_share_lies_in_its_interval_whatever_is_rounded() -> None:
    for total in np.linspace(0.51, 300, 2000):
        for right in (0.0, total / 3, total):
            found = Share.of(right, total)
            assert found.low is not None
            assert found.ratio is not None
            assert found.high is not None
            assert 0 <= found.low <= found.ratio <= found.high <= 1


def test_nothing_counted_is_no_share() -> None:
    nothing = Share(None, None, None, 0)
    assert Share.of(0, 0) == Share.of_weights(0, 0, 0) == nothing


@pytest.mark.parametrize("total", [10, 60, 400])
def test_the_interval_holds_the_true_share_in_95_of_100_cases(total: int) -> None:
    counts = np.arange(total + 1)
    ends = np.array([(Share.of(k, total).low, Share.of(k, total).high) for k in counts], np.float64)
    shares = np.linspace(0.01, 0.99, 99)
    held = (ends[:, :1] <= shares) & (shares <= ends[:, 1:])
    coverage = (held * stats.binom.pmf(counts[:, None], total, shares)).sum(axis=0)  # exactly
    assert 0.945 < coverage.mean() < 0.965
    assert coverage.min() > 0.88


def test_equal_weights_are_no_weights_and_only_their_proportions_count() -> None:
    plain = Share.of(30, 40)
    assert Share.of_weights(30 * 7, 40 * 7, 40 * 49) == plain
    uneven, scaled = Share.of_weights(31, 41, 50), Share.of_weights(310, 410, 5000)
    assert uneven == scaled
    assert uneven.total == pytest.approx(41**2 / 50)


@pytest.mark.parametrize("right", [0.7, 0.95])
def test_an_audit_at_two_rates_covers_the_share_among_all_answers(right: float) -> None:
    random = np.random.default_rng(0)
    held, ratios = 0, []
    for _ in range(600):
        weight = random.choice([5.0, 20.0], 300, p=[0.8, 0.2])  # of how many answers each label stands
        hit = random.random(300) < right
        found = Share.of_weights((weight * hit).sum(), weight.sum(), (weight**2).sum())
        assert found.low is not None
        assert found.high is not None
        held += found.low <= right <= found.high
        ratios.append(found.ratio)
    assert held / 600 > 0.93
    assert np.mean(ratios) == pytest.approx(right, abs=0.005)


@pytest.mark.parametrize("total", [20, 100, 400])
@pytest.mark.parametrize(("gained", "lost"), [(0.02, 0.02), (0.03, 0.1), (0.0, 0.05)])
def test_the_interval_of_a_change_holds_the_true_one(total: int, gained: float, lost: float) -> None:
    random = np.random.default_rng(1)
    drawn = random.multinomial(total, [gained, lost, 1 - gained - lost], 4000)
    kinds = {tuple(row): Change.of(int(row[0]), int(row[1]), total) for row in np.unique(drawn, axis=0)}
    held = [kinds[tuple(row)].low <= gained - lost <= kinds[tuple(row)].high for row in drawn]
    assert np.mean(held) > 0.93


def test_few_images_that_all_stay_right_are_no_certainty() -> None:
    found = Change.of(0, 0, 5)
    assert found.difference == 0
    assert found.low < -0.1
    assert found.high > 0.1
    many = Change.of(0, 0, 5000)
    assert -0.001 < many.low < many.high < 0.001
    assert Change.of(3, 9, 100).difference == pytest.approx(-0.06)


def counted(right: Any, totals: Any) -> Counts:
    return dict(enumerate(zip(right.tolist(), totals.tolist(), strict=True)))


@pytest.mark.parametrize("images", [2, 5, 40])
def test_what_was_forgotten_is_within_its_interval_at_least_nineteen_times_of_twenty(images: int) -> None:
    random = np.random.default_rng(0)
    before, now = np.linspace(0.6, 0.95, 12), np.linspace(0.5, 0.75, 12)
    totals = np.array([images, 2 * images] * 6)
    true = float(np.mean(before - now))
    held = 0
    for _ in range(2000):
        present, past = (counted(random.binomial(totals, share), totals) for share in (now, before))
        found = forgotten(present, [past])
        assert found is not None
        held += found.low <= true <= found.high
        assert 0 <= found.low <= found.ratio <= found.high <= 1
        assert found.total == totals.sum()
    assert held / 2000 > 0.94


@pytest.mark.parametrize(("classes", "images", "versions"), [(30, 10, 1), (100, 4, 7), (40, 10, 7)])
def test_versions_that_differ_by_chance_do_not_add_up_to_forgetting(classes: int, images: int, versions: int) -> None:
    """Each takes two images of five for something else than the others do, as often right as they are: 85 %."""
    random = np.random.default_rng(0)
    totals, means, certain = np.full(classes, images), [], []
    for _ in range(400):
        common = random.random((classes, images)) < 0.85
        said = [
            np.where(random.random(common.shape) < 0.4, random.random(common.shape) < 0.85, common)
            for _ in range(versions + 1)
        ]
        now, *before = (counted(one.sum(1), totals) for one in said)
        found = forgotten(now, before)
        assert found is not None
        means.append(found.ratio)
        certain.append(found.low > 0)
    assert np.mean(means) > 0.02  # gains count 0, and the best is taken of each class: the mean alone says little
    assert np.mean(certain) < 0.03


def test_a_loss_is_seen_however_many_versions_and_classes_there_were_before() -> None:
    everywhere = dict.fromkeys(range(10), (38, 40))
    now, other = dict.fromkeys(range(10), (30, 40)), dict.fromkeys(range(10), (31, 40))
    found = forgotten(now | {10: (40, 40)}, [other, everywhere, {3: (1, 40)}])
    assert found is not None
    assert found.ratio == pytest.approx(0.2)
    assert 0.1 < found.low < 0.2 < found.high < 0.3
    half = forgotten(now | dict.fromkeys(range(10, 20), (40, 40)), [everywhere, dict.fromkeys(range(10, 20), (40, 40))])
    assert half is not None
    assert 0.05 < half.low < half.ratio == pytest.approx(0.1)
    assert forgotten(now, [{11: (1, 2)}]) is None


def test_a_multiple_of_a_known_share_has_the_interval_of_the_share() -> None:
    found, share = Bounded.of_share(Share.of(6, 19), 3 / 19), Share.of(6, 19)
    assert found.ratio == pytest.approx(2)
    assert share.low is not None
    assert (found.low, found.total) == (pytest.approx(share.low * 19 / 3), 19)
