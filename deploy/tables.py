"""The SQL tables of the update path, and the connection to them: SQLite by default, PostgreSQL by URL."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry

from lifelist.exporter.errors import BadSetting, Conflict
from lifelist.monitoring import tables as watched
from lifelist.monitoring import times
from lifelist.monitoring.database import put

SCHEMA_VERSION = 3
BUSY_TIMEOUT_MS = 30_000  # how long a writer waits for another one's transaction
HEARTBEAT_TIMEOUT_MS = 1000  # how long one does that only tries whether it can write
LOCK_KEY = 0x11FE115  # PostgreSQL's advisory locks are numbers: this one is ours, and the next

metadata = sa.MetaData()

# Times are RFC 3339, UTC, as text. Ids that the database gives are never given twice (AUTOINCREMENT, sequences).
schema = sa.Table("lifelist_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))

classes = sa.Table(
    "classes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False, unique=True),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("withdrawn_at", sa.String(32)),  # an operator took it out of live, and nobody asked for it since
    sqlite_autoincrement=True,
)

examples = sa.Table(
    "examples",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),  # of the encoded file: the image's id
    sa.Column("class_id", sa.ForeignKey("classes.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # the k-th image of its class, from 0: decides the role
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),  # bytes
    sa.Column("added_at", sa.String(32), nullable=False),
    sa.Column("gone_at", sa.String(32)),  # the bytes were deleted; the row stays, so that the role stays
    sa.UniqueConstraint("class_id", "number"),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("method", sa.String(32), nullable=False),
    sa.Column("request_key", sa.String(200), unique=True),
    sa.Column("class_ids", sa.JSON, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),  # what each finished step returned, merged
    sa.Column("reason", sa.Text),
    sa.Column("version", sa.Integer),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("updated_at", sa.String(32), nullable=False),
    sqlite_autoincrement=True,
)

steps = sa.Table(
    "steps",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),  # 2 and more: it was killed, or failed and was tried again
    sa.Column("failures", sa.Integer, nullable=False),  # in how many of them it raised
    sa.Column("began_at", sa.String(32), nullable=False),
    sa.Column("ended_at", sa.String(32)),
    sa.Column("facts", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), nullable=False, index=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("position", sa.Integer),  # byte offset in the trainer's events.jsonl, for its events: carried once
    sa.UniqueConstraint("rollout_id", "position"),
    sqlite_autoincrement=True,
)


def connect(url: str) -> sa.Engine:
    """An engine on a database that has the tables. Any number of processes may open the same one at once.

    BadSetting if `url` names no database we can reach a driver for; Conflict if another schema version made it.
    """
    try:
        engine = sa.create_engine(url, **_ENGINE_OPTIONS.get(sa.make_url(url).get_backend_name(), {}))
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
        raise BadSetting(f"database {url!r}: {error}; write sqlite:///<file> or postgresql+psycopg://…") from error
    if engine.dialect.name == "sqlite":
        if not engine.url.database or engine.url.database == ":memory:":
            raise BadSetting(f"database {url!r} would be gone with its process; write sqlite:///<file>")
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    with engine.begin() as connection:  # SQLite: a writer's lock; PostgreSQL: until the end of the transaction
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_KEY)))
        schema.create(connection, checkfirst=True)
        found = connection.scalar(sa.select(schema.c.version))
        if found == 2:
            found = _upgraded(connection)
        if found not in (None, SCHEMA_VERSION):
            raise Conflict(
                f"the database has schema {found}; this program reads {SCHEMA_VERSION}. Use the program that made it"
            )
        for tables in (metadata, watched.metadata):
            tables.create_all(connection)
        if found is None:
            connection.execute(schema.insert().values(version=SCHEMA_VERSION))
    return engine


def _upgraded(connection: sa.Connection) -> int:
    """Schema 3 of 2: a label knows when its answer was given, if that was drawn for the audit, who asked for it."""
    c = watched.feedback.c
    for column in (c.predicted_at, c.weight, c.via):
        kind = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
        connection.execute(sa.text(f"ALTER TABLE feedback ADD COLUMN {kind}"))
    for index in watched.feedback.indexes:
        index.create(connection, checkfirst=True)
    connection.execute(watched.feedback.update().values(predicted_at=c.at))  # nobody noted it; it was not much earlier
    connection.execute(schema.update().values(version=SCHEMA_VERSION))
    return SCHEMA_VERSION


@contextmanager
def exclusive(engine: sa.Engine) -> Iterator[bool]:
    """Hold the one lock of the database's rollouts; yields whether it was got. It dies with the process that has it."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            got = bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(LOCK_KEY + 1))))
            try:
                yield got
            finally:
                if got:
                    connection.execute(sa.select(sa.func.pg_advisory_unlock(LOCK_KEY + 1)))
        return
    with Path(f"{engine.url.database}.rollouts").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def heartbeat(engine: sa.Engine) -> None:
    """Write down that we are here. SQLAlchemyError if the database is full, away, or locked for more than a second."""
    row = {
        "process": "operator",
        "at": times.now(),
    }  # another each time: SQLite does not write a row that stays as it is
    with engine.connect() as connection, _hurried(connection), connection.begin():
        put(connection, watched.heartbeats, [row])


@contextmanager
def _hurried(connection: sa.Connection) -> Iterator[None]:
    """Of SQLite, which has one writer at a time: it is waited for less long."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection  # itself, as this begins no transaction
    driver.execute(f"PRAGMA busy_timeout={min(HEARTBEAT_TIMEOUT_MS, BUSY_TIMEOUT_MS)}")
    try:
        yield
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")


_ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "postgresql": {"pool_pre_ping": True}
}  # a restarted server is found again


def _prepare_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    """Readers beside one writer (WAL), waiting for each other; durable at commit; BEGIN is left to _begin_sqlite."""
    connection.isolation_level = None
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    """A writer takes its lock at the start: one that turns from reader to writer half-way could deadlock."""
    only_reads = connection.get_execution_options().get("only_reads", False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")
