"""Watching over HTTP: accuracy from every source with its intervals, drift, alarms, and what happened."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Query

from lifelist.client.answers import (
    AlarmList,
    AlarmState,
    BiasOf,
    BiasRow,
    ClassName,
    ConfusedPair,
    Confusions,
    Doubt,
    DriftTest,
    DriftTests,
    Figure,
    NoticeRow,
    Notices,
    Point,
    QualityCurve,
    QualityOf,
)
from lifelist.deploy import outcome
from lifelist.deploy.desk import With
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import BadInput, Unavailable
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry
from lifelist.monitoring import confusions, figures, notices, quality, times
from lifelist.monitoring.figures import HOUR, NONE
from lifelist.monitoring.quality import Asked

routes = APIRouter(tags=["quality"])

LARGEST = 2**31 - 1

Moment = Annotated[str, Query(max_length=40, description="RFC 3339, or so long ago: 90m, 24h, 7d")]
GroupName = Literal["all", "old", "new", "unseen", "class"]
SourceName = Literal["feedback", "audit", "probe", "estimated"]
VersionNumber = Annotated[int | None, Query(ge=1, le=LARGEST)]


def _wanted(
    since: Moment = "24h",
    until: Moment | None = None,
    group: GroupName | None = None,
    source: SourceName | None = None,
    version: VersionNumber = None,
) -> Asked:
    """Which figures: the parameters that /v1/quality and its curve have in common."""
    return _asked(since, until, group, source, version)


Wanted = Annotated[Asked, Depends(_wanted)]


@routes.get("/v1/quality")
def quality_of(workshop: With, asked: Wanted) -> QualityOf:
    """How right the answers of a time were: by the version that gave them, by source, of all, old and new classes.

    `group=class` has a row for each class: its recall. Classes are counted by the hour, so their time is one of whole
    hours up to now, which `since` and `until` in the answer name. Where an estimate may be wrong, `doubts` says why.
    """
    live = _live(workshop)
    found = quality.totals(workshop.store, workshop.registry, asked)
    begins, ends = times.text(asked.since), times.text(asked.until)
    return {
        "since": begins,
        "until": ends,
        "live": live.version,
        "figures": [row for _, row in _shown(workshop, found, live)],
        "doubts": _doubts(workshop, asked, found),
    }


@routes.get("/v1/quality/curve")
def quality_curve(
    workshop: With, asked: Wanted, class_id: Annotated[int | None, Query(ge=0, le=LARGEST)] = None
) -> QualityCurve:
    """The same figures stretch by stretch, at most some hundred of them. `class_id`: of one class, with group=class."""
    if class_id is not None:
        if asked.groups != ("class",):
            raise BadInput("class_id is one of group=class; give both")
        asked = replace(asked, classes=(class_id,))
    live = _live(workshop)
    rows = _shown(workshop, quality.curve(workshop.store, workshop.registry, asked), live)
    points = [cast(Point, {"at": at, **row}) for at, row in rows]
    return {
        "since": times.text(asked.since),
        "until": times.text(asked.until),
        "live": live.version,
        "seconds": asked.seconds,
        "points": points,
    }


@routes.get("/v1/quality/confusions")
def quality_confusions(
    workshop: With,
    since: Moment = "24h",
    until: Moment | None = None,
    source: Literal["feedback", "probe"] = "probe",
    version: VersionNumber = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 50,
) -> Confusions:
    """Which classes a version, live unless given, takes for which others, most images first.

    Gate images are counted by the day, so that the days of `since` and `until` are in it as wholes; each counts once,
    however often it was probed.
    """
    asked, live = _asked(since, until), _live(workshop)
    of_version = live if version is None else workshop.registry.manifest(version)
    counts = confusions.found(workshop.store, workshop.registry, asked.since, asked.until, of_version.version, source)
    titles = _titles(workshop.registry, [live.version, of_version.version])

    def named(class_id: int) -> ClassName:
        return {"id": class_id, "name": titles[class_id]}

    pairs: list[ConfusedPair] = [
        {
            "truth": named(one.truth),
            "predicted": named(one.predicted),
            "images": one.images,
            "ratio": cast(float, one.share.ratio),
            "low": cast(float, one.share.low),
            "high": cast(float, one.share.high),
        }
        for one in confusions.worst(counts, limit)
    ]
    right = sum(images for (truth, predicted), images in counts.items() if truth == predicted)
    totals = {
        "version": of_version.version,
        "source": source,
        "images": round(sum(counts.values())),
        "right": round(right),
    }
    between = {"since": times.text(asked.since), "until": times.text(asked.until)}
    return cast(Confusions, {**between, **totals, "pairs": pairs})


@routes.get("/v1/quality/bias")
def quality_bias(
    workshop: With, since: Moment = "24h", until: Moment | None = None, version: VersionNumber = None
) -> BiasOf:
    """How often the classes of the latest increment are answered, beside how often they are shown.

    By the version that is live, or another: of its held-out images, as its answers were before and after correction;
    and of the gate images and labels of a time.
    """
    asked, live = _asked(since, until), _live(workshop)
    of_version = live if version is None else workshop.registry.manifest(version)
    counted: dict[str, confusions.Confusion] = dict(outcome.confusions_of(workshop, of_version))
    for source in ("probe", "feedback"):
        counted[source] = confusions.found(
            workshop.store, workshop.registry, asked.since, asked.until, of_version.version, source
        )
    rows = [(name, confusions.bias(counts, of_version.newest)) for name, counts in counted.items()]
    shown: list[BiasRow] = [
        {
            "of": cast(Any, name),
            "images": found.images,
            "shown": found.shown,
            "ratio": cast(float, found.answered.ratio),
            "low": cast(float, found.answered.low),
            "high": cast(float, found.answered.high),
        }
        for name, found in rows
        if found is not None
    ]
    return {
        "since": times.text(asked.since),
        "until": times.text(asked.until),
        "version": of_version.version,
        "new": sorted(of_version.newest),
        "rows": shown,
    }


@routes.get("/v1/alarms")
def alarms(workshop: With) -> AlarmList:
    """What is wrong now, and what was."""
    found = sorted(notices.alarms(workshop.store), key=lambda one: (one.state != "raised", one.name))
    shown = [{"name": one.name, "state": one.state, "since": one.since, "message": one.message} for one in found]
    return {"alarms": cast(list[AlarmState], shown)}


@routes.get("/v1/drift")
def drift(workshop: With) -> DriftTests:
    """Whether what the live version is asked looks as what it was held against: the latest result of each test."""
    live = _live(workshop)
    rows = [cast(DriftTest, row) for row in quality.drift_tests(workshop.store, live.version)]
    return {"live": live.version, "tests": rows}


@routes.get("/v1/notices")
def noticed(
    workshop: With,
    after: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Notices:
    """What happened, the latest first: swaps, alarms raised and over. `after`: only those with a larger id."""
    return {"notices": [cast(NoticeRow, asdict(one)) for one in notices.told(workshop.store, after, limit)]}


def _asked(since: str, until: str | None, group: Any = None, source: Any = None, version: int | None = None) -> Asked:
    now = time.time()
    begins, ends = times.moment(since, now), now if until is None else times.moment(until, now)
    if begins >= ends:
        raise BadInput(f"since ({times.text(begins)}) should be before until ({times.text(ends)})")
    if group == "class":  # by the hour: one that has begun by `since` is in it, and in no time that ends there
        begins -= begins % HOUR
        ends = ends if until is None else max(ends - ends % HOUR, begins + HOUR)
    return Asked(
        since=begins,
        until=ends,
        groups=("all", "old", "new", "unseen") if group is None else (group,),
        sources=None if source is None else (source,),
        versions=None if version is None else (version,),
    )


def _doubts(workshop: Workshop, asked: Asked, found: Sequence[figures.Figure]) -> list[Doubt]:
    """What speaks against the estimates among these figures."""
    options, estimated = workshop.settings.monitoring, sorted({f.version for f in found if f.source == "estimated"})
    return [
        {"version": version, "message": message}
        for version in reversed(estimated)
        for message in quality.doubts(workshop.store, workshop.registry, options, version, asked.since, asked.until)
    ]


def _live(workshop: Workshop) -> Manifest:
    if (live := workshop.live) is None:
        raise Unavailable("no version is live; make one: lifelist base DATA")
    return live


def _shown(workshop: Workshop, found: list[figures.Figure], live: Manifest) -> list[tuple[str, Figure]]:
    titles = _titles(workshop.registry, [live.version, *{one.version for one in found if one.class_id != NONE}])
    shown = []
    for one in found:
        share = quality.share(one, workshop.registry)
        is_class = one.class_id != NONE
        row: Figure = {
            "version": one.version,
            "source": one.source,
            "group": one.group,
            "class_id": one.class_id if is_class else None,
            "name": titles.get(one.class_id) if is_class else None,
            "images": one.images,
            "ratio": None if one.group == "unseen" else share.ratio,
            "low": None if one.group == "unseen" else share.low,
            "high": None if one.group == "unseen" else share.high,
        }
        shown.append((one.at, row))
    return shown


def _titles(registry: Registry, versions: Sequence[int]) -> dict[int, str]:
    """What classes are called: by the first of the versions that knows them."""
    found: dict[int, str] = {}
    for version in (number for number in versions if number in registry.versions()):
        for entry in registry.manifest(version).entries:
            found.setdefault(entry.id, entry.name)
    return found
