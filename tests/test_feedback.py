"""True classes join the version that answered, however often live has moved since; the audit's count by weight."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from parts import BIRDS, tiny_version
from parts_watching import label

from lifelist.deploy.store import Store
from lifelist.exporter.errors import BadInput
from lifelist.exporter.registry import Registry
from lifelist.monitoring import feedback, figures
from lifelist.monitoring.figures import DAY, HOUR, NONE
from lifelist.monitoring.options import MonitoringOptions
from lifelist.serving.prediction import Prediction

NOON = 1_800_000_000.0  # 2027-01-15, 08:00


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Version 1 knows classes 0 to 2; version 2 learned 3 as well, and enrolled 4."""
    found = Registry(str(tmp_path / "registry"))
    tiny_version(found, BIRDS[:3], live=True)
    tiny_version(found, BIRDS[:4], enrolled=BIRDS[4:5], increments=(0, 0, 0, 1), live=True)
    return found


def say(
    store: Store, prediction_id: str, version: int, predicted: int, truth: int, at: float = NOON, weight: float = 0.0
) -> bool:
    return label(store, prediction_id, version, predicted, truth, at, after_s=60, weight=weight)


def sums(store: Store, registry: Registry, source: str = "feedback") -> dict[tuple[int, str], tuple[float, float]]:
    found = feedback.figures(store, registry, 0, 2 * NOON)
    return {
        (one.version, one.group): (one.right, one.total)
        for one in found
        if one.source == source and one.group != "class"
    }


def test_labels_count_for_the_version_that_answered_by_old_and_new_classes(store: Store, registry: Registry) -> None:
    for number, (version, predicted, truth) in enumerate(
        [(1, 0, 0), (1, 1, 2), (2, 0, 0), (2, 3, 3), (2, 0, 3), (2, 1, 4)]
    ):
        say(store, f"p{number}", version, predicted, truth)
    assert sums(store, registry) == {
        (1, "all"): (1, 2), (1, "old"): (1, 2),
        (2, "all"): (2, 4), (2, "old"): (2, 3), (2, "new"): (0, 1),  # enrolled is newer than increment 1
    }  # fmt: skip
    of_class = {
        (one.version, one.class_id): (one.right, one.total)
        for one in feedback.figures(store, registry, 0, 2 * NOON)
        if one.group == "class"
    }
    assert of_class == {(1, 0): (1, 1), (1, 2): (0, 1), (2, 0): (1, 1), (2, 3): (1, 2), (2, 4): (0, 1)}


def test_a_class_that_the_version_did_not_know_is_no_error_of_its(store: Store, registry: Registry) -> None:
    say(store, "p", 1, 0, 3)
    assert sums(store, registry) == {(1, "unseen"): (0, 1)}
    assert feedback.confusions(store, registry, 0, 2 * NOON) == {}


def test_the_last_label_counts_and_every_label_is_kept(store: Store, registry: Registry) -> None:
    assert [say(store, "p", 1, 0, truth) for truth in (1, 1, 2, 0)] == [True, False, True, True]
    assert sums(store, registry) == {(1, "all"): (1, 1), (1, "old"): (1, 1)}
    assert [truth for truth, _ in feedback.history(store, "p")] == [1, 2, 0]


def test_the_same_label_sent_by_eight_at_once_counts_once(store: Store, registry: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: say(store, "p", 1, 0, 0), range(8)))
    assert sums(store, registry)[1, "all"] == (1, 1)
    assert len(feedback.history(store, "p")) == 1


def test_labels_of_a_version_that_the_registry_lost_are_left_out(store: Store, registry: Registry) -> None:
    say(store, "p", 7, 0, 0)
    assert sums(store, registry) == {}


def test_a_label_that_comes_too_late_is_refused(store: Store, registry: Registry) -> None:
    made = Prediction(1, 0, "linear", NOON)
    assert feedback.record(store, "p", made, 0, label_days=2, at=NOON + 2 * DAY)
    with pytest.raises(
        BadInput, match=r"given 3 days ago; true classes are taken for 2 days \(monitoring.label_days\)"
    ):
        feedback.record(store, "p", made, 1, label_days=2, at=NOON + 3 * DAY)
    assert sums(store, registry)[1, "all"] == (1, 1)


def test_the_audit_tells_the_truth_where_users_report_mistakes_more_than_successes(
    store: Store, registry: Registry
) -> None:
    """Of 1,000 answers 900 are right. Users label every mistake, one success in a hundred, and the audit's tenth."""
    for number in range(1000):
        right, audited = number % 10 != 0, number % 100 % 11 == 0
        if audited or not right or number % 100 == 1:
            weight = 10.0 if audited else 0.0
            say(store, f"p{number}", 1, 0, 0 if right else 1, weight=weight)
    by_all, by_audit = (sums(store, registry, source)[1, "all"] for source in ("feedback", "audit"))
    assert by_all == (100, 200)
    assert by_audit == (900, 1000)  # each label stands for ten


def test_audits_at_different_rates_weigh_by_how_many_answers_each_stands_for(store: Store, registry: Registry) -> None:
    for number in range(10):
        say(store, f"a{number}", 1, 0, 0, weight=1.0)  # all of ten answers
    say(store, "b", 1, 0, 1, weight=30.0)  # one of thirty
    (of_all,) = (f for f in feedback.figures(store, registry, 0, 2 * NOON) if (f.source, f.group) == ("audit", "all"))
    assert (of_all.images, of_all.right, of_all.total) == (11, 10, 40)
    assert of_all.share.ratio == 0.25
    assert of_all.share.total == pytest.approx(1600 / 910)  # worth less than two equal ones
    assert of_all.share.high is not None
    assert of_all.share.high > 0.8


def test_old_labels_become_figures_by_the_day_and_nothing_is_counted_twice(store: Store, registry: Registry) -> None:
    for number in range(6):
        say(store, f"p{number}", 1, 0, number % 2, at=NOON + number * DAY)
    before = {
        (f.at[:10], f.group, f.class_id, f.right, f.total) for f in feedback.figures(store, registry, 0, 2 * NOON)
    }
    now = NOON + 93 * DAY
    assert feedback.compact(store, registry, 90, now) == 3  # of days 0, 1 and 2
    assert feedback.compact(store, registry, 90, now) == 0
    both = [
        *figures.read(store, 0, 2 * NOON, groups=("all", "old", "class")),
        *feedback.figures(store, registry, 0, 2 * NOON),
    ]
    assert {(f.at[:10], f.group, f.class_id, f.right, f.total) for f in both} == before
    assert len(both) == len(before)
    assert feedback.history(store, "p0") == []
    assert len(feedback.history(store, "p5")) == 1


def test_figures_get_coarser_with_age_and_their_sums_stay(store: Store) -> None:
    def of_minute(at: float) -> figures.Figure:
        return figures.Figure(figures.stretch(at, 60), 60, 1, "probe", "all", NONE, 2, 2.0, 1.0, 2.0)

    ages = [100 * DAY, 100 * DAY - 60, 10 * DAY, 10 * DAY - 60, 10 * DAY - 2 * HOUR, 120, 60]
    with store.writing() as connection:
        figures.add(connection, [of_minute(NOON - age) for age in ages])
        figures.add(connection, [of_minute(NOON - 60)])  # the same minute again: added up
    options = MonitoringOptions()
    for _ in range(2):
        figures.compact(store, options, NOON)
        found = figures.read(store, 0, 2 * NOON)
        assert [(f.seconds, f.images) for f in found] == [(DAY, 4), (HOUR, 4), (HOUR, 2), (60, 2), (60, 4)]
    figures.compact(store, options, NOON + 900 * DAY)
    assert [(f.seconds, f.images) for f in figures.read(store, 0, 2 * NOON)] == [(DAY, 4), (DAY, 6), (DAY, 6)]
    figures.compact(store, options, NOON + 2000 * DAY)
    assert figures.read(store, 0, 2 * NOON) == []
