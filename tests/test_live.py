"""The versions that a replica holds: which one answers, and which are let go."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts import BIRDS, PREPROCESS, tiny_images, tiny_version

from lifelist.exporter import session
from lifelist.exporter.errors import NotPrepared
from lifelist.exporter.manifest import AnswerKind, Preprocess
from lifelist.exporter.registry import Ref, Registry
from lifelist.exporter.session import Loaded
from lifelist.serving.live import Live, Query


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Loaded]:
    """Versions 1 (three classes), 2 (five), 3 (five and one enrolled)."""
    registry = Registry(str(tmp_path_factory.mktemp("registry")))
    tiny_version(registry)
    tiny_version(registry, BIRDS[:5], seed=1)
    tiny_version(registry, BIRDS[:5], enrolled=BIRDS[5:6], seed=1)
    return {number: session.load(registry, number, provider="cpu") for number in registry.versions()}


def query(loaded: Loaded, *places: int, answer: AnswerKind | None = None, top_k: int = 3) -> Query:
    return Query(tiny_images()[list(places)], [16] * len(places), loaded, answer, top_k, 0.0)


def test_one_batch_answers_each_query_as_it_asked(loaded: dict[int, Loaded]) -> None:
    live = Live(loaded[3], Ref(3, 1))
    asked = [query(loaded[3], 0, 1), query(loaded[3], 2, answer="linear", top_k=1), query(loaded[3], 5, top_k=99)]
    two, one, all_ = live.answer(asked)
    assert [ranking[0][0] for ranking in two.rankings] == [0, 1]
    assert (two.kind, one.kind) == ("nearest_mean", "linear")  # the version's own, and what was asked for
    assert [len(r) for r in (*two.rankings, *one.rankings, *all_.rankings)] == [3, 3, 1, 6]
    assert all_.rankings[0][0][0] == 5  # the enrolled class
    assert {a.loaded.version for a in (two, one, all_)} == {3}


def test_a_batch_larger_than_the_model_takes_is_one_answer_all_the_same(loaded: dict[int, Loaded]) -> None:
    live = Live(loaded[2], Ref(2, 1), max_batch=2)
    (answer,) = live.answer([query(loaded[2], 0, 1, 2, 3, 4)])
    assert [ranking[0][0] for ranking in answer.rankings] == [0, 1, 2, 3, 4]


def test_probes_are_answered_and_not_counted(loaded: dict[int, Loaded]) -> None:
    ran: list[tuple[int, int]] = []
    live = Live(
        loaded[2], Ref(2, 1), max_batch=3, on_run=lambda version, images, seconds: ran.append((version, images))
    )
    probe, asked = replace(query(loaded[2], 0, 1), traffic=False), query(loaded[2], 2, 3)
    (alone,) = live.answer([probe])
    assert ran == []
    answers = live.answer([probe, asked])
    assert ran == [(2, 2)]
    live.answer([query(loaded[2], 0, 1, 2, 3, 4)])
    assert ran[1:] == [(2, 3), (2, 2)]
    assert [[ranking[0][0] for ranking in one.rankings] for one in (alone, *answers)] == [[0, 1], [0, 1], [2, 3]]


def test_a_commit_changes_the_next_batch_and_not_the_one_that_runs(loaded: dict[int, Loaded]) -> None:
    live = Live(loaded[1], Ref(1, 1))
    live.hold(loaded[2], expected=1)
    running: Loaded = loaded[1]

    class Swapping(list):  # type: ignore[type-arg]
        """A batch in the middle of which the swap comes: after `current` was read, while queries are looked at."""

        def __iter__(self) -> Iterator[Query]:
            live.commit(Ref(2, 2))
            return super().__iter__()

    answers = live.answer(Swapping([query(running, 0), query(running, 1)]))
    assert [answer.loaded.version for answer in answers] == [1, 1]
    assert [answer.loaded.version for answer in live.answer([query(running, 0)])] == [2]


def test_only_what_is_loaded_can_be_committed(loaded: dict[int, Loaded]) -> None:
    live = Live(loaded[1], Ref(1, 1))
    with pytest.raises(NotPrepared, match=r"version 2 is not loaded here; loaded: \[1\]"):
        live.commit(Ref(2, 2))
    assert live.current.version == 1


def test_an_older_commit_that_arrives_late_changes_nothing(loaded: dict[int, Loaded]) -> None:
    live = Live(loaded[1], Ref(1, 1))
    live.hold(loaded[2], 1)
    live.hold(loaded[3], 1)
    assert live.commit(Ref(3, 3))
    assert not live.commit(Ref(2, 2))
    assert not live.commit(Ref(2, 3))
    assert (live.current.version, live.ref) == (3, Ref(3, 3))


def test_release_keeps_live_and_previous_and_lets_go_of_the_rest(loaded: dict[int, Loaded]) -> None:
    live = Live(loaded[1], Ref(1, 1))
    live.hold(loaded[2], 1)
    live.commit(Ref(2, 2))
    live.hold(loaded[3], 2)
    live.commit(Ref(3, 3))
    assert live.release([3, 2], generation=3) == [1]
    assert sorted(live.held) == [2, 3]


def test_release_leaves_what_a_later_swap_has_prepared(loaded: dict[int, Loaded]) -> None:
    live = Live(loaded[1], Ref(1, 1))
    live.hold(loaded[2], expected=1)
    live.commit(Ref(2, 2))
    live.hold(loaded[3], expected=2)  # the next swap is at it already when this one's release comes
    assert live.release([2, 1], generation=2) == []
    assert live.commit(Ref(3, 3))


def test_a_swap_that_failed_takes_its_version_with_it(loaded: dict[int, Loaded]) -> None:
    live = Live(loaded[1], Ref(1, 1))
    live.hold(loaded[2], expected=1)
    assert live.release([1], generation=1, abandoned=2) == [2]
    assert live.release([], generation=9, abandoned=1) == []  # never the one that answers


def test_images_cut_for_another_size_are_answered_by_the_version_they_were_cut_for(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    tiny_version(registry)
    wider = Preprocess(size=16, resize_to=20, mean=PREPROCESS.mean, std=PREPROCESS.std)
    tiny_version(registry, BIRDS[:5], seed=1, changes={"preprocess": wider})
    old, new = (session.load(registry, number, provider="cpu") for number in (1, 2))
    live = Live(old, Ref(1, 1))
    live.hold(new, 1)
    live.commit(Ref(2, 2))
    early, late = live.answer([query(old, 0, 1), query(new, 2)])
    assert (early.loaded.version, late.loaded.version) == (1, 2)
    assert [r[0][0] for r in early.rankings] == [0, 1]
    assert np.isclose(sum(score for _, score in late.rankings[0][:3]), 1, atol=0.2)


def test_names_are_those_of_the_version(loaded: dict[int, Loaded]) -> None:
    live = Live(loaded[1], Ref(1, 1))
    assert live.names(loaded[3])[5] == BIRDS[5]
    assert 5 not in live.names(loaded[1])
