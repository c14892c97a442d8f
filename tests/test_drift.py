"""Tests for drift: beside plain loops and scipy; how often they reject where nothing has changed; what they find."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from lifelist.exporter.imagery import LOOKS
from lifelist.monitoring import drift
from lifelist.monitoring.drift import Alarm
from lifelist.monitoring.seen import Seen

DIM, CLASSES = 6, 5
CENTRES = np.random.default_rng(7).normal(0, 2, (CLASSES, DIM))


def population(
    count: int, random: np.random.Generator, shares: np.ndarray | None = None, moved: float = 0.0, dark: float = 0.0
) -> Seen:
    """Images whose embedding, confidence and looks differ by class, as real ones do."""
    best = random.choice(CLASSES, count, p=shares)
    embedding = CENTRES[best] + random.normal(size=(count, DIM)) + moved
    sure = random.beta(5 + 3 * best, 2)
    looks = np.stack([best / 10 + random.normal(0, 0.1, count) - dark for _ in LOOKS], axis=1)
    return Seen(best, sure, sure - random.random(count) / 10, random.random(count), embedding, looks)


def by_hand(one: np.ndarray, other: np.ndarray, width: float) -> float:
    """Maximum mean discrepancy, squared and unbiased, term by term; an image is not compared with itself."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-((x - y) ** 2).sum() / width))

    m = len(one)
    within = sum(kernel(side[i], side[j]) for side in (one, other) for i in range(m) for j in range(m) if i != j)
    between = sum(kernel(x, y) for x in one for y in other)
    return within / (m * (m - 1)) - 2 * between / m**2


def test_the_discrepancy_is_that_of_the_formula() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(25, 3)), random.normal(0.8, 1, (25, 3))
    found, p_value = drift.mmd(one, other, np.zeros(25, np.int64), random)
    both = np.concatenate([one, other])
    width = np.median([((both[i] - both[j]) ** 2).sum() for i in range(50) for j in range(i)])
    assert found**2 == pytest.approx(by_hand(one, other, width), rel=1e-6)
    assert p_value == 1 / (drift.PERMUTATIONS + 1)


def test_p_values_of_images_that_have_not_changed_are_uniform() -> None:
    random = np.random.default_rng(1)
    found = []
    for _ in range(150):
        classes = np.sort(random.integers(0, CLASSES, 40))
        one, other = (CENTRES[classes] + random.normal(size=(40, DIM)) for _ in range(2))
        found.append(drift.mmd(one, other, classes, random)[1])
    assert stats.kstest(found, "uniform").pvalue > 0.05


def test_exchanging_rows_of_one_class_only_finds_what_classes_would_hide() -> None:
    """The difference is small beside that of classes, so permutations that mix them would not see it."""
    random = np.random.default_rng(2)
    classes = np.sort(random.integers(0, CLASSES, 120))
    far = 20 * CENTRES
    one, other = (far[classes] + random.normal(0, 1, (120, DIM)) + shift for shift in (0, 1.0))
    assert drift.mmd(one, other, classes, random)[1] <= 0.002


def test_as_many_of_each_class_are_taken_from_both_sides_by_lot() -> None:
    random = np.random.default_rng(3)
    one, other = random.integers(0, 6, 300), random.integers(2, 9, 150)
    first, second = drift.matched(one, other, random)
    np.testing.assert_array_equal(one[first], other[second])
    counts = {k: min((one == k).sum(), (other == k).sum()) for k in range(2, 6)}
    assert dict(drift.counted(one[first])) == counts
    for places in (first, second):
        assert len(set(places.tolist())) == len(places)
    again, _ = drift.matched(one, other, random)
    assert set(again.tolist()) != set(first.tolist())
    assert len(drift.matched(np.zeros(2000, int), np.zeros(2000, int), random)[0]) == drift.MOST
    assert [len(side) for side in drift.matched(one, one + 100, random)] == [0, 0]


def test_too_few_that_can_be_compared_are_not_tested() -> None:
    random = np.random.default_rng(4)
    reference = population(400, random)
    assert drift.compare(reference, population(drift.LEAST - 1, random), random) == []
    assert len(drift.compare(reference, population(4 * drift.LEAST, random), random)) == len(drift.TESTS) - 1


def test_a_version_that_was_not_calibrated_is_tested_by_what_it_has() -> None:
    random = np.random.default_rng(5)
    reference, window = population(400, random), population(150, random)
    nothing = Seen(
        window.best, np.full(150, np.nan), window.margin, np.full(150, np.nan), window.embedding, window.looks
    )
    assert [one.test for one in drift.compare(reference, nothing, random)] == ["embedding", "margin", *LOOKS]


def rejections(windows: int, rate: float, seed: int, **changes: object) -> list[list[str]]:
    """Of each window the tests that reject; a reference of its own for each, so that they are independent."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(windows):
        tested = drift.compare(population(300, random), population(150, random, **changes), random)  # type: ignore[arg-type]
        found.append([one.test for one in drift.corrected(tested, rate) if one.rejected])
    return found


SKEWED = np.array([0.5, 0.3, 0.1, 0.06, 0.04])


@pytest.mark.parametrize("shares", [None, SKEWED])
def test_quiet_windows_reject_as_often_as_stated_whatever_the_shares_of_classes(shares: np.ndarray | None) -> None:
    rate, windows = 0.1, 150
    count = sum(bool(tests) for tests in rejections(windows, rate, seed=6, shares=shares))
    assert stats.binomtest(count, windows, rate, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize(("now", "rejected"), [(32, False), (31, True), (224, True)])
def test_a_reference_of_one_size_alone_tells_another_size_from_its_own(now: int, rejected: bool) -> None:
    random = np.random.default_rng(12)
    reference, window = population(400, random), population(150, random)
    reference.looks[:, LOOKS.index("size")] = np.log2(32)
    window.looks[:, LOOKS.index("size")] = np.log2(now)
    found = {one.test: one for one in drift.corrected(drift.compare(reference, window, random), 0.01)}["size"]
    assert (found.rejected, found.score) == (rejected, float(rejected))


def test_a_statistic_that_the_reference_has_not_got_is_not_tested() -> None:
    random = np.random.default_rng(13)
    reference, window = population(400, random), population(150, random)
    reference.looks[:, LOOKS.index("size")] = np.nan
    assert "size" not in [one.test for one in drift.compare(reference, window, random)]


def test_what_has_changed_is_named() -> None:
    moved = rejections(10, 0.01, seed=8, moved=0.6)
    assert sum("embedding" in tests for tests in moved) == 10
    assert not any(set(tests) - {"embedding"} for tests in moved)
    dark = rejections(10, 0.01, seed=9, dark=0.15)
    assert all({*LOOKS} <= {*tests} for tests in dark)
    assert not any("embedding" in tests for tests in dark)


def test_more_images_that_look_unknown_than_among_held_out_ones_are_found() -> None:
    random = np.random.default_rng(10)
    reference, window = population(300, random), population(150, random)
    strange = random.random(150) < 0.2
    unknown = np.where(strange, 1 - 0.02 * random.random(150), window.unknown)
    shown = Seen(window.best, window.confidence, window.margin, unknown, window.embedding, window.looks)
    found = {one.test: one for one in drift.corrected(drift.compare(reference, shown, random), 0.01)}
    assert [name for name, one in found.items() if one.rejected] == ["unknown"]


# ---- shares of classes


def counts(random: np.random.Generator, total: int, shares: np.ndarray) -> dict[int, int]:
    return {k: int(n) for k, n in enumerate(random.multinomial(total, shares)) if n}


def test_shares_are_tested_by_chi_squared() -> None:
    then, now = {1: 400, 2: 300, 3: 300}, {1: 80, 2: 30, 3: 40}
    found = drift.shares(then, now, [1, 2, 3], np.random.default_rng(0))
    assert found is not None
    assert found.p_value == pytest.approx(stats.chi2_contingency([[400, 300, 300], [80, 30, 40]]).pvalue)
    assert found.images == 150
    assert 0 < found.score < 0.2


def test_shares_that_are_exactly_equal_differ_by_nothing() -> None:
    then, now = {1: 111, 2: 42}, {1: 37, 2: 14}
    found = drift.shares(then, now, [1, 2], np.random.default_rng(0))
    assert found is not None
    assert found.score == 0


def test_classes_that_only_one_side_knows_are_left_out() -> None:
    random = np.random.default_rng(0)
    then, now = {1: 400, 2: 400}, {1: 70, 2: 70, 3: 200}
    found = drift.shares(then, now, [1, 2], random)
    assert found is not None
    assert found.images == 140
    assert found.p_value == 1
    assert drift.shares(then, {1: 20, 3: 500}, [1, 2], random) is None
    assert drift.shares({}, now, [1, 2, 3], random) is None


FEW_OF_MANY = np.array([0.4, 0.3] + [0.3 / 60] * 60)


@pytest.mark.parametrize("shares", [FEW_OF_MANY, np.full(80, 1 / 80), np.full(2000, 1 / 2000)])
def test_quiet_shares_reject_as_often_as_stated_however_rare_classes_are(shares: np.ndarray) -> None:
    random, found = np.random.default_rng(11), []
    for _ in range(200):
        one = drift.shares(counts(random, 1500, shares), counts(random, 150, shares), range(len(shares)), random)
        assert one is not None
        found.append(one.p_value)
    for rate in (0.01, 0.1, 0.5):
        rejected = sum(p <= rate for p in found)
        assert stats.binomtest(rejected, 200, rate).pvalue > 0.01


def test_other_shares_of_many_classes_are_found_though_each_comes_now_and_then() -> None:
    random, usual = np.random.default_rng(12), np.full(80, 1 / 80)
    for of_first, images in ((0.95, 150), (0.65, 1500)):  # half of the classes; 1.9 images of each in a short window
        other = np.repeat([of_first / 40, (1 - of_first) / 40], 40)
        found = drift.shares(counts(random, 1500, usual), counts(random, images, other), range(80), random)
        assert found is not None
        assert found.p_value <= 1 / (drift.PERMUTATIONS + 1)  # the least that tables drawn at random can say


def test_what_was_answered_is_forgotten_little_by_little_and_not_yet_part_of_the_past_at_once() -> None:
    random, past = np.random.default_rng(13), drift.Past()
    past.add(Counter({1: 100}), 2, random)
    assert past.counts == {}
    past.add(Counter({2: 100}), 2, random)
    assert past.counts == {1: 100}
    for _ in range(50):
        past.add(Counter({2: 100}), 2, random)
    assert 20 < past.counts[1] < 55  # a third or so
    assert past.counts[2] == pytest.approx(100 * (1 - drift.KEPT**50) / (1 - drift.KEPT), rel=0.1)
    for _ in range(1000):
        past.add(Counter({2: 100}), 2, random)
    assert set(past.counts) == {2}


# ---- many tests, and alarms


def test_the_correction_for_many_tests_is_that_of_benjamini_and_hochberg() -> None:
    random = np.random.default_rng(12)
    for _ in range(50):
        p_values = random.random(7) ** 3
        rate = 0.2
        ordered = sorted(p_values)
        passing = [k for k, p in enumerate(ordered, 1) if p <= rate * k / 7]
        limit = ordered[passing[-1] - 1] if passing else -1
        found = drift.corrected([drift.Tested(str(k), 9, 0.0, float(p)) for k, p in enumerate(p_values)], rate)
        assert [one.rejected for one in found] == [p <= limit for p in p_values]
    assert drift.corrected([], 0.1) == []


def test_an_alarm_takes_several_looks_to_be_raised_and_several_to_be_over() -> None:
    alarm, course = Alarm(), ""
    for look in "10110010001":
        alarm = alarm.after(look == "1", raise_after=2, clear_after=3)
        course += "R" if alarm.raised else "-"
    assert course == "---RRRRRR--"
