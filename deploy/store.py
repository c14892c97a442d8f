"""What must survive, in SQL: classes, rollouts with their steps and events. examples.py and feedback.py hold the rest.

Every method is one transaction. A rollout is only ever moved from the state that its caller read (compare-and-swap),
so two processes that carry the same one cannot both take a step.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import sqlalchemy as sa

from lifelist.client.answers import ENDED
from lifelist.deploy import tables
from lifelist.deploy.records import Event, KnownClass, Rollout, StepRecord, now
from lifelist.exporter.errors import Conflict, Missing, Moved
from lifelist.monitoring import times

QUEUED = "queued"  # the state before the first step
SETTLED = frozenset({"swap", "tidy"})  # live is moving or has moved: too late to cancel

log = logging.getLogger(__name__)


class Store:
    """A database of rollouts. Opened by each process for itself; threads may share one."""

    def __init__(self, url: str) -> None:
        self.engine = tables.connect(url)

    def close(self) -> None:
        """Give the connections back. The store opens new ones if it is used again."""
        self.engine.dispose()

    def writing(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that commits at the end of the block, or leaves nothing."""
        return self.engine.begin()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads: it neither waits for a writer nor makes one wait."""
        with self.engine.connect() as connection:
            yield connection.execution_options(only_reads=True)

    def is_writable(self) -> bool:
        """Whether a small write succeeds now: the database is neither away nor full, nor locked for a second."""
        try:
            tables.heartbeat(self.engine)
        except sa.exc.SQLAlchemyError as error:
            log.warning("database.refused", extra={"facts": {"reason": str(error)}})
            return False
        return True

    def exclusive(self) -> AbstractContextManager[bool]:
        """The one lock of those who carry rollouts: whether it was got. It dies with the process that holds it."""
        return tables.exclusive(self.engine)

    # Classes

    def classes(self) -> list[KnownClass]:
        """All classes, in order of arrival, by the names under which they came (naming.py has what they are called)."""
        query = sa.select(tables.classes.c.id, tables.classes.c.name).order_by(tables.classes.c.id)
        with self.reading() as connection:
            return [KnownClass(*row) for row in connection.execute(query)]

    # Rollouts

    def rollout(self, rollout_id: int) -> Rollout:
        """One rollout, or Missing."""
        with self.reading() as connection:
            row = connection.execute(sa.select(tables.rollouts).where(tables.rollouts.c.id == rollout_id)).first()
        if row is None:
            raise Missing(f"no increment has id {rollout_id}")
        return _rollout(row)

    def rollout_of(self, request_key: str) -> Rollout | None:
        """The rollout that was asked for with this idempotency key, or None."""
        with self.reading() as connection:
            query = sa.select(tables.rollouts).where(tables.rollouts.c.request_key == request_key)
            row = connection.execute(query).first()
        return None if row is None else _rollout(row)

    def rollouts(self, most: int | None = None) -> list[Rollout]:
        """All of them, or so many, the latest first."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(tables.rollouts).order_by(tables.rollouts.c.id.desc()).limit(most))
            return [_rollout(row) for row in rows]

    def states(self) -> dict[str, int]:
        """How many rollouts are in each state that any is in."""
        c = tables.rollouts.c
        with self.reading() as connection:
            rows = connection.execute(sa.select(c.state, sa.func.count()).group_by(c.state))
            return {state: int(count) for state, count in rows}

    def open_rollouts(self) -> list[Rollout]:
        """Those that have not ended, in the order in which they are carried: the running one, then the queue."""
        query = sa.select(tables.rollouts).where(tables.rollouts.c.state.not_in(ENDED)).order_by(tables.rollouts.c.id)
        with self.reading() as connection:
            return [_rollout(row) for row in connection.execute(query)]

    def add_rollout(
        self,
        method: str,
        class_ids: Sequence[int],
        request_key: str | None = None,
        warnings: Sequence[tuple[str, str]] = (),
    ) -> Rollout:
        """Queue a rollout; a `request_key` that is there already gives the rollout it asked for, whatever became of it.

        warnings: (what, message), told at once. Conflict if an open rollout has one of the classes.
        """
        wanted = sorted(set(class_ids))
        with self.writing() as connection:
            lock_classes(connection, wanted)
            asked = sa.select(tables.rollouts).where(tables.rollouts.c.request_key == request_key)
            if request_key is not None and (row := connection.execute(asked).first()) is not None:
                return _rollout(row)
            if (other := open_rollout_of(connection, wanted)) is not None:
                both = sorted(set(wanted) & set(other.class_ids))
                raise Conflict(
                    f"classes {both} are already in increment {other.id} ({other.state}); "
                    "wait until it ends, or cancel it"
                )
            at = now()
            values: dict[str, Any] = {
                "state": QUEUED,
                "method": method,
                "request_key": request_key,
                "class_ids": wanted,
            }
            values |= {"cancel_requested": False, "facts": {}, "created_at": at, "updated_at": at}
            wanted_again = tables.classes.update().where(tables.classes.c.id.in_(wanted)).values(withdrawn_at=None)
            connection.execute(wanted_again)
            insert = tables.rollouts.insert().values(values).returning(tables.rollouts.c.id)
            rollout_id = int(connection.execute(insert).scalar_one())
            _tell(connection, rollout_id, "state", {"state": QUEUED})
            for what, message in warnings:
                _tell(connection, rollout_id, "warning", {"what": what, "message": message})
        return self.rollout(rollout_id)

    def request_cancel(self, rollout_id: int) -> Rollout:
        """Ask for the end of a rollout: at once if it is queued, else its carrier sees it. Again is the same.

        Conflict once it is being swapped in, or has ended otherwise.
        """
        rollout = self.rollout(rollout_id)
        with self.writing() as connection:
            asked = connection.execute(
                tables.rollouts.update()
                .where(tables.rollouts.c.id == rollout_id, tables.rollouts.c.state.not_in(ENDED | SETTLED))
                .values(cancel_requested=True, updated_at=now())
            ).rowcount
            if asked and not rollout.cancel_requested:
                _tell(connection, rollout_id, "cancel-requested", {})
        rollout = self.rollout(rollout_id)
        if not asked and rollout.state != "cancelled":
            remedy = "it has ended" if rollout.ended else "it is going live; roll back once it is done"
            raise Conflict(f"increment {rollout_id} cannot be cancelled in state {rollout.state!r}: {remedy}")
        if rollout.state == QUEUED:
            try:
                return self.move(rollout, "cancelled", reason="cancelled in the queue")
            except Moved:  # its carrier took it in between, and will see the request
                return self.rollout(rollout_id)
        return rollout

    def fail_step(self, rollout: Rollout) -> int:
        """Note that the step under way raised: how often it has, this time included."""
        c = tables.steps.c
        raised = tables.steps.update().where(c.rollout_id == rollout.id, c.ended_at.is_(None))
        with self.writing() as connection:
            again = raised.values(failures=c.failures + 1).returning(c.failures)
            return int(connection.execute(again).scalar_one())

    def begin_step(self, rollout: Rollout) -> tuple[int, int]:
        """Note that a step begins: how often it has begun, this time included, and in how many of those it raised."""
        with self.writing() as connection:
            row = connection.execute(
                sa.select(tables.steps.c.id, tables.steps.c.attempts, tables.steps.c.failures).where(
                    tables.steps.c.rollout_id == rollout.id,
                    tables.steps.c.state == rollout.state,
                    tables.steps.c.ended_at.is_(None),
                )
            ).first()
            if row is not None:
                update = tables.steps.update().where(tables.steps.c.id == row.id)
                connection.execute(update.values(attempts=row.attempts + 1))
                return int(row.attempts) + 1, int(row.failures)
            values = {"rollout_id": rollout.id, "state": rollout.state, "attempts": 1, "failures": 0}
            connection.execute(tables.steps.insert().values(values | {"began_at": now(), "facts": {}}))
            return 1, 0

    def move(
        self,
        rollout: Rollout,
        to: str,
        facts: Mapping[str, Any] | None = None,
        reason: str | None = None,
        version: int | None = None,
    ) -> Rollout:
        """The rollout in its next state, the step that led there closed with its facts.

        Moved if it is no longer in the state that `rollout` says, or if its cancellation was asked for meanwhile and
        `to` is not an end: look again, and decide anew.
        """
        facts = dict(facts or {})
        at = now()
        with self.writing() as connection:
            conditions = [tables.rollouts.c.id == rollout.id, tables.rollouts.c.state == rollout.state]
            if to not in ENDED:
                conditions.append(tables.rollouts.c.cancel_requested.is_(False))
            if rollout.state == QUEUED:
                lock_classes(connection, rollout.class_ids)  # an example arrives before the first step begins, or after
            values: dict[str, Any] = {"state": to, "facts": {**rollout.facts, **facts}, "updated_at": at}
            values |= {} if reason is None else {"reason": reason}
            values |= {} if version is None else {"version": version}
            if not connection.execute(tables.rollouts.update().where(*conditions).values(values)).rowcount:
                raise Moved(f"increment {rollout.id} is no longer in state {rollout.state!r}, or is to be cancelled")
            connection.execute(
                tables.steps.update()
                .where(tables.steps.c.rollout_id == rollout.id, tables.steps.c.ended_at.is_(None))
                .values(ended_at=at, facts=facts)
            )
            moved = _rollout(
                connection.execute(sa.select(tables.rollouts).where(tables.rollouts.c.id == rollout.id)).one()
            )
            data = {"state": to, "reason": moved.reason, "version": moved.version}
            _tell(connection, rollout.id, "ended" if to in ENDED else "state", data)
        return moved

    def steps(self, rollout_id: int) -> list[StepRecord]:
        """The steps of a rollout, in the order in which they began."""
        c = tables.steps.c
        query = sa.select(c.state, c.attempts, c.began_at, c.ended_at, c.facts)
        with self.reading() as connection:
            return [
                StepRecord(*row) for row in connection.execute(query.where(c.rollout_id == rollout_id).order_by(c.id))
            ]

    def seconds_in(self, state: str, at: str) -> float:
        """For how long rollouts were in a step's state, all together; one that still is, until `at`."""
        c = tables.steps.c
        with self.reading() as connection:
            rows = connection.execute(sa.select(c.began_at, c.ended_at).where(c.state == state)).all()
        return sum(max(0.0, times.unix(ended or at) - times.unix(began)) for began, ended in rows)

    # Events

    def tell(self, rollout_id: int, kind: str, data: Mapping[str, Any], position: int | None = None) -> bool:
        """Add an event. With `position`, only if none of this rollout has it: whether it was new."""
        with self.writing() as connection:
            return _tell(connection, rollout_id, kind, data, position)

    def events(
        self, rollout_id: int | None = None, after: int = 0, limit: int = 1000, kind: str | None = None
    ) -> list[Event]:
        """At most `limit` events with an id above `after`, oldest first; of one rollout, of one kind, or of all."""
        c = tables.events.c
        query = sa.select(c.id, c.rollout_id, c.at, c.kind, c.data).where(c.id > after).order_by(c.id).limit(limit)
        if rollout_id is not None:
            query = query.where(c.rollout_id == rollout_id)
        if kind is not None:
            query = query.where(c.kind == kind)
        with self.reading() as connection:
            return [Event(*row) for row in connection.execute(query)]

    def last_event_id(self) -> int:
        """The id of the last event of all; 0 before the first."""
        with self.reading() as connection:
            return connection.scalar(sa.select(sa.func.max(tables.events.c.id))) or 0

    def latest_event(self, rollout_id: int, kind: str) -> Event | None:
        """The last event of a kind, or None."""
        c = tables.events.c
        query = sa.select(c.id, c.rollout_id, c.at, c.kind, c.data).where(c.rollout_id == rollout_id, c.kind == kind)
        with self.reading() as connection:
            row = connection.execute(query.order_by(c.id.desc()).limit(1)).first()
        return None if row is None else Event(*row)

    def last_position(self, rollout_id: int) -> int:
        """Where the latest line began that was carried from the trainer's events; -1 if none was."""
        query = sa.select(sa.func.max(tables.events.c.position)).where(tables.events.c.rollout_id == rollout_id)
        with self.reading() as connection:
            found = connection.scalar(query)
        return -1 if found is None else int(found)


def lock_classes(connection: sa.Connection, ids: Sequence[int]) -> None:
    """Until the end of the transaction nobody else changes what these classes have. SQLite has one writer anyway."""
    c = tables.classes.c
    connection.execute(sa.select(c.id).where(c.id.in_(ids)).order_by(c.id).with_for_update()).all()


def open_rollout_of(connection: sa.Connection, class_ids: Sequence[int]) -> Rollout | None:
    """The first rollout that has not ended and has one of these classes, or None."""
    c = tables.rollouts.c
    rows = connection.execute(sa.select(tables.rollouts).where(c.state.not_in(ENDED)).order_by(c.id))
    return next((rollout for rollout in map(_rollout, rows) if set(class_ids) & set(rollout.class_ids)), None)


def _tell(
    connection: sa.Connection, rollout_id: int, kind: str, data: Mapping[str, Any], position: int | None = None
) -> bool:
    # The row's lock makes a rollout's events commit in the order of their ids: a reader of `after` misses none.
    touch = tables.rollouts.update().where(tables.rollouts.c.id == rollout_id).values(updated_at=(at := now()))
    connection.execute(touch)
    c = tables.events.c
    carried = sa.select(c.id).where(c.rollout_id == rollout_id, c.position == position)
    if position is not None and connection.execute(carried).first() is not None:
        return False
    values = {"rollout_id": rollout_id, "at": at, "kind": kind, "data": dict(data), "position": position}
    connection.execute(tables.events.insert().values(values))
    return True


def _rollout(row: sa.Row[Any]) -> Rollout:
    values = dict(row._mapping)
    return Rollout(**values | {"class_ids": tuple(values["class_ids"])})
