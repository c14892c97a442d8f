"""Every metric of the request path, declared once; and how those of several replicas become one page.

A replica counts in a registry of its own. The operator collects them all and adds the label `replica`, so that a query
to /metrics sees every replica, and a replica that is started anew begins series of its own.
"""

import functools
import heapq
import time
from collections import Counter as Counts
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lifelist.exporter.manifest import AnswerKind
from lifelist.exporter.session import Loaded
from lifelist.serving.auth import CALLER
from lifelist.serving.keys import PROBE

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds
PHASE = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)  # seconds
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # images
CLIENT_LEFT = "499"  # as Ray and nginx count a client that did not wait for its answer
CODES = ("200", "400", "429", CLIENT_LEFT, "500", "503")  # counted from 0, so that the first one is seen as a rise
PHASES = ("prepare", "commit", "release")  # of a swap
OTHER = "other"  # in place of a class id


class Answers(Collector):
    """Images by the class that they were taken for: `most` classes by themselves, all others together as OTHER.

    Shown are the first classes that come, and from the next look on those of most images. What a class counted while it
    was not shown stays in OTHER: no counter ever falls.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: Counts[tuple[int, AnswerKind]] = Counts()
        self._others: Counts[AnswerKind] = Counts()
        self._shown: set[int] = set()

    def add(self, class_id: int, kind: AnswerKind) -> None:
        """One more image."""
        self._counts[class_id, kind] += 1
        if class_id not in self._shown:
            if len(self._shown) < self.most:
                self._shown.add(class_id)
            else:
                self._others[kind] += 1

    def keep(self, known: Collection[int]) -> None:
        """Forget classes but these: the others are answered no more."""
        self._counts = Counts({key: count for key, count in self._counts.items() if key[0] in known})
        self._shown.intersection_update(known)

    def collect(self) -> Iterator[Metric]:
        """The counts, by class id and kind of answer."""
        images: Counts[int] = Counts()
        for (class_id, _), count in self._counts.items():
            images[class_id] += count
        self._shown = set(heapq.nlargest(self.most, images, key=lambda class_id: (images[class_id], -class_id)))
        found = CounterMetricFamily(
            "lifelist_answers", "Images, by the class they were taken for.", labels=["class_id", "answer"]
        )
        for (class_id, kind), count in self._counts.items():
            if class_id in self._shown:
                found.add_metric([str(class_id), kind], count)
        for kind, count in self._others.items():
            found.add_metric([OTHER, kind], count)
        yield found


class Metrics:
    """What a replica counts. Declared here; every use is one call."""

    def __init__(self, registry: CollectorRegistry, classes: int = 100) -> None:
        """classes: how many of them have series of their own."""
        self.registry = registry
        self.requests = Counter(
            "lifelist_requests_total", "Queries, by the status that they got.", ["code"], registry=registry
        )
        self.request_duration = Histogram(
            "lifelist_request_duration_seconds", "From a query's first byte to its answer's last.", buckets=LATENCY,
            registry=registry,
        )  # fmt: skip
        self.grpc_requests = Counter(
            "lifelist_grpc_requests_total", "Calls over gRPC, by method and by the status that they got.",
            ["method", "code"], registry=registry,
        )  # fmt: skip
        self.cancelled = Counter(
            "lifelist_cancelled", "Queries that left the model or its queue: their client did, or their time was over.",
            registry=registry,
        )  # fmt: skip
        self.inflight = Gauge("lifelist_inflight_requests", "Queries that are being answered.", registry=registry)
        self.queued = Gauge("lifelist_queued_images", "Images that wait for the model.", registry=registry)
        self.held = Gauge("lifelist_buffered_bytes", "Bytes of the bodies of queries held.", registry=registry)
        self.batch = Histogram("lifelist_batch_size", "Images in one model run.", buckets=BATCH, registry=registry)
        self.answers = Answers(classes)
        registry.register(self.answers)
        self.unknown = Counter("lifelist_unknown", "Images that were called unknown.", registry=registry)
        self.live = Gauge(
            "lifelist_live_version_info", "The version that answers.",
            ["version", "classes", "answer", "provider", "precision"], registry=registry,
        )  # fmt: skip
        self.held_versions = Gauge("lifelist_held_versions", "Versions in memory.", registry=registry)
        self.swap = Histogram(
            "lifelist_swap_duration_seconds", "A replica's part of a swap.", ["phase"], buckets=PHASE, registry=registry
        )
        self.failed_swaps = Counter(
            "lifelist_swap_failures_total", "Phases of a swap that failed.", ["phase"], registry=registry
        )
        self.audited = Counter("lifelist_audited", "Images whose answers were marked for the audit.", registry=registry)
        self.of_code = functools.cache(self.requests.labels)  # to look a series up takes longer than to count
        for code in CODES:
            self.of_code(code)
        for phase in PHASES:
            self.swap.labels(phase)
            self.failed_swaps.labels(phase)

    def now_live(self, loaded: Loaded) -> None:
        """Show which version answers, and no other."""
        self.live.clear()
        manifest = loaded.manifest
        self.answers.keep({entry.id for entry in manifest.answerable})
        self.live.labels(
            str(loaded.version),
            str(len(manifest.answerable)),
            manifest.default_answer,
            loaded.provider,
            loaded.precision,
        ).set(1)

    def answered(self, class_id: int, kind: AnswerKind, audit: bool = False) -> None:
        """Count one image's answer."""
        self.answers.add(class_id, kind)
        if audit:
            self.audited.inc()


class Measured:
    """An ASGI application whose requests are counted and timed, whatever becomes of them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        code, began = CLIENT_LEFT, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = str(message["status"])
            await send(message)

        self.metrics.inflight.inc()
        try:
            await self.app(scope, receive, noting)
        finally:
            self.metrics.inflight.dec()
            if scope.get(CALLER) != PROBE:
                self.metrics.of_code(code).inc()
                self.metrics.request_duration.observe(time.perf_counter() - began)
        return None


@dataclass(frozen=True, slots=True)
class Family:
    """A metric and its samples, as they travel from a replica to the operator."""

    name: str
    documentation: str
    type: str
    samples: tuple[tuple[str, tuple[tuple[str, str], ...], float], ...]  # name, labels, value


def snapshot(registry: CollectorRegistry) -> tuple[Family, ...]:
    """Everything in a registry, as plain data."""
    return tuple(
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            tuple(
                (sample.name, tuple(sample.labels.items()), sample.value)
                for sample in metric.samples
                if not sample.name.endswith("_created")  # when a series began: of use to nobody here
            ),
        )
        for metric in registry.collect()
    )


class Merged(Collector):
    """Snapshots of several replicas as one collector: each sample gets the label `replica`."""

    def __init__(self, snapshots: Mapping[str, Iterable[Family]]) -> None:
        self.snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        """One family for each name, with the samples of all replicas."""
        families: dict[str, Metric] = {}
        for replica, snapshot_ in sorted(self.snapshots.items()):
            for family in snapshot_:
                metric = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for name, labels, value in family.samples:
                    metric.add_sample(name, {"replica": replica, **dict(labels)}, value)
        yield from families.values()
