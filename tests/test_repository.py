"""Versions loaded by number on two replicas: all of them or none, and what is said of those in between."""

import asyncio
from collections.abc import Awaitable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import pytest
from parts import BIRDS, OPEN, blob_path, flip_one_bit, tiny_images, tiny_version

from lifelist.exporter.errors import BadInput, Conflict, Corrupt, Missing, NotPrepared, Unavailable
from lifelist.exporter.registry import Registry
from lifelist.serving import infer, oip
from lifelist.serving.app import Replica
from lifelist.serving.follow import Report, Status
from lifelist.serving.options import ServingOptions
from lifelist.serving.repository import Repository
from lifelist.serving.statistics import Counts
from lifelist.serving.tensors import Tensor

OPTIONS = ServingOptions(max_loaded=1)
Found = TypeVar("Found")


class Two:
    """Two replicas asked directly, as `Broadcast` asks them over Ray."""

    def __init__(self, registry: Registry) -> None:
        self.loop = asyncio.new_event_loop()
        self.all = [Replica(name, registry, OPTIONS, bytes(32), OPEN) for name in ("one", "two")]
        self.here = list(self.all)
        self.repository = Repository(registry, self, OPTIONS)  # type: ignore[arg-type]

    async def status(self) -> list[Status]:
        return [replica.status() for replica in self.here]

    async def statistics(self) -> list[Mapping[int, Counts]]:
        return [replica.statistics.snapshot() for replica in self.here]

    async def load(self, version: int) -> list[Report]:
        return [await replica.follower.pin(version) for replica in self.here]

    async def unload(self, version: int) -> list[Report]:
        return [await replica.follower.unpin(version) for replica in self.here]

    def do(self, work: Awaitable[Found]) -> Found:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    def held(self) -> list[list[int]]:
        return [sorted(replica.live.held) for replica in self.all]

    def states(self) -> dict[str, tuple[str, str]]:
        return {row["version"]: (row["state"], row["reason"]) for row in self.do(self.repository.index())}


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 2 is live and 1 was before; 3 and 4 are others."""
    made = Registry(str(tmp_path_factory.mktemp("registry")))
    tiny_version(made, live=True)
    tiny_version(made, BIRDS[:4], seed=1, live=True)
    tiny_version(made, BIRDS[:5], seed=2)
    tiny_version(made, BIRDS[:6], seed=3)
    return made


@pytest.fixture
def two(registry: Registry) -> Iterator[Two]:
    made = Two(registry)
    yield made
    for replica in made.all:
        replica.close()
    made.loop.close()


def test_a_version_is_ready_once_every_replica_holds_it(two: Two) -> None:
    missing = ("UNAVAILABLE", "not loaded; load it first")
    assert two.states() == {"1": missing, "2": ("READY", ""), "3": missing, "4": missing}
    two.here = two.all[:1]
    two.do(two.repository.load("lifelist/versions/3", {}))
    two.here = list(two.all)
    assert two.states()["3"] == ("UNAVAILABLE", "held by 1 of 2 replicas; load it again")
    with pytest.raises(NotPrepared, match="version 3 is held by 1 of 2 replicas"):
        two.do(two.repository.ready("lifelist", "3"))
    assert two.do(two.repository.metadata("lifelist"))["versions"] == ["2"]
    two.do(two.repository.load("lifelist", {"version": 3}))
    two.do(two.repository.ready("lifelist", "3"))
    assert two.do(two.repository.metadata("lifelist", "3"))["versions"] == ["2", "3"]
    assert [row["version"] for row in two.do(two.repository.index(only_ready=True))] == ["2", "3"]
    two.do(two.repository.unload("lifelist", {"version": "3", "unload_dependents": False}))
    assert two.held() == [[2], [2]]


def test_a_version_that_cannot_be_loaded_is_held_by_none_and_live_answers_on(two: Two, registry: Registry) -> None:
    flip_one_bit(blob_path(registry, registry.manifest(3), "model.onnx"))
    with pytest.raises(Corrupt, match=r"model\.onnx: .* sha256"):
        two.do(two.repository.load("lifelist/versions/3", {}))
    assert two.held() == [[2], [2]]
    assert [replica.live.pinned for replica in two.all] == [set(), set()]


def test_one_more_than_may_be_loaded_is_refused_on_every_replica(two: Two) -> None:
    two.do(two.all[1].follower.pin(3))
    with pytest.raises(Conflict, match=r"versions \[3\] are loaded, as many as serving.max_loaded allows"):
        two.do(two.repository.load("lifelist/versions/4", {}))
    assert two.held() == [[2], [2, 3]]
    two.do(two.repository.load("lifelist/versions/3", {}))
    two.do(two.repository.load("lifelist/versions/3", {}))  # a second time is no second version
    assert two.held() == [[2, 3], [2, 3]]


@pytest.mark.parametrize(
    ("name", "parameters", "kind", "message"),
    [
        ("lifelist/versions/live", {}, Conflict, "version 2 is live, and stays loaded: it answers"),
        ("lifelist", {"version": "previous"}, Conflict, "version 1 is previous, and stays loaded: a rollback"),
        ("lifelist", {}, Conflict, "unload one of its versions"),
        ("lifelist/versions/3", {"version": 2}, BadInput, "the name says version '3', the parameter '2'"),
        ("lifelist", {"version": True}, Missing, "there is no version 'True'"),
        ("lifelist/versions/candidate", {}, Missing, "no version is candidate at the moment"),
        ("lifelist/3", {}, Missing, "there is no model 'lifelist/3'"),
        ("lifelist", {"x": 1}, BadInput, "there is no parameter 'x'; there is version"),
    ],
)
def test_what_cannot_be_unloaded_says_why(
    two: Two, name: str, parameters: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as raised:
        two.do(two.repository.unload(name, parameters))
    assert message in str(raised.value)


def test_statistics_are_of_all_replicas_together_and_of_each_version(two: Two) -> None:
    images = tiny_images(2)
    request = oip.Request((Tensor("images", "UINT8", images.shape, np.ravel(images)),))
    for replica in two.all:
        two.do(infer.answered(replica.parts, request, "lifelist", ""))
    two.do(two.repository.load("lifelist/versions/3", {}))
    two.do(infer.answered(two.all[0].parts, request, "lifelist", "3"))
    rows = two.do(two.repository.statistics())["model_stats"]
    assert [(row["version"], row["inference_count"], row["execution_count"]) for row in rows] == [
        ("2", 4, 2),
        ("3", 2, 1),
    ]
    (row,) = two.do(two.repository.statistics("lifelist", "1"))["model_stats"]
    assert (row["version"], row["inference_count"]) == ("1", 0)


def test_without_replicas_nothing_is_ready(two: Two) -> None:
    two.here = []
    assert not two.do(two.repository.server_ready())
    with pytest.raises(Unavailable, match="no replica answers"):
        two.do(two.repository.ready("lifelist"))
