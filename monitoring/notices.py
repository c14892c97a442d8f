"""What happened, in order: swaps, alarms and their end, probes that failed. And which alarms are raised."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from lifelist.monitoring import tables, times
from lifelist.monitoring.database import Database, put
from lifelist.monitoring.drift import Alarm

LOST = ("answers", "images")  # that nobody watched; that were to be kept for review


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened."""

    id: int
    at: str
    kind: str
    version: int | None
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm as it stands."""

    name: str
    state: str  # quiet, raised
    since: str
    in_a_row: int
    message: str


def tell(database: Database, kind: str, message: str, version: int | None = None, **data: Any) -> int:
    """Add a notice; its id."""
    row = {"at": times.now(), "kind": kind, "version": version, "message": message, "data": data}
    with database.writing() as connection:
        return int(connection.execute(tables.notices.insert().values(row).returning(tables.notices.c.id)).scalar_one())


def told(database: Database, after: int = 0, limit: int = 100, kinds: Sequence[str] | None = None) -> list[Notice]:
    """At most `limit` notices with an id above `after`, the latest first."""
    c = tables.notices.c
    query = sa.select(c.id, c.at, c.kind, c.version, c.message, c.data).where(c.id > after)
    if kinds is not None:
        query = query.where(c.kind.in_(kinds))
    with database.reading() as connection:
        return [Notice(*row) for row in connection.execute(query.order_by(c.id.desc()).limit(limit))]


def last_id(database: Database) -> int:
    """The id of the latest notice; 0 before the first."""
    with database.reading() as connection:
        return connection.scalar(sa.select(sa.func.max(tables.notices.c.id))) or 0


def alarms(database: Database) -> list[Raised]:
    """All alarms that were ever looked at, by name."""
    c = tables.alarms.c
    query = sa.select(c.name, c.state, c.since, c.in_a_row, c.message).order_by(c.name)
    with database.reading() as connection:
        return [Raised(*row) for row in connection.execute(query)]


class Losses:
    """What could not be kept or looked at, counted until it can be told: in `losses` for good, and by a notice."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._untold: Counter[str] = Counter()
        self._since = ""

    def add(self, what: str, lost: int) -> None:
        """So many more of "answers" or "images" are lost. Nothing is written yet."""
        if not lost:
            return
        self._since = self._since or times.now()
        self._untold[what] += lost

    def tell(self) -> None:
        """Write down what was lost, if anything was. Raises what the database does, and then nothing is told yet."""
        if not self._untold:
            return
        rows = [{"what": what, "lost": lost} for what, lost in self._untold.items()]
        lost = " and ".join(f"{lost:,} {what}" for what, lost in sorted(self._untold.items()))
        row = {
            "at": times.now(),
            "kind": "lost",
            "version": None,
            "message": f"since {self._since} {lost} could not be looked at or kept: see the log; it works again",
            "data": dict(self._untold) | {"since": self._since},
        }
        with self.database.writing() as connection:
            put(connection, tables.losses, rows, adding=("lost",))
            connection.execute(tables.notices.insert().values(row))
        self._untold.clear()
        self._since = ""


def lost(database: Database) -> dict[str, int]:
    """What was lost in all, of `LOST`."""
    with database.reading() as connection:
        rows = connection.execute(sa.select(tables.losses.c.what, tables.losses.c.lost)).all()
    found = {row.what: row.lost for row in rows}
    return {what: found.get(what, 0) for what in LOST}


class Alarms:
    """The alarms of one watcher: hysteresis, kept in the database so that a restart raises nothing twice."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._known = {one.name: one for one in alarms(database)}

    def look(
        self,
        name: str,
        wrong: bool,
        message: str,
        version: int | None,
        raise_after: int = 1,
        clear_after: int = 1,
        **data: Any,
    ) -> str | None:
        """One more look at an alarm: "alarm" if that raised it, "cleared" if it is over, else None."""
        before = self._known.get(name) or Raised(name, "quiet", times.now(), 0, "")
        after = Alarm(before.state == "raised", before.in_a_row).after(wrong, raise_after, clear_after)
        turned = after.raised != (before.state == "raised")
        state = "raised" if after.raised else "quiet"
        shown = message if wrong or turned else before.message
        now = Raised(name, state, times.now() if turned else before.since, after.in_a_row, shown)
        if now == before and name in self._known:
            return None
        row = {"name": name, "state": state, "since": now.since, "in_a_row": now.in_a_row, "message": shown}
        with self.database.writing() as connection:
            put(connection, tables.alarms, [row])
        self._known[name] = now
        if not turned:
            return None
        kind = "alarm" if after.raised else "cleared"
        tell(self.database, kind, message, version, alarm=name, **data)
        return kind

    def untested(self, name: str, version: int) -> None:
        """Of this version nothing can be said: if the alarm was raised, of another one, it is over."""
        if name in self._known and self._known[name].state == "raised":
            self.look(name, False, f"version {version} has nothing to test it by", version)

    def end(self, message: str) -> None:
        """All alarms that are raised are over; message: why."""
        for name in [one.name for one in self._known.values() if one.state == "raised"]:
            self.look(name, False, message, None)
