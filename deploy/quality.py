"""What the operator adds to /metrics: how right answers were, what feedback came, alarms, increments by state."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as CounterMetric
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lifelist.client.answers import ENDED
from lifelist.deploy.rollout import STEPS
from lifelist.deploy.store import QUEUED, Store
from lifelist.exporter.registry import Registry
from lifelist.monitoring import feedback, notices, quality, times
from lifelist.monitoring.figures import DAY

OUTCOMES = (*get_args(feedback.Outcome), *feedback.OTHERWISE)
STATES = (QUEUED, *STEPS, *sorted(ENDED))
LAG = (1, 10, 60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400, 90 * 86_400)  # seconds


class Quality(Collector):
    """Figures that are read from the database at each scrape, so that a restart forgets none."""

    def __init__(self, store: Store, registry: Registry, collectors: CollectorRegistry) -> None:
        self.store, self.registry = store, registry
        self.labels = CounterMetric(
            "lifelist_feedback_total", "True classes that were sent.", ["outcome"], registry=collectors
        )
        self.lag = Histogram(
            "lifelist_feedback_lag_seconds", "From an answer to its true class.", buckets=LAG, registry=collectors
        )
        for outcome in OUTCOMES:
            self.labels.labels(outcome)
        collectors.register(self)

    def describe(self) -> list[Metric]:
        """Nothing: registering does not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Accuracy of the last day, by version, source and group of classes; alarms; increments by state."""
        yield from self._accuracy()
        yield from self._alarms()
        increments = GaugeMetricFamily("lifelist_increments", "Increments by state.", labels=["state"])
        counts = Counter(found.state for found in self.store.rollouts())
        for state in STATES:
            increments.add_metric([state], counts[state])
        yield increments
        live = self.registry.history("live")
        promoted = GaugeMetricFamily(
            "lifelist_last_promotion_timestamp_seconds", "When another version was made live last."
        )
        if live:
            promoted.add_metric([], times.unix(live[-1].at))
        yield promoted

    def _accuracy(self) -> Iterator[Metric]:
        labels = ["group", "source", "version"]
        ratio, lower, upper = (
            GaugeMetricFamily(f"lifelist_accuracy{name}_ratio", text, labels=labels)
            for name, text in (
                ("", "Share of answers of the last day that were right."),
                ("_lower", "Lower end of its 95 % interval."),
                ("_upper", "Upper end of its 95 % interval."),
            )
        )
        images = GaugeMetricFamily("lifelist_accuracy_images", "Images that the ratio rests on.", labels=labels)
        now = time.time()
        for figure in quality.totals(self.store, self.registry, quality.Asked(now - DAY, now)):
            known = [figure.group, figure.source, str(figure.version)]
            images.add_metric(known, figure.images)
            share = quality.share(figure, self.registry)
            if figure.group == "unseen" or share.ratio is None:  # those no version could have got right
                continue
            assert share.low is not None
            assert share.high is not None
            for family, value in ((ratio, share.ratio), (lower, share.low), (upper, share.high)):
                family.add_metric(known, value)
        yield from (ratio, lower, upper, images)

    def _alarms(self) -> Iterator[Metric]:
        raised = GaugeMetricFamily("lifelist_alarm", "Whether an alarm is raised.", labels=["alarm"])
        for alarm in notices.alarms(self.store):
            raised.add_metric([alarm.name], alarm.state == "raised")
        yield raised
