"""Classes that an operator took out of live, by going to a version that does not know them. They stay out: neither
enrolling nor an increment of others brings them back, until new images of them arrive or an increment names them.
"""

from collections.abc import Sequence

import sqlalchemy as sa

from lifelist.deploy import tables
from lifelist.deploy.records import now
from lifelist.deploy.store import Store
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import Moved
from lifelist.exporter.manifest import Manifest


def ids(store: Store, live: Manifest | None) -> set[int]:
    """The classes that are withdrawn. One that `live` knows is not: whoever withdrew it was stopped half-way."""
    c = tables.classes.c
    with store.reading() as connection:
        found = set(connection.scalars(sa.select(c.id).where(c.withdrawn_at.is_not(None))))
    return found - {entry.id for entry in live.classes} if live else found


def make_live(workshop: Workshop, version: int, expected: int | None = None) -> None:
    """Make a version live as an operator does. What live knew and this version does not is withdrawn with it.

    expected: the generation of live that this was decided upon; None: whatever it is now. Nothing happens if the
    version is live already; Moved if another swap was first. The classes are marked before live moves, so that no
    enrolment in between brings them back; while live knows them the mark says nothing.
    """
    known = {entry.id for entry in workshop.registry.manifest(version).entries}
    before = workshop.registry.ref("live")
    if expected is not None and (before is None or before.generation != expected):
        raise Moved(f"live is at {before}, no longer at generation {expected}; decide again")
    if before is None or before.version != version:
        earlier = () if before is None else workshop.registry.manifest(before.version).entries  # former ones too
        _mark(workshop.store, [entry.id for entry in earlier if entry.id not in known])
        workshop.swap(version, None if before is None else before.generation)
    with workshop.store.writing() as connection:
        clear(connection, sorted(known))


def clear(connection: sa.Connection, class_ids: Sequence[int]) -> None:
    """Somebody wants these classes again."""
    c = tables.classes.c
    connection.execute(
        tables.classes.update().where(c.id.in_(class_ids), c.withdrawn_at.is_not(None)).values(withdrawn_at=None)
    )


def _mark(store: Store, class_ids: Sequence[int]) -> None:
    c = tables.classes.c
    with store.writing() as connection:
        connection.execute(tables.classes.update().where(c.id.in_(class_ids)).values(withdrawn_at=now()))
