"""What a replica counts, and how the counts of several become one page of Prometheus text."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from parts import BIRDS, OPEN, encoded, tiny_images, tiny_version
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lifelist.exporter import session
from lifelist.exporter.errors import Unavailable
from lifelist.exporter.registry import Ref, Registry
from lifelist.serving import catalog, metrics
from lifelist.serving.app import Replica
from lifelist.serving.catalog import Catalog
from lifelist.serving.follow import Status
from lifelist.serving.metrics import Family, Merged
from lifelist.serving.options import ServingOptions

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Two:
    """Two replicas asked directly, as the operator asks them over Ray: here it is the page that matters."""

    def __init__(self, registry: Registry) -> None:
        self.replicas = {name: Replica(name, registry, ServingOptions(), bytes(32), OPEN) for name in ("one", "two")}
        self.away: set[str] = set()

    def here(self) -> dict[str, Replica]:
        return {name: replica for name, replica in self.replicas.items() if name not in self.away}

    async def status(self) -> list[Status]:
        return [replica.status() for replica in self.here().values()]

    async def metrics(self) -> dict[str, tuple[Family, ...]]:
        if not self.here():
            raise Unavailable("no replica answers")
        return {name: metrics.snapshot(replica.metrics.registry) for name, replica in self.here().items()}


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    made = Registry(str(tmp_path_factory.mktemp("registry")))
    tiny_version(made, live=True)
    tiny_version(made, BIRDS[:5], seed=1)
    return made


@pytest.fixture
def two(registry: Registry) -> Iterator[Two]:
    made = Two(registry)
    yield made
    for replica in made.replicas.values():
        replica.close()


def site(two: Two, registry: Registry) -> Catalog:
    return Catalog(registry, two, ServingOptions(), nonce="here")


async def call(app: object, method: str, path: str, **request: object) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, path, **request)  # type: ignore[arg-type]


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_every_replica_is_on_the_page_with_counts_of_its_own(two: Two, registry: Registry) -> None:
    async def story() -> Samples:
        for name, times in (("one", 3), ("two", 2)):
            for _ in range(times):
                answer = await call(two.replicas[name].app, "POST", "/v1/classify", content=encoded(tiny_images()[1]))
                assert answer.status_code == 200
        await call(two.replicas["one"].app, "POST", "/v1/classify", content=b"no image")
        await call(two.replicas["one"].app, "GET", "/v1/classify")
        return samples((await call(catalog.app(site(two, registry)), "GET", "/metrics")).text)

    found = asyncio.run(story())
    assert value(found, "lifelist_requests_total", replica="one", code="200") == 3
    assert value(found, "lifelist_requests_total", replica="one", code="400") == 1
    assert value(found, "lifelist_requests_total", replica="one", code="405") == 1
    assert value(found, "lifelist_requests_total", replica="two", code="200") == 2
    assert value(found, "lifelist_request_duration_seconds_count", replica="one") == 5
    assert value(found, "lifelist_answers_total", replica="two", class_id="1", answer="linear") == 2
    assert value(found, "lifelist_batch_size_sum", replica="one") == 3
    assert value(found, "lifelist_inflight_requests", replica="one") == 0
    assert value(found, "lifelist_queued_images", replica="two") == 0
    assert value(found, "lifelist_replicas_reporting") == 2


def test_the_live_version_is_one_series_for_each_replica_before_and_after_a_swap(two: Two, registry: Registry) -> None:
    async def story() -> tuple[Samples, Samples]:
        app = catalog.app(site(two, registry))
        before = samples((await call(app, "GET", "/metrics")).text)
        follower = two.replicas["one"].follower
        await follower.prepare(2, 1)
        await follower.commit(Ref(2, 2))
        return before, samples((await call(app, "GET", "/metrics")).text)

    before, after = asyncio.run(story())
    name = "lifelist_live_version_info"
    first = {"version": "1", "classes": "3", "answer": "linear", "provider": "cpu", "precision": "fp32"}
    second = {"version": "2", "classes": "5", "answer": "linear", "provider": "cpu", "precision": "fp32"}
    assert {key for key in before if key[0] == name} == {
        (name, frozenset({**first, "replica": replica}.items())) for replica in ("one", "two")
    }
    assert value(after, name, replica="one", **second) == value(after, name, replica="two", **first) == 1
    assert len([key for key in after if key[0] == name]) == 2
    assert value(after, "lifelist_swap_duration_seconds_count", replica="one", phase="prepare") == 1
    assert value(after, "lifelist_swap_duration_seconds_count", replica="one", phase="commit") == 1
    assert value(after, "lifelist_held_versions", replica="one") == 2


def test_a_version_that_cannot_be_loaded_is_counted_as_a_failed_phase(two: Two, registry: Registry) -> None:
    async def story() -> Samples:
        report = await two.replicas["one"].follower.prepare(99, 1)
        assert report.problem is not None
        return samples((await call(catalog.app(site(two, registry)), "GET", "/metrics")).text)

    assert value(asyncio.run(story()), "lifelist_swap_failures_total", replica="one", phase="prepare") == 1


def test_a_replica_that_is_gone_is_missing_and_said_to_be(two: Two, registry: Registry) -> None:
    async def story() -> list[httpx.Response]:
        app = catalog.app(site(two, registry))
        two.away = {"two"}
        one = await call(app, "GET", "/metrics")
        two.away = {"one", "two"}
        return [one, await call(app, "GET", "/metrics")]

    one, none = asyncio.run(story())
    assert one.status_code == none.status_code == 200
    assert value(samples(one.text), "lifelist_replicas_reporting") == 1
    assert 'replica="two"' not in one.text
    assert value(samples(none.text), "lifelist_replicas_reporting") == 0


def test_the_page_keeps_to_prometheus_naming_rules(two: Two, registry: Registry) -> None:
    answer = asyncio.run(call(catalog.app(site(two, registry)), "GET", "/metrics"))
    assert answer.headers["content-type"].startswith("text/plain; version=")
    units = ("_seconds", "_bytes", "_info", "_total", "_size", "_images", "_requests", "_versions", "_reporting")
    for family in text_string_to_metric_families(answer.text):
        assert family.name.startswith("lifelist_")
        assert family.documentation
        assert family.type != "untyped"
        counted = family.name if family.type != "counter" else f"{family.name}_total"
        assert counted.endswith(units), counted
    assert answer.text.count("# TYPE lifelist_requests_total ") == 1  # one family, however many replicas


def test_counts_that_are_merged_are_the_counts_that_were_taken() -> None:
    registries = {name: CollectorRegistry() for name in ("a", "b")}
    for k, registry in enumerate(registries.values()):
        made = metrics.Metrics(registry)
        for _ in range(k + 1):
            made.answered(7, "linear", audit=False)
        made.batch.observe(8)
    together = CollectorRegistry()
    together.register(Merged({name: metrics.snapshot(registry) for name, registry in registries.items()}))
    found = samples(generate_latest(together).decode())
    assert value(found, "lifelist_answers_total", replica="a", class_id="7", answer="linear") == 1
    assert value(found, "lifelist_answers_total", replica="b", class_id="7", answer="linear") == 2
    assert value(found, "lifelist_batch_size_bucket", replica="b", le="8.0") == 1
    assert value(found, "lifelist_batch_size_bucket", replica="b", le="4.0") == 0


def test_a_client_that_does_not_wait_is_counted_as_such(registry: Registry) -> None:
    replica = Replica("one", registry, ServingOptions(), bytes(32), OPEN)

    async def story() -> None:
        async def receive() -> dict[str, object]:
            await asyncio.sleep(10)
            return {}

        async def send(message: object) -> None:
            raise AssertionError("nobody is there")

        scope = {"type": "http", "method": "POST", "path": "/v1/classify", "query_string": b"", "headers": []}
        task = asyncio.create_task(replica.app(scope, receive, send))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        assert replica.intake.requests == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert replica.intake.requests == 0

    asyncio.run(story())
    assert replica.metrics.requests.labels("499")._value.get() == 1
    replica.close()


def test_the_documentation_names_every_metric_and_every_limit() -> None:
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    registry = CollectorRegistry()
    metrics.Metrics(registry)
    for family in metrics.snapshot(registry):
        name = family.name if family.type != "counter" else f"{family.name.removesuffix('_total')}_total"
        assert f"`{name}" in page, name
    for option in ServingOptions.model_fields:
        if option.startswith("max_") and option != "max_batch":
            assert f"| `{option}` |" in page, option


def images(made: metrics.Metrics) -> dict[str, float]:
    """By class id, as they are shown."""
    return {
        dict(labels)["class_id"]: value
        for family in metrics.snapshot(made.registry)
        if family.name == "lifelist_answers"
        for _, labels, value in family.samples
    }


def test_classes_asked_about_most_are_counted_by_themselves_and_the_others_together() -> None:
    made = metrics.Metrics(CollectorRegistry(), classes=2)
    for class_id, count in ((1, 3), (2, 1), (3, 5), (4, 2)):
        for _ in range(count):
            made.answered(class_id, "linear")
    assert images(made) == {"1": 3, "3": 5, "other": 7}  # 1 and 2 came first, and were shown until this look
    for _ in range(9):
        made.answered(2, "linear")
    assert images(made) == {"2": 10, "3": 5, "other": 16}


def test_no_series_of_answers_ever_falls_whatever_is_asked_about() -> None:
    random, made, last = np.random.default_rng(0), metrics.Metrics(CollectorRegistry(), classes=5), dict[str, float]()
    for look in range(200):
        for class_id in (random.zipf(1.3, 50) + look // 20) % 40:
            made.answered(int(class_id), "linear")
        found = images(made)
        assert len(found) <= 6
        assert all(found.get(name, before) >= before for name, before in last.items())
        last |= found


def test_the_series_of_a_class_that_is_answered_no_more_goes(registry: Registry) -> None:
    made = metrics.Metrics(CollectorRegistry())
    for class_id in (0, 1, 4):
        made.answered(class_id, "linear")
    loaded = session.load(registry, 1, provider="cpu")  # knows classes 0 to 2
    made.now_live(loaded)
    assert set(images(made)) == {"0", "1"}


def test_what_may_go_wrong_is_counted_from_zero() -> None:
    """A series that begins with its first error shows no rise: no alert would see it."""
    registry = CollectorRegistry()
    metrics.Metrics(registry)
    text = generate_latest(registry).decode()
    for code in ("200", "500", "503"):
        assert f'lifelist_requests_total{{code="{code}"}} 0.0' in text
    for phase in ("prepare", "commit"):
        assert f'lifelist_swap_failures_total{{phase="{phase}"}} 0.0' in text
