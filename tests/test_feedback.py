"""True classes join the version that answered, however often live has moved since."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from parts import BIRDS, tiny_version

from lifelist.deploy import feedback
from lifelist.deploy.records import KnownClass
from lifelist.deploy.store import Store
from lifelist.exporter.registry import Registry


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'lifelist.db'}")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Version 1 knows classes 0 to 2; version 2 learned 3 as well, and enrolled 4."""
    found = Registry(str(tmp_path / "registry"))
    tiny_version(found, BIRDS[:3], live=True)
    tiny_version(found, BIRDS[:4], enrolled=BIRDS[4:5], increments=(0, 0, 0, 1), live=True)
    return found


def say(store: Store, prediction_id: str, version: int, predicted: int, truth: int) -> None:
    feedback.record(
        store,
        prediction_id,
        version=version,
        predicted=predicted,
        answer="linear",
        truth=KnownClass(truth, BIRDS[truth]),
    )


def rows(store: Store, registry: Registry) -> dict[tuple[int, str], tuple[int, int]]:
    return {(row.version, row.group): (row.correct, row.total) for row in feedback.accuracy(store, registry)}


def test_labels_count_for_the_version_that_answered_by_old_and_new_classes(store: Store, registry: Registry) -> None:
    for number, (version, predicted, truth) in enumerate(
        [(1, 0, 0), (1, 1, 2), (2, 0, 0), (2, 3, 3), (2, 0, 3), (2, 1, 4)]
    ):
        say(store, f"p{number}", version, predicted, truth)
    assert rows(store, registry) == {
        (1, "all"): (1, 2), (1, "old"): (1, 2),
        (2, "all"): (2, 4), (2, "old"): (2, 3), (2, "new"): (0, 1),  # enrolled is newer than increment 1
    }  # fmt: skip


def test_a_class_that_the_version_did_not_know_is_no_error_of_its(store: Store, registry: Registry) -> None:
    say(store, "p", 1, 0, 3)
    assert rows(store, registry) == {(1, "unseen"): (0, 1)}


def test_the_last_label_counts_and_every_label_is_kept(store: Store, registry: Registry) -> None:
    for truth in (1, 1, 2, 0):
        say(store, "p", 1, 0, truth)
    assert rows(store, registry) == {(1, "all"): (1, 1), (1, "old"): (1, 1)}
    assert [truth for truth, _ in feedback.history(store, "p")] == [1, 2, 0]


def test_the_same_label_sent_by_eight_at_once_counts_once(store: Store, registry: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: say(store, "p", 1, 0, 0), range(8)))
    assert rows(store, registry)[1, "all"] == (1, 1)
    assert len(feedback.history(store, "p")) == 1


def test_labels_of_a_version_that_the_registry_lost_are_left_out(store: Store, registry: Registry) -> None:
    say(store, "p", 7, 0, 0)
    assert rows(store, registry) == {}
