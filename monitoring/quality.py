"""The figures as people are shown them: from every source, with their intervals, and how they went."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from scipy import stats

from lifelist.exporter.errors import Missing
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry
from lifelist.monitoring import feedback, figures, tables, times
from lifelist.monitoring.database import Database
from lifelist.monitoring.figures import DAY, HOUR, MINUTE, NONE, Figure, Group, Source, over
from lifelist.monitoring.intervals import Share
from lifelist.monitoring.options import MonitoringOptions

POINTS = 300  # of a curve, at most: more than that no page shows


@dataclass(frozen=True, slots=True)
class Asked:
    """Which figures. Times are Unix times; None: all of them."""

    since: float
    until: float
    groups: Sequence[Group] = ("all", "old", "new", "unseen")
    sources: Sequence[Source] | None = None
    versions: Sequence[int] | None = None
    classes: Sequence[int] | None = None  # of group "class"

    @property
    def seconds(self) -> int:
        """How long the stretches of a curve of that time are."""
        finest = HOUR if tuple(self.groups) == ("class",) else MINUTE  # single classes are counted by the hour
        lengths = (MINUTE, 5 * MINUTE, HOUR)
        return next((s for s in lengths if s >= finest and (self.until - self.since) / s <= POINTS), DAY)


def totals(database: Database, registry: Registry, asked: Asked) -> list[Figure]:
    """One figure for each version, source and group (and class, of group `class`), over all of the time."""
    found = map(_counted, over(_found(database, registry, asked, DAY, whole=True), None))
    return sorted(found, key=lambda one: (-one.version, one.source, one.group, one.class_id))


def curve(database: Database, registry: Registry, asked: Asked) -> list[Figure]:
    """The same for each stretch of the time, in order of time."""
    finest = MINUTE if asked.seconds < HOUR else asked.seconds
    return [_counted(one) for one in over(_found(database, registry, asked, finest), asked.seconds)]


def share(figure: Figure, registry: Registry) -> Share:
    """The share of right answers with its interval; of an estimate, that of the calibration behind it included.

    Of less than half an image nothing is said: classes that no image is likely to be of, in so short a time.
    """
    found = figure.share
    if figure.source != "estimated" or found.ratio is None:
        return found
    if not round(found.total):
        return Share.of(0, 0)
    calibrated = _calibrated_on(registry, figure)
    both = found.total * calibrated / (found.total + calibrated) if calibrated else 0.0
    return Share.of(found.ratio * both, both)


def doubts(
    database: Database, registry: Registry, options: MonitoringOptions, version: int, since: float, until: float
) -> list[str]:
    """Why the estimates of a version for a time may be wrong, each a sentence; none: nothing speaks against them.

    They assume that an answer which looks so sure is right as often as it was on held-out images. That fails where
    images are otherwise than those, or of a class that nobody has told of: tests for drift see it, in more windows than
    the rate of their false alarms lets one expect. It may fail for classes that had no held-out images. And it has
    failed where labels or probes say something else.
    """
    every: tuple[Group, ...] = ("all", "class")
    asked = Asked(since - since % HOUR, until, every, ("estimated", "audit", "probe"), (version,))
    of_hours = {(one.source, one.class_id): one for one in totals(database, registry, asked)}
    exact = {one.source: one for one in totals(database, registry, replace(asked, since=since, groups=("all",)))}
    if "estimated" not in exact:
        return []
    estimate = share(exact["estimated"], registry)
    found = [*_enrolled(registry.manifest(version)), *_drifted(database, options, version, since, until)]
    others = {"the audit": exact["audit"].share} if "audit" in exact else {}
    others["a probe of classes as they come"] = _as_traffic(of_hours)
    for what, other in others.items():
        if estimate.low is None or estimate.high is None or other.low is None or other.high is None:
            continue
        if estimate.high < other.low or other.high < estimate.low:
            found.append(
                f"{what} found {other.ratio:.1%} ({other.low:.1%} to {other.high:.1%}), the estimate is "
                f"{estimate.ratio:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"
            )
    return found


def _enrolled(manifest: Manifest) -> Iterator[str]:
    """A sentence if classes are answered of which there was no held-out image yet."""
    if count := sum(entry.state == "enrolled" for entry in manifest.answerable):
        yield (
            f"{count} of {len(manifest.answerable)} classes were enrolled and not yet trained: there was no held-out "
            "image of them, to see how often answers that look so sure are right"
        )


def _drifted(database: Database, options: MonitoringOptions, version: int, since: float, until: float) -> Iterator[str]:
    """A sentence if images were otherwise than held-out ones; that of classes alone is no harm to an estimate."""
    c = tables.drift.c
    query = sa.select(c.at, c.window, c.test, c.rejected).where(
        c.version == version, c.at >= times.text(since), c.at < times.text(until), c.test != "classes"
    )
    windows: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    with database.reading() as connection:
        for row in connection.execute(query):
            windows[row.at, row.window].update([row.test] if row.rejected else [])
    rejected = [tests for tests in windows.values() if tests]
    if rejected and len(rejected) > stats.binom.ppf(1 - options.false_alarms, len(windows), options.false_alarms):
        tests = ", ".join(name for name, _ in Counter(name for tests in rejected for name in tests).most_common())
        yield (
            f"images are otherwise than the held-out ones in {len(rejected)} of {len(windows)} windows of answers, "
            f"by {tests}"
        )


def _as_traffic(found: Mapping[tuple[Source, int], Figure]) -> Share:
    """What a probe says, its classes weighed as they come in traffic: by their estimated images."""
    right = total = squares = 0.0
    for (source, class_id), probed in found.items():
        traffic = found.get(("estimated", class_id))
        if source == "probe" and class_id != NONE and traffic is not None:
            weight = traffic.total / probed.total  # of one gate image
            right += weight * probed.right
            total += weight * probed.total
            squares += weight * weight * probed.total
    return Share.of_weights(right, total, squares)


def _counted(one: Figure) -> Figure:
    """With the images that its interval rests on.

    Probes ask about the same images again and again: what they are on average, as one round of them. Images that were
    looked at are of a class in part, and their parts add up, not what each rounds to.
    """
    if one.source == "estimated":
        return replace(one, images=round(one.share.total))
    if one.source != "probe" or one.rounds <= 1:
        return one
    sums = {name: getattr(one, name) / one.rounds for name in ("total", "right", "squares")}
    return replace(one, images=round(one.images / one.rounds), rounds=1, **sums)


def _calibrated_on(registry: Registry, figure: Figure) -> float:
    """Held-out images behind the estimates of a version, in the part that its classes have in all."""
    images, known, newest = _calibration(registry, figure.version)
    part = {"all": known, "old": known - newest, "new": newest}.get(figure.group, 1)
    return images * part / known


@functools.lru_cache(64)  # a version never changes, and each row of a table of its classes asks
def _calibration(registry: Registry, version: int) -> tuple[int, int, int]:
    """(held-out images that a version's confidence was fitted to, classes that it answers, of which are newest)."""
    try:
        manifest = registry.manifest(version)
    except Missing:
        return 0, 1, 0
    fitted = manifest.confidences and getattr(manifest.confidences, manifest.default_answer)
    return (fitted.images if fitted else 0), len(manifest.answerable), len(manifest.newest)


def _found(database: Database, registry: Registry, asked: Asked, seconds: int, whole: bool = False) -> Iterable[Figure]:
    chosen: dict[str, Any] = {
        "groups": asked.groups, "sources": asked.sources, "versions": asked.versions, "classes": asked.classes
    }  # fmt: skip
    yield from figures.read(database, asked.since, asked.until, **chosen, whole=whole)
    if asked.sources is None or {"feedback", "audit"} & set(asked.sources):
        for figure in feedback.figures(database, registry, asked.since, asked.until, seconds):
            if figure.group in asked.groups and all(
                wanted is None or given in wanted
                for given, wanted in (
                    (figure.source, asked.sources), (figure.version, asked.versions), (figure.class_id, asked.classes)
                )
            ):  # fmt: skip
                yield figure


def drift_tests(database: Database, version: int) -> list[dict[str, Any]]:
    """The latest result of each test of each window, of the answers of a version; keys as in tables.drift."""
    c = tables.drift.c
    latest = (
        sa.select(c.window, c.test, sa.func.max(c.at).label("at"))
        .where(c.version == version)
        .group_by(c.window, c.test)
        .subquery()
    )
    same = (c.window == latest.c.window) & (c.test == latest.c.test) & (c.at == latest.c.at)
    query = sa.select(tables.drift).join(latest, same).where(c.version == version).order_by(c.window, c.test)
    with database.reading() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]
