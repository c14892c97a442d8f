"""The figures as people are shown them: from every source, with their intervals, and how they went."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lifelist.exporter.errors import Missing
from lifelist.exporter.registry import Registry
from lifelist.monitoring import feedback, figures
from lifelist.monitoring.database import Database
from lifelist.monitoring.figures import DAY, HOUR, MINUTE, Figure, Group, Source, over
from lifelist.monitoring.intervals import Share

POINTS = 300  # of a curve, at most: more than that no page shows


@dataclass(frozen=True, slots=True)
class Asked:
    """Which figures. Times are Unix times; None: all of them."""

    since: float
    until: float
    groups: Sequence[Group] = ("all", "old", "new", "unseen")
    sources: Sequence[Source] | None = None
    versions: Sequence[int] | None = None

    @property
    def seconds(self) -> int:
        """How long the stretches of a curve of that time are."""
        return next((s for s in (MINUTE, 5 * MINUTE, HOUR) if (self.until - self.since) / s <= POINTS), DAY)


def totals(database: Database, registry: Registry, asked: Asked) -> list[Figure]:
    """One figure for each version, source and group (and class, of group `class`), over all of the time."""
    found = over(_found(database, registry, asked, DAY, whole=True), None)
    return sorted(found, key=lambda one: (-one.version, one.source, one.group, one.class_id))


def curve(database: Database, registry: Registry, asked: Asked) -> list[Figure]:
    """The same for each stretch of the time, in order of time."""
    finest = MINUTE if asked.seconds < HOUR else asked.seconds
    return over(_found(database, registry, asked, finest), asked.seconds)


def share(figure: Figure, registry: Registry) -> Share:
    """The share of right answers with its interval; of an estimate, that of the calibration behind it included."""
    found = figure.share
    if figure.source != "estimated" or found.ratio is None:
        return found
    calibrated = _calibrated_on(registry, figure)
    both = found.total * calibrated / (found.total + calibrated) if calibrated else 0.0
    return Share.of(found.ratio * both, both)


def _calibrated_on(registry: Registry, figure: Figure) -> float:
    """Held-out images behind the estimates of a version, in the part that its classes have in all."""
    try:
        manifest = registry.manifest(figure.version)
    except Missing:
        return 0.0
    kinds = manifest.confidences
    fitted = kinds and getattr(kinds, manifest.default_answer)
    if not fitted:
        return 0.0
    known, newest = len(manifest.answerable), len(manifest.newest)
    part = {"all": known, "old": known - newest, "new": newest}.get(figure.group, 1)
    return float(fitted.images * part / known)


def _found(database: Database, registry: Registry, asked: Asked, seconds: int, whole: bool = False) -> Iterable[Figure]:
    chosen: dict[str, Any] = {"groups": asked.groups, "sources": asked.sources, "versions": asked.versions}
    yield from figures.read(database, asked.since, asked.until, **chosen, whole=whole)
    if asked.sources is None or {"feedback", "audit"} & set(asked.sources):
        for figure in feedback.figures(database, registry, asked.since, asked.until, seconds):
            is_asked = asked.sources is None or figure.source in asked.sources
            if (
                is_asked
                and figure.group in asked.groups
                and (asked.versions is None or figure.version in asked.versions)
            ):
                yield figure
