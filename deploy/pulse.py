"""Live traffic, from what the counters of /metrics gained between two looks."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

REQUESTS, BUCKETS = "lifelist_requests_total", "lifelist_request_duration_seconds_bucket"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went on between two looks. Shares are of all requests; quantiles in seconds, None without a request."""

    rate: float  # requests a second
    errors: float  # share answered 5xx
    refused: float  # share answered 4xx
    p50: float | None
    p99: float | None
    inflight: int
    queued: int  # images
    replicas: int


class Pulse:
    """Looks at the counters of one server."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._last: float | None = None
        self.live: Mapping[str, str] = {}  # what /metrics says of the version that answers

    def look(self, text: str, at: float) -> Traffic | None:
        """What went on since the last look; at: now, in seconds. None at the first, with nothing to compare with."""
        by_code, upto, gauges = (
            defaultdict[str, float](float),
            defaultdict[str, float](float),
            defaultdict[str, float](float),
        )
        live: Mapping[str, str] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == REQUESTS:
                    by_code[sample.labels["code"]] += self._gained(sample.name, sample.labels, sample.value)
                elif sample.name == BUCKETS:
                    upto[sample.labels["le"]] += self._gained(sample.name, sample.labels, sample.value)
                elif sample.name == "lifelist_live_version_info":
                    live = sample.labels
                else:
                    gauges[sample.name] += sample.value
        before, self._last, self.live = self._last, at, live
        if before is None:
            return None
        count = sum(by_code.values())
        counts = {float(bound): images for bound, images in upto.items()}
        return Traffic(
            rate=count / (at - before),
            errors=sum(n for code, n in by_code.items() if code >= "500") / max(1.0, count),
            refused=sum(n for code, n in by_code.items() if "400" <= code < "500") / max(1.0, count),
            p50=quantile(0.5, counts),
            p99=quantile(0.99, counts),
            inflight=int(gauges["lifelist_inflight_requests"]),
            queued=int(gauges["lifelist_queued_images"]),
            replicas=int(gauges["lifelist_replicas_reporting"]),
        )

    def _gained(self, name: str, labels: Mapping[str, str], value: float) -> float:
        """By how much a counter rose; one that was not there began at 0, one that fell is of a replica begun anew."""
        key = name, tuple(sorted(labels.items()))
        before = self._counters.get(key, 0.0)
        self._counters[key] = value
        return value - before if value >= before else value


def quantile(share: float, upto: Mapping[float, float]) -> float | None:
    """The value below which a share of what was counted lies, by straight lines within buckets, as Prometheus does it.

    upto: upper bound → count up to it, infinity included. None if nothing was counted.
    """
    bounds = sorted(upto.items())
    if not bounds or not bounds[-1][1]:
        return None
    wanted, lower, below = share * bounds[-1][1], 0.0, 0.0
    for bound, count in bounds:
        if count >= wanted:
            return lower if bound == float("inf") else lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower
