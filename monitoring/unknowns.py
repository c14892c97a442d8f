"""How many answers look unknown, by ten minutes: what a trigger asks, and its dry run looks back at."""

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from lifelist.monitoring import tables, times
from lifelist.monitoring.database import Database, put
from lifelist.monitoring.figures import DAY, stretch
from lifelist.monitoring.seen import Column

STRETCH = 600  # seconds
LOOKS_UNKNOWN = 0.95  # unknown score above which an image looks so; of known images one in twenty does
KEPT = 8 * DAY


@dataclass(frozen=True, slots=True)
class Stretch:
    """Ten minutes: the answers that were looked at, and those of them that look unknown."""

    at: float  # Unix time of its beginning
    images: int
    unknown: int


def note(database: Database, scores: Column, answered: int, at: float) -> None:
    """Count a sample of unknown scores, which stands for `answered` answers. Nothing is known of NaN."""
    if np.isnan(scores).any():
        return
    unknown = round(float((scores > LOOKS_UNKNOWN).mean()) * answered)
    with database.writing() as connection:
        row = {"at": stretch(at, STRETCH), "images": answered, "unknown": unknown}
        put(connection, tables.unknowns, [row], adding=("images", "unknown"))


def since(database: Database, at: float) -> list[Stretch]:
    """What was counted since then, in order."""
    c = tables.unknowns.c
    query = sa.select(c.at, c.images, c.unknown).where(c.at >= stretch(at, STRETCH)).order_by(c.at)
    with database.reading() as connection:
        return [Stretch(times.unix(row.at), row.images, row.unknown) for row in connection.execute(query)]


def compact(database: Database, at: float) -> None:
    """Let go of what is more than a week old."""
    with database.writing() as connection:
        connection.execute(tables.unknowns.delete().where(tables.unknowns.c.at < times.text(at - KEPT)))
