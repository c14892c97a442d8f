"""A real Prometheus scrapes a real run: every expression of every panel and rule gives data."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from parts_operator import Server, running
from parts_prometheus import alerts, expressions, needs_prometheus, rules
from parts_rollout import NAMES, learn, pictures, settings
from parts_server import free_port

from lifelist.client.blocking import Client
from lifelist.deploy import examples, scraping
from lifelist.deploy.settings import Settings
from lifelist.deploy.workshop import open_workshop
from lifelist.monitoring import probe
from lifelist.monitoring.options import MonitoringOptions
from lifelist.monitoring.probe import GateImage, Probed
from lifelist.monitoring.watcher import Outside, Watcher
from lifelist.serving import keys
from lifelist.serving.options import ServingOptions
from lifelist.serving.prediction import key_in

pytestmark = needs_prometheus

EVERY_S = 0.5  # between scrapes
IMAGES = 25  # in a query


@dataclass
class Scraped:
    """What Prometheus knows, and since when."""

    url: str
    began: float

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """All series of the run that an expression gives; those of a panel are over a time, too."""
        times = {"start": self.began, "end": time.time(), "step": EVERY_S}
        found = httpx.get(
            f"{self.url}/api/v1/query_range", params={"query": expression, **times}, trust_env=False, timeout=30
        ).json()
        assert found["status"] == "success", f"{expression}: {found}"
        result: list[dict[str, Any]] = found["data"]["result"]
        return result


def watcher(server: Server) -> Watcher:
    """As deploy/watch.py makes it, of this one replica: probes go over HTTP."""
    shop, own = server.workshop, keys.own(key_in(server.settings.secret_file))

    def gate() -> Sequence[GateImage]:
        kept = examples.learned(shop.store, shop.live)
        return [GateImage(found.sha256, found.class_id) for found in kept if found.role == "gate"]

    def asked(images: Sequence[GateImage]) -> Sequence[Probed]:
        return list(probe.ask(server.url, own, images, shop.images.get))

    outside = Outside(server.observed, asked, gate)
    return Watcher(shop.store, shop.registry, server.settings.monitoring, outside, seed=0)


def traffic(client: Client, names: Sequence[str], queries: int, first: int) -> None:
    """Pictures of classes in turn, and the true class of every third."""
    for query in range(queries):
        name = names[query % len(names)]
        sent = pictures(name, IMAGES, first + IMAGES * query)
        for image in client.classify(sent, unknown_at=0.05)["images"][::3]:
            client.feedback(image["prediction_id"], name)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    home, beside = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("beside")
    made = settings(
        home,
        serving=ServingOptions(audit_rate=0.5),
        monitoring=MonitoringOptions(window=50, long_window=100, probe_images=60),
    )
    shop = open_workshop(made)
    assert learn(shop, *NAMES[:2], count=150).state == "done"
    shop.store.close()
    with running(made) as server:
        there = Settings(home=beside, serving=ServingOptions(port=int(server.port)))
        began = time.time()
        with scraping.running(there, free_port(), EVERY_S) as (url, _), Client(server.url) as client:
            assert scraping.is_scraped(url, within_s=20)
            looks = watcher(server)
            looks.look(time.time())
            traffic(client, NAMES[:2], 8, first=1000)
            looks.look(time.time())
            time.sleep(2 * EVERY_S)
            assert learn(server.workshop, "blue", count=150, method="bic").state == "done"
            traffic(client, NAMES[:3], 12, first=2000)
            looks.look(time.time())
            time.sleep(6 * EVERY_S)
            yield Scraped(url, began)


def test_every_panel_shows_something(scraped: Scraped) -> None:
    empty = [place for place, expression in expressions(interval="5s") if not scraped.ask(expression)]
    assert empty == []


def test_every_recorded_figure_is_recorded(scraped: Scraped) -> None:
    empty = [rule["record"] for rule in rules() if "record" in rule and not scraped.ask(rule["record"])]
    assert empty == []


def test_every_alert_looks_at_something(scraped: Scraped) -> None:
    """A comparison drops what does not meet it; with `bool` it says yes or no instead, of what there is to compare."""
    asked = {name: re.sub(r" (==|!=|>=|<=|>|<) ", r" \1 bool ", rule["expr"]) for name, rule in alerts().items()}
    assert sum(" bool " in expression for expression in asked.values()) == len(asked) - 1
    asked["LifelistMetricsAbsent"] = asked["LifelistMetricsAbsent"].removeprefix("absent(").removesuffix(")")
    assert [name for name, expression in asked.items() if not scraped.ask(expression)] == []


def test_no_alert_fires_in_a_healthy_run(scraped: Scraped) -> None:
    assert [one["metric"] for one in scraped.ask('ALERTS{alertstate="firing"}')] == []


def test_all_that_is_scraped_is_ours_and_bounded(scraped: Scraped) -> None:
    names = {one["metric"]["__name__"] for one in scraped.ask('{job="lifelist"}')}
    beside = {"up", "scrape_duration_seconds", "scrape_samples_scraped", "scrape_series_added"}
    assert {name for name in names if not name.startswith(("lifelist_", "instance", "ALERTS"))} <= {
        *beside,
        "scrape_samples_post_metric_relabeling",
    }
    assert max(float(value) for _, value in scraped.ask("scrape_samples_scraped")[0]["values"]) < 1000
    assert max(float(value) for _, value in scraped.ask("scrape_duration_seconds")[0]["values"]) < 5


def test_the_marks_of_swaps_are_where_swaps_were(scraped: Scraped) -> None:
    mark = next(expression for place, expression in expressions(interval="5s") if place == "quality: swaps")
    (marked,) = scraped.ask(mark)
    assert marked["values"]
    assert scraped.ask('lifelist_live_version_info{version="1"}')
    assert len({one["metric"]["version"] for one in scraped.ask("lifelist_live_version_info")}) >= 2


def test_what_prometheus_has_is_what_the_server_says(scraped: Scraped, tmp_path: Path) -> None:
    (recall,) = scraped.ask('lifelist_class_recall_images{source="probe", class_id="other"}') or [None]
    assert recall is None  # three classes have room
    by_state = {one["metric"]["state"]: float(one["values"][-1][1]) for one in scraped.ask("lifelist_increments")}
    assert by_state["done"] == 2
    assert by_state["train"] == 0
    names = {one["metric"]["name"] for one in scraped.ask("lifelist_class_info")}
    assert names == {"red", "green", "blue"}
