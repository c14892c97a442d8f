"""What the operator adds to /metrics: how right the answers were, what feedback came, how increments stand."""

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as CounterMetric
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lifelist.client.answers import ENDED
from lifelist.deploy import feedback
from lifelist.deploy.rollout import STEPS
from lifelist.deploy.store import QUEUED, Store
from lifelist.exporter.registry import Registry

OUTCOMES = get_args(feedback.Outcome)
STATES = (QUEUED, *STEPS, *sorted(ENDED))


class Quality(Collector):
    """Figures that are read from the database at each scrape, so that a restart forgets none."""

    def __init__(self, store: Store, registry: Registry, collectors: CollectorRegistry) -> None:
        self.store, self.registry = store, registry
        self.labels = CounterMetric(
            "lifelist_feedback_total", "True classes that were sent.", ["outcome"], registry=collectors
        )
        for outcome in OUTCOMES:
            self.labels.labels(outcome)
        collectors.register(self)

    def describe(self) -> list[Metric]:
        """Nothing: registering does not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Accuracy by version and group of classes, with the number of labels that it rests on; increments by state."""
        ratio = GaugeMetricFamily(
            "lifelist_accuracy_ratio", "Share of answers that feedback says were right.", labels=["group", "version"]
        )
        labels = GaugeMetricFamily(
            "lifelist_accuracy_labels", "Answers with known truth, behind the ratio.", labels=["group", "version"]
        )
        for row in feedback.accuracy(self.store, self.registry):
            labels.add_metric([row.group, str(row.version)], row.total)
            if row.ratio is not None and row.group != "unseen":  # those no version could have got right
                ratio.add_metric([row.group, str(row.version)], row.ratio)
        yield ratio
        yield labels
        increments = GaugeMetricFamily("lifelist_increments", "Increments by state.", labels=["state"])
        counts = Counter(found.state for found in self.store.rollouts())
        for state in STATES:
            increments.add_metric([state], counts[state])
        yield increments
