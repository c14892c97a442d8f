"""A swap over several replicas: prepare, move the reference, commit, release; and whatever can come in between.

The replicas are real ones in this process, asked directly instead of over Ray, so that a death or a delay can be put
exactly between two phases. tests/test_serve.py does the same with processes that are really killed.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import pytest
from parts import BIRDS, OPEN, blob_path, flip_one_bit, tiny_version

from lifelist.deploy import swap as swapping
from lifelist.deploy.swap import swap
from lifelist.exporter.errors import Corrupt, Missing, Moved, Unavailable
from lifelist.exporter.registry import Ref, Registry
from lifelist.serving.app import Replica
from lifelist.serving.options import ServingOptions


class Fleet:
    """Replicas on an event loop of their own; called, it asks each that lives, as Ray's broadcast does."""

    def __init__(self, registry: Registry, count: int) -> None:
        self.registry = registry
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.replicas: list[Replica] = []
        self.asked: list[str] = []
        self.before: dict[str, Callable[[], None]] = {}  # phase → done once, before it is asked for
        self.dying: dict[str, list[Replica]] = {}  # phase → those that die in it
        for _ in range(count):
            self.join()

    def join(self) -> Replica:
        async def made() -> Replica:
            return Replica(f"r{len(self.replicas)}", self.registry, ServingOptions(), bytes(32), OPEN)

        self.replicas.append(self.wait(made()))
        return self.replicas[-1]

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def __call__(self, method: str, *arguments: Any) -> list[Any]:
        self.asked.append(method)
        if method in self.before:
            self.before.pop(method)()
        dead = self.dying.pop(method, [])
        found: list[Any] = [self.wait(self._ask(one, method, *arguments)) for one in self.replicas if one not in dead]
        for one in dead:
            self.replicas.remove(one)
            found.append(ConnectionResetError("the replica went away"))
        return found

    @staticmethod
    async def _ask(replica: Replica, method: str, *arguments: Any) -> Any:
        if method == "commit":
            return await replica.follower.commit(Ref(*arguments))
        return await getattr(replica.follower, method)(*arguments)

    def versions(self) -> list[int]:
        return [replica.live.current.version for replica in self.replicas]

    def held(self) -> list[list[int]]:
        return [sorted(replica.live.held) for replica in self.replicas]

    def close(self) -> None:
        for replica in self.replicas:
            replica.close()
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 1, live at generation 1, and 2 and 3, which could follow."""
    made = Registry(str(tmp_path_factory.mktemp("registry")))
    tiny_version(made, live=True)
    tiny_version(made, BIRDS[:4], seed=1)
    tiny_version(made, BIRDS[:5], seed=2)
    return made


@pytest.fixture
def fleet(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr(swapping, "PAUSE_S", 0.01)
    made = Fleet(registry, 2)
    yield made
    made.close()


def test_all_replicas_have_the_version_before_any_answers_by_it(registry: Registry, fleet: Fleet) -> None:
    seen: list[tuple[list[int], list[list[int]]]] = []
    fleet.before["commit"] = lambda: seen.append((fleet.versions(), fleet.held()))
    made = swap(registry, 2, 1, fleet)
    assert fleet.asked == ["prepare", "commit", "release"]
    assert seen == [([1, 1], [[1, 2], [1, 2]])]
    assert fleet.versions() == [2, 2]
    assert (made.ref, made.replicas) == (Ref(2, 2), 2)
    assert set(made.seconds) == {"prepare", "promote", "commit", "release"}
    assert registry.ref("live") == Ref(2, 2)


def test_live_and_previous_stay_warm_and_a_rollback_loads_nothing(registry: Registry, fleet: Fleet) -> None:
    swap(registry, 2, 1, fleet)
    swap(registry, 3, 2, fleet)
    assert fleet.held() == [[2, 3], [2, 3]]
    before = fleet.replicas[0].live.held[2]
    swap(registry, 2, 3, fleet)
    assert fleet.versions() == [2, 2]
    assert fleet.replicas[0].live.current is before


def test_of_two_swaps_at_once_one_wins_and_the_other_is_told(registry: Registry, fleet: Fleet) -> None:
    outcome: dict[int, Any] = {}

    def run(version: int) -> None:
        try:
            outcome[version] = swap(registry, version, 1, fleet)
        except Moved as error:
            outcome[version] = error

    threads = [threading.Thread(target=run, args=(version,)) for version in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    lost = [version for version, found in outcome.items() if isinstance(found, Moved)]
    assert len(lost) == 1
    won = 5 - lost[0]
    assert fleet.versions() == [won, won]
    assert registry.ref("live") == Ref(won, 2)
    assert "expected generation 1" in str(outcome[lost[0]])
    assert [sorted(held) for held in fleet.held()] == [sorted({1, won})] * 2  # the loser's is let go


def test_the_loser_of_a_race_after_preparing_changes_nothing(registry: Registry, fleet: Fleet) -> None:
    fleet.before["prepare"] = lambda: swap(registry, 3, 1, fleet)  # comes in between, and is through first
    with pytest.raises(Moved):
        swap(registry, 2, 1, fleet)
    assert fleet.versions() == [3, 3]
    assert fleet.held() == [[1, 3], [1, 3]]


def test_a_swap_that_comes_too_late_loads_nothing(registry: Registry, fleet: Fleet) -> None:
    with pytest.raises(Moved, match="at generation 1, version 1; you expected generation 7"):
        swap(registry, 2, 7, fleet)
    with pytest.raises(Moved, match="expected generation None"):
        swap(registry, 2, None, fleet)
    assert fleet.asked == []


def test_a_version_that_does_not_load_leaves_live_as_it_is_and_says_why(registry: Registry, fleet: Fleet) -> None:
    flip_one_bit(blob_path(registry, registry.manifest(2), "model.onnx"))
    with pytest.raises(Corrupt, match=r"model\.onnx.*sha256"):
        swap(registry, 2, 1, fleet)
    assert registry.ref("live") == Ref(1, 1)
    assert fleet.versions() == [1, 1]
    assert fleet.held() == [[1], [1]]
    assert swap(registry, 3, 1, fleet).ref == Ref(3, 2)  # and the next one works


def test_a_version_that_loads_on_one_replica_only_goes_live_on_none(registry: Registry, fleet: Fleet) -> None:
    def refuse(version: int, share: object) -> Any:
        raise Corrupt("this machine's disk is broken")

    fleet.replicas[1].follower.load = refuse
    with pytest.raises(Corrupt, match="disk is broken"):
        swap(registry, 2, 1, fleet)
    assert fleet.versions() == [1, 1]
    assert fleet.held() == [[1], [1]]


def test_a_version_that_is_not_there_is_missing(registry: Registry, fleet: Fleet) -> None:
    with pytest.raises(Missing, match="no version 9"):
        swap(registry, 9, 1, fleet)
    assert fleet.asked == []


def test_a_replica_that_dies_in_prepare_is_left_out_and_the_rest_asked_again(registry: Registry, fleet: Fleet) -> None:
    fleet.dying["prepare"] = [fleet.replicas[0]]
    swap(registry, 2, 1, fleet)
    assert fleet.asked == ["prepare", "prepare", "commit", "release"]
    assert fleet.versions() == [2]


def test_if_every_replica_dies_in_prepare_nothing_moves(registry: Registry, fleet: Fleet) -> None:
    fleet.dying["prepare"] = list(fleet.replicas)
    with pytest.raises(Unavailable, match=r"could not load version 2, in 8 rounds: the replica went away"):
        swap(registry, 2, 1, fleet)
    assert registry.ref("live") == Ref(1, 1)
    assert fleet.join().live.current.version == 1


def test_a_replica_that_comes_back_in_time_is_prepared_too(registry: Registry, fleet: Fleet) -> None:
    fleet.dying["prepare"] = list(fleet.replicas)

    def a_round_later() -> None:
        fleet.before["prepare"] = come_back

    def come_back() -> None:
        fleet.join()

    fleet.before["prepare"] = a_round_later
    swap(registry, 2, 1, fleet)
    assert fleet.versions() == [2]


def test_once_the_reference_has_moved_the_swap_counts_though_every_replica_dies(
    registry: Registry, fleet: Fleet
) -> None:
    fleet.dying["commit"] = list(fleet.replicas)
    made = swap(registry, 2, 1, fleet)
    assert (made.ref, made.replicas) == (Ref(2, 2), 0)
    assert fleet.join().live.current.version == 2  # whoever comes reads the registry


def test_a_replica_that_joined_between_prepare_and_commit_loads_the_version_then(
    registry: Registry, fleet: Fleet
) -> None:
    fleet.before["commit"] = lambda: None
    promote = registry.promote
    late: list[Replica] = []

    def joining(version: int, expected: int | None) -> Ref:
        late.append(fleet.join())  # it read generation 1 a moment before
        return promote(version, expected)

    registry.promote = joining  # type: ignore[method-assign]
    swap(registry, 2, 1, fleet)
    assert late[0].live.current.version == 2
    assert fleet.versions() == [2, 2, 2]


def test_a_replica_that_missed_every_message_finds_out_by_itself(registry: Registry, fleet: Fleet) -> None:
    missed = fleet.replicas.pop()
    swap(registry, 2, 1, fleet)
    assert missed.live.current.version == 1
    fleet.wait(missed.follower.look())
    assert (missed.live.current.version, missed.status().behind) == (2, None)
    fleet.replicas.append(missed)


def test_a_replica_that_cannot_follow_answers_on_and_says_that_it_is_behind(registry: Registry, fleet: Fleet) -> None:
    missed = fleet.replicas.pop()
    swap(registry, 2, 1, fleet)
    flip_one_bit(blob_path(registry, registry.manifest(2), "class_means.faiss"))
    fleet.wait(missed.follower.look())
    assert missed.live.current.version == 1
    assert "class_means.faiss" in (missed.status().behind or "")
    flip_one_bit(blob_path(registry, registry.manifest(2), "class_means.faiss"))  # mended
    fleet.wait(missed.follower.look())
    assert (missed.live.current.version, missed.status().behind) == (2, None)
    fleet.replicas.append(missed)


def test_the_threads_that_search_the_means_start_no_others(fleet: Fleet) -> None:
    """faiss asks each thread by itself; a new one would take all cores."""
    seen: list[int] = []

    def loading(version: int, share: Any) -> Any:
        seen.append(faiss.omp_get_max_threads())
        raise Corrupt("enough")

    replica = fleet.replicas[0]
    replica.batcher.run = lambda works, alone: [faiss.omp_get_max_threads() for _ in works]
    replica.follower.load = loading
    fleet.wait(replica.follower.prepare(2, 1))
    assert [*seen, fleet.wait(replica.batcher.submit(None, 1))] == [1, 1]  # type: ignore[arg-type]


def test_an_enrolment_uses_the_session_that_is_there(registry: Registry, fleet: Fleet) -> None:
    enrolled = tiny_version(registry, enrolled=BIRDS[3:4])  # the same model as version 1
    swap(registry, enrolled.version, 1, fleet)
    live = fleet.replicas[0].live
    assert live.held[enrolled.version].session is live.held[1].session
