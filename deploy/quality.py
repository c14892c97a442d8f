"""What the operator adds to /metrics on quality: how right answers are, by version and by class, and what drifts.

What is known is in the database, so that a restart forgets none of it, and is read as sums at each scrape; what follows
from a version alone is worked out once. deploy/progress.py adds how increments stand.
"""

import functools
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import get_args

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as CounterMetric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lifelist.deploy.store import Store
from lifelist.deploy.workshop import EXEMPLARS, memory
from lifelist.exporter.answering import Answering, held_out
from lifelist.exporter.errors import LifelistError
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry, Remembering
from lifelist.monitoring import classes, feedback, notices, quality, tables, times
from lifelist.monitoring.figures import DAY, NONE, Figure
from lifelist.monitoring.intervals import Bounded, Share
from lifelist.monitoring.options import KINDS
from lifelist.serving.metrics import OTHER

OUTCOMES = (*get_args(feedback.Outcome), *feedback.OTHERWISE)
LAG = (1, 10, 60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400, 90 * 86_400)  # seconds
VERSIONS = 10  # of those that answered within a day, the latest have series of their own, and live
TRIED_EVERY_S = 5.0  # at most: many may ask for metrics, some every second
HOLDS = 20  # times as long as it took to find out, what is said of classes holds: there may be many

log = logging.getLogger(__name__)


def readable(found: Iterator[Metric]) -> list[Metric]:
    """What is read from the database; nothing if that is away: the page has the replicas' metrics all the same."""
    try:
        return list(found)
    except sa.exc.SQLAlchemyError as error:
        log.warning("metrics.missed", extra={"facts": {"reason": str(error)}})
        return []


_Row = tuple[list[str], float, Share | Bounded | None]  # values of labels, images, and what these say, if anything


def _bounded(name: str, text: str, labels: Sequence[str], rows: Sequence[_Row]) -> Iterator[Metric]:
    """A ratio, both ends of its interval, and the images that it rests on."""
    ratio, lower, upper = (
        GaugeMetricFamily(f"{name}{part}_ratio", told, labels=labels)
        for part, told in (
            ("", f"{text}."),
            ("_lower", "Lower end of its 95 % interval."),
            ("_upper", "Upper end of its 95 % interval."),
        )
    )
    images = GaugeMetricFamily(f"{name}_images", "Images that the ratio rests on.", labels=labels)
    for known, count, found in rows:
        images.add_metric(known, count)
        if found is None or found.ratio is None:
            continue
        assert found.low is not None
        assert found.high is not None
        for family, value in ((ratio, found.ratio), (lower, found.low), (upper, found.high)):
            family.add_metric(known, value)
    yield from (ratio, lower, upper, images)


class Quality(Collector):
    """`shown`: how many classes have series of their own."""

    def __init__(
        self, store: Store, registry: Registry, collectors: CollectorRegistry, shown: int = 100, holds: float = HOLDS
    ) -> None:
        self.store, self.shown, self.holds = store, shown, holds
        self.registry = Remembering(registry.url)
        self.labels = CounterMetric(
            "lifelist_feedback_total", "True classes that were sent.", ["outcome"], registry=collectors
        )
        self.lag = Histogram(
            "lifelist_feedback_lag_seconds", "From an answer to its true class.", buckets=LAG, registry=collectors
        )
        self.audited = CounterMetric(
            "lifelist_audit_labelled", "Images of the audit whose true class was sent.", registry=collectors
        )
        for outcome in OUTCOMES:
            self.labels.labels(outcome)
        self._notices = Counter(dict.fromkeys(KINDS, 0))  # a counter that begins at 1 has not increased
        self._noticed = next((one.id for one in notices.told(store, limit=1)), 0)
        self._writable = (0.0, False)  # until when it holds; whether the database takes a write
        self._classes: tuple[float, int, list[Metric]] = (0.0, 0, [])  # until when, of which version, what is said
        self.calibration_error = functools.lru_cache(8)(self._calibration_error)
        self.exemplars = functools.lru_cache(2)(self._exemplars)
        collectors.register(self)

    def describe(self) -> list[Metric]:
        """Nothing: registering does not ask the database."""
        return []

    def labelled(self, prediction_id: str, outcome: str, lag_s: float, *, audit: bool) -> None:
        """Count the true class of an answer, which was given `lag_s` ago."""
        self.labels.labels(outcome).inc()
        self.lag.observe(max(0.0, lag_s))
        if audit and len(feedback.history(self.store, prediction_id)) == 1:  # it was not put right, but new
            self.audited.inc()

    def collect(self) -> Iterator[Metric]:
        """What the database says; without it, that it is away; and whether it takes a write."""
        up = GaugeMetricFamily("lifelist_database_up", "Whether the database can be read.")
        found = readable(self._collected())
        up.add_metric([], bool(found))
        writable = GaugeMetricFamily("lifelist_database_writable", "Whether the database takes a write.")
        writable.add_metric([], self._takes_a_write())
        yield from (up, writable, *found)

    def _takes_a_write(self) -> bool:
        until, found = self._writable
        if time.monotonic() >= until:
            found = self.store.is_writable()
            self._writable = time.monotonic() + TRIED_EVERY_S, found
        return found

    def _collected(self) -> Iterator[Metric]:
        """Accuracy of the last day, by version, source and group; classes; drift; alarms; notices; losses."""
        now = time.time()
        lost = CounterMetricFamily("lifelist_monitoring_lost", "What could not be looked at or kept.", labels=["what"])
        for what, count in notices.lost(self.store).items():
            lost.add_metric([what], count)
        yield lost
        yield from self._accuracy(now)
        yield from self._alarms()
        yield self._told()
        if (ref := self.registry.ref("live")) is None:
            return
        live = self.registry.manifest(ref.version)
        until, version, found = self._classes
        if version != live.version or time.monotonic() >= until:
            began = time.monotonic()
            found = list(self._of_classes(live, now))
            ended = time.monotonic()
            self._classes = ended + self.holds * (ended - began), live.version, found
        yield from found
        yield from self._probes(live)
        yield from self._drift(live)

    def _accuracy(self, now: float) -> Iterator[Metric]:
        ref = self.registry.ref("live")
        found = quality.totals(self.store, self.registry, quality.Asked(now - DAY, now))
        latest = sorted({one.version for one in found}, reverse=True)[:VERSIONS]  # each class enrolled makes one
        shown = {*latest, ref.version if ref else None}
        named = [([one.group, one.source, str(one.version)], one) for one in found if one.version in shown]
        text, labels = "Share of answers of the last day that were right", ("group", "source", "version")
        yield from self._shares("lifelist_accuracy", text, labels, named)

    def _of_classes(self, live: Manifest, now: float) -> Iterator[Metric]:
        """Of the classes asked about most, and of all others together: names, recall, exemplars."""
        shown = classes.busiest(self.store, live, now - DAY, self.shown)
        entries = {entry.id: entry for entry in live.answerable}
        info = GaugeMetricFamily(
            "lifelist_class_info", "The classes with series of their own.", labels=["class_id", "name", "state"]
        )
        for class_id in shown:
            info.add_metric([str(class_id), entries[class_id].name, entries[class_id].state], 1)
        yield info
        known = GaugeMetricFamily("lifelist_classes", "Classes that the live version answers.", labels=["state"])
        for state in ("trained", "enrolled"):
            known.add_metric([state], sum(entry.state == state for entry in entries.values()))
        yield known
        found = classes.recall(self.store, self.registry, live, now - DAY, now, shown)
        named = [([OTHER if one.class_id == NONE else str(one.class_id), one.source], one) for one in found]
        text = "Share of the images of a class in the last day that the live version answered right"
        yield from self._shares("lifelist_class_recall", text, ("class_id", "source"), named)
        kept = self.exemplars(live.version)
        exemplars = GaugeMetricFamily("lifelist_exemplars", "Images that are kept for replay.", labels=["class_id"])
        for class_id in shown:
            exemplars.add_metric([str(class_id)], kept.get(class_id, 0))
        if rest := set(kept) - set(shown):
            exemplars.add_metric([OTHER], sum(kept[class_id] for class_id in rest))
        yield exemplars

    def _shares(
        self, name: str, text: str, labels: Sequence[str], found: Sequence[tuple[list[str], Figure]]
    ) -> Iterator[Metric]:
        rows: list[_Row] = []
        for known, figure in found:  # unseen: those that no version could have got right
            share = None if figure.group == "unseen" else quality.share(figure, self.registry)
            rows.append((known, figure.images, share))
        yield from _bounded(name, text, labels, rows)

    def _probes(self, live: Manifest) -> Iterator[Metric]:
        found = classes.probes(self.store, self.registry, live)
        forgotten: list[_Row] = [([], found.forgotten.total, found.forgotten)] if found.forgotten else []
        text = "Mean over old classes of the best recall in probes less the present one"
        yield from _bounded("lifelist_forgetting", text, (), forgotten)
        favoured: list[_Row] = [([group], one.total, one) for group, one in found.favoured.items()]
        text = "Answers of a group of classes in probes for each image of one"
        yield from _bounded("lifelist_bias", text, ("group",), favoured)
        error = GaugeMetricFamily(
            "lifelist_calibration_error_ratio", "Expected calibration error of the live version on held-out images."
        )
        if (wrong := self.calibration_error(live.version)) is not None:
            error.add_metric([], wrong)
        yield error
        probed = GaugeMetricFamily("lifelist_last_probe_timestamp_seconds", "When gate images were answered last.")
        with self.store.reading() as connection:
            at = connection.scalar(sa.select(sa.func.max(tables.probes.c.at)))
        if at is not None:
            probed.add_metric([], times.unix(at))
        yield probed

    def _drift(self, live: Manifest) -> Iterator[Metric]:
        score, p_value, rejected = (
            GaugeMetricFamily(f"lifelist_drift_{name}", text, labels=["test", "window"])
            for name, text in (
                ("score", "How different what is asked is from held-out images: 0 not at all."),
                ("p_value", "How probable so large a score is if nothing is different."),
                ("rejected", "Whether that is too improbable, after the correction for many tests."),
            )
        )
        for row in quality.drift_tests(self.store, live.version):
            for family, name in ((score, "score"), (p_value, "p_value"), (rejected, "rejected")):
                family.add_metric([row["test"], row["window"]], row[name])
        yield from (score, p_value, rejected)

    def _alarms(self) -> Iterator[Metric]:
        raised = GaugeMetricFamily("lifelist_alarm", "Whether an alarm is raised.", labels=["alarm"])
        for alarm in notices.alarms(self.store):
            raised.add_metric([alarm.name], alarm.state == "raised")
        yield raised

    def _told(self) -> Metric:
        """Notices since this process began. Rows are deleted some day: a count of them would fall."""
        c = tables.notices.c
        query = sa.select(c.kind, sa.func.count(), sa.func.max(c.id)).where(c.id > self._noticed).group_by(c.kind)
        with self.store.reading() as connection:
            rows = connection.execute(query).all()
        for kind, count, last in rows:
            self._notices[kind] += count
            self._noticed = max(self._noticed, last)
        found = CounterMetricFamily("lifelist_notices", "Notices since this process began.", labels=["kind"])
        for kind, count in sorted(self._notices.items()):
            found.add_metric([kind], count)
        return found

    def _calibration_error(self, version: int) -> float | None:
        live = self.registry.manifest(version)
        try:
            held = held_out(self.registry, live)
            if held is None or not len(held.labels):
                return None
            return Answering.of(self.registry, version).calibration_error(held, live.default_answer)
        except LifelistError as error:  # files that are gone or altered: all else on the page is wanted then
            log.warning("calibration.unread", extra={"facts": {"version": version, "reason": str(error)}})
            return None

    def _exemplars(self, version: int) -> dict[int, int]:
        """How many images of each class a version remembers; {} if it keeps no list of them."""
        live = self.registry.manifest(version)
        if all(entry.name != EXEMPLARS for entry in live.files):
            return {}
        try:
            found = memory(self.registry, live)["exemplars"]
        except LifelistError as error:
            log.warning("exemplars.unread", extra={"facts": {"version": version, "reason": str(error)}})
            return {}
        return {int(class_id): len(ids) for class_id, ids in found.items()}
