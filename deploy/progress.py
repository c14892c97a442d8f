"""What the operator adds to /metrics on increments: where each stands, how training goes, what the gate found."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lifelist.client.answers import ENDED
from lifelist.deploy.gate import NOT_JUDGED
from lifelist.deploy.quality import readable
from lifelist.deploy.records import Rollout
from lifelist.deploy.rollout import STEPS
from lifelist.deploy.store import QUEUED, Store
from lifelist.exporter.errors import Missing
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry
from lifelist.monitoring import times

STATES = (QUEUED, *STEPS, *sorted(ENDED))
BEFORE_TRAINING = (QUEUED, "intake")
LATEST = 5  # increments that are looked back at
CORRECTIONS = 20  # that are shown
ANCESTORS = 500  # versions that are; most of them only enrolled a class


class Progress(Collector):
    """Read from database and manifests at each scrape. What is said of one increment is said of the latest."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self.store, self.registry = store, registry
        self.corrections = functools.lru_cache(2)(self._corrections)

    def describe(self) -> list[Metric]:
        """Nothing: registering does not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What the database says; nothing without it."""
        yield from readable(self._collected())

    def _collected(self) -> Iterator[Metric]:
        """Increments by state; the latest one's steps, training and gate; corrections; the last promotion."""
        now = times.now()
        counts = self.store.states()
        increments = GaugeMetricFamily("lifelist_increments", "Increments by state.", labels=["state"])
        for state in STATES:
            increments.add_metric([state], counts.get(state, 0))
        yield increments
        seconds = CounterMetricFamily("lifelist_trainer_seconds", "For how long increments were trained.")
        seconds.add_metric([], self.store.seconds_in("train", now))
        yield seconds
        latest = self.store.rollouts(LATEST)
        if latest:
            yield from self._increment(latest[0], now)
            yield from self._training(latest)
        yield from self._gate(next((one.facts["gate"] for one in latest if "gate" in one.facts), []))
        live = self.registry.ref("live")
        promoted = GaugeMetricFamily(
            "lifelist_last_promotion_timestamp_seconds", "When another version was made live last."
        )
        if live is not None:
            promoted.add_metric([], times.unix(live.at))
            yield from self._bias(live.version)
        yield promoted

    def _increment(self, increment: Rollout, now: str) -> Iterator[Metric]:
        moved = GaugeMetricFamily(
            "lifelist_increment_updated_timestamp_seconds", "When the latest increment gave sign of life last."
        )
        moved.add_metric([], times.unix(increment.updated_at))
        yield moved
        took = GaugeMetricFamily(
            "lifelist_increment_step_seconds", "How long the latest increment took for a step.", labels=["step"]
        )
        for step in self.store.steps(increment.id):
            took.add_metric([step.state], times.unix(step.ended_at or now) - times.unix(step.began_at))
        yield took

    def _training(self, latest: list[Rollout]) -> Iterator[Metric]:
        """By its last epoch; of the latest increment that had one, as far as loss and speed go."""
        progress, left, speed = (
            GaugeMetricFamily(f"lifelist_training_{name}", text)
            for name, text in (
                ("progress_ratio", "Share of the epochs of its phase that the latest increment has trained; then 1."),
                ("left_seconds", "How long the latest increment will still train, as far as it is known."),
                ("images_per_second", "Images that were trained on in a second, in the last epoch."),
            )
        )
        loss = GaugeMetricFamily("lifelist_training_loss", "Loss of the last epoch, by term.", labels=["term"])
        events = (self.store.latest_event(one.id, "epoch") for one in latest)
        epoch: Mapping[str, Any] | None = next((event.data for event in events if event is not None), None)
        trains = latest[0].state == "train"
        own = self.store.latest_event(latest[0].id, "epoch") if trains else None
        done = own.data["epoch"] / own.data["epochs"] if own else float(not trains)
        progress.add_metric([], 0.0 if latest[0].state in BEFORE_TRAINING else done)
        left.add_metric([], own.data["seconds_left"] if own else 0.0)
        if epoch is not None:
            speed.add_metric([], epoch["images_per_second"])
            for term, value in epoch["loss"].items():
                loss.add_metric([term], value)
        yield from (progress, left, speed, loss)

    def _gate(self, checks: list[Mapping[str, Any]]) -> Iterator[Metric]:
        """What the gate found of the candidate that it judged last."""
        check, found, limit = (
            GaugeMetricFamily(f"lifelist_gate_{name}", text, labels=["check"])
            for name, text in (
                ("check", "1: passed, 0: refused, NaN: of some class there was too little to judge by."),
                ("found", "What was measured."),
                ("limit", "What is asked of it."),
            )
        )
        for one in checks:
            is_sure = not one["passed"] or NOT_JUDGED not in one["message"]
            check.add_metric([one["name"]], float(one["passed"]) if is_sure else math.nan)
            for family, value in ((found, one["found"]), (limit, one["limit"])):
                if value is not None:
                    family.add_metric([one["name"]], value)
        yield from (check, found, limit)

    def _bias(self, live: int) -> Iterator[Metric]:
        alpha, beta = (
            GaugeMetricFamily(f"lifelist_bic_{name}", f"Bias correction: {text}.", labels=["increment"])
            for name, text in (("alpha", "by what logits of new classes are multiplied"), ("beta", "what is added"))
        )
        for increment, (a, b) in self.corrections(live).items():
            alpha.add_metric([str(increment)], a)
            beta.add_metric([str(increment)], b)
        yield from (alpha, beta)

    def _corrections(self, live: int) -> dict[int, tuple[float, float]]:
        """(alpha, beta) by increment, of the latest that the live version comes from."""
        found: dict[int, tuple[float, float]] = {}
        for manifest in self._ancestors(live):
            if manifest.kind == "increment" and manifest.bias is not None:
                which = max(entry.increment for entry in manifest.trained)
                found.setdefault(which, (manifest.bias.alpha, manifest.bias.beta))
            if len(found) == CORRECTIONS:
                break
        return found

    def _ancestors(self, live: int) -> Iterator[Manifest]:
        version: int | None = live
        for _ in range(ANCESTORS):
            if version is None:
                return
            try:
                manifest = self.registry.manifest(version)
            except Missing:  # it was removed; what came before is not known
                return
            yield manifest
            version = manifest.parent
