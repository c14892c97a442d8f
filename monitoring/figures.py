"""How many answers were right, in SQL: by time, version, source, and group of classes; and never more rows than that.

A figure is a sum over a stretch of time: of a minute at first, of an hour or a day when it is old. Figures of single
classes are by the hour from the start.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal

import sqlalchemy as sa

from lifelist.monitoring import tables, times
from lifelist.monitoring.database import Database, put
from lifelist.monitoring.intervals import Share
from lifelist.monitoring.options import DAY_S, MonitoringOptions

# labels that users sent; those of the audit sample, by weight; gate images; no labels at all
Source = Literal["feedback", "audit", "probe", "estimated"]
Group = Literal["all", "old", "new", "unseen", "class"]  # unseen: labels of classes that the version could not name

MINUTE, HOUR, DAY = 60, 3600, 86_400
NONE = -1  # in place of a class id, of rows that are of no single class
SUMS = ("images", "total", "right", "squares", "rounds")


@dataclass(frozen=True, slots=True)
class Figure:
    """Images of a stretch of time, a version and a group of classes: sums of weights, which are 1 but for audits."""

    at: str  # where the stretch begins
    seconds: int  # how long it is
    version: int
    source: Source
    group: Group
    class_id: int  # of group "class"; else NONE
    images: int
    total: float  # of all images
    right: float  # of those whose answer was right
    squares: float  # of the squares of all weights
    rounds: int = 1  # in how many of them it was counted; of probes, each asks about the same images

    @property
    def share(self) -> Share:
        """The share of right answers. Probes of the same images again and again are worth as much as one of them."""
        rounds = self.rounds if self.source == "probe" else 1
        return Share.of_weights(self.right, self.total, self.squares * rounds)


_KEYS = tuple(field.name for field in fields(Figure) if field.name not in SUMS)


def stretch(at: float, seconds: int) -> str:
    """Where the stretch of so many seconds begins that a Unix time is in."""
    return times.text(at - at % seconds)


def add(connection: sa.Connection, figures: Iterable[Figure]) -> None:
    """Add figures to what is there of their stretch, version, source and group."""
    rows = [dict(zip((*_KEYS, *SUMS), astuple(figure), strict=True)) for figure in together(figures)]
    put(connection, tables.figures, rows, adding=SUMS)


def together(figures: Iterable[Figure]) -> list[Figure]:
    """Figures of the same stretch, version, source and group, added up; in order."""
    sums: defaultdict[tuple[object, ...], list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0, 0])
    for figure in figures:
        found = sums[tuple(getattr(figure, name) for name in _KEYS)]
        for place, name in enumerate(SUMS):
            found[place] += getattr(figure, name)
    return [Figure(*key, *values) for key, values in sorted(sums.items())]  # type: ignore[arg-type]


def over(figures: Iterable[Figure], seconds: int | None) -> list[Figure]:
    """The same figures over longer stretches; None: over all time that they are of, which begins at the first."""
    found = list(figures)
    first, last = (choose((times.unix(f.at) for f in found), default=0.0) for choose in (min, max))
    whole = seconds is None
    length = max(MINUTE, int(last - first)) if seconds is None else seconds
    return together(
        Figure(
            times.text(first) if whole else stretch(times.unix(f.at), max(length, f.seconds)),
            length if whole else max(length, f.seconds),
            *(getattr(f, name) for name in (*_KEYS[2:], *SUMS)),
        )
        for f in found
    )


def read(
    database: Database,
    since: float,
    until: float,
    *,
    groups: Sequence[Group] = ("all", "old", "new"),
    sources: Sequence[Source] | None = None,
    versions: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    whole: bool = False,
) -> list[Figure]:
    """What is stored of a time, Unix times, in order. A stretch counts that begins in it.

    whole: all stretches added up, as one that begins with the first.
    """
    c = tables.figures.c
    columns: list[sa.ColumnElement[Any]] = [c[name] for name in (*_KEYS, *SUMS)]
    if whole:
        sums = (sa.func.sum(c[name]).label(name) for name in SUMS)
        columns = [sa.func.min(c.at).label("at"), sa.literal(0).label("seconds"), *(c[k] for k in _KEYS[2:]), *sums]
    query = sa.select(*columns).where(c.at >= times.text(since), c.at < times.text(until), c.group.in_(groups))
    if whole:
        query = query.group_by(*(c[k] for k in _KEYS[2:]))
    if sources is not None:
        query = query.where(c.source.in_(sources))
    if versions is not None:
        query = query.where(c.version.in_(versions))
    if classes is not None:
        query = query.where(c.class_id.in_(classes))
    with database.reading() as connection:
        return sorted((Figure(*row) for row in connection.execute(query)), key=lambda one: (one.at, one.version))


def compact(database: Database, options: MonitoringOptions, at: float) -> int:
    """Make old figures coarser, and let go of the oldest; how many rows that saves. Nothing is counted twice."""
    c, saved = tables.figures.c, 0
    for seconds, days in ((HOUR, options.raw_days), (DAY, options.hourly_days)):
        before = stretch(at - days * DAY_S, seconds)
        finer = (c.seconds < seconds) & (c.at < before)
        with database.writing() as connection:  # together, so that a kill leaves the one or the other
            rows = connection.execute(sa.select(*(c[name] for name in (*_KEYS, *SUMS))).where(finer)).all()
            coarser = over((Figure(*row) for row in rows), seconds)
            connection.execute(tables.figures.delete().where(finer))
            add(connection, coarser)
        saved += len(rows) - len(coarser)
    oldest = times.text(at - options.daily_days * DAY_S)
    with database.writing() as connection:
        for table in (tables.figures, tables.confusions, tables.drift, tables.notices):
            saved += connection.execute(table.delete().where(table.c.at < oldest)).rowcount
        raw = times.text(at - options.hourly_days * DAY_S)
        saved += connection.execute(tables.drift.delete().where(tables.drift.c.at < raw)).rowcount
    return saved
