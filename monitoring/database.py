"""What is asked of the database: two kinds of transaction, and adding to rows that may be there."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

_INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Database(Protocol):
    """An open one (deploy/store.py)."""

    def writing(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that commits at the end of the block, or leaves nothing."""

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """A transaction that only reads."""


def put(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], adding: Sequence[str] = ()
) -> None:
    """Write rows; where one of the same key is there, the columns `adding` are added up, and the others replaced."""
    if not rows:
        return
    insert: Any = _INSERT[connection.dialect.name](table)
    keys = [column.name for column in table.primary_key]
    new = {name: insert.excluded[name] for name in rows[0] if name not in keys}
    values = {name: table.c[name] + value if name in adding else value for name, value in new.items()}
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=values), [dict(row) for row in rows])
