"""What was taken for what, and how often new classes are answered: from labels, probes and held-out images."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from lifelist.exporter.registry import Registry
from lifelist.monitoring import feedback, tables, times
from lifelist.monitoring.database import Database
from lifelist.monitoring.figures import DAY, stretch
from lifelist.monitoring.intervals import Share

Source = Literal["feedback", "probe"]  # those that say what an image was taken for

Confusion = Mapping[tuple[int, int], int]  # (true, answered) class ids → images


def found(
    database: Database, registry: Registry, since: float, until: float, version: int, source: Source
) -> Counter[tuple[int, int]]:
    """How images of each class were answered by a version, Unix times.

    Gate images, and labels that were put together, are kept by the day: the day of `since` counts as a whole.
    """
    c = tables.confusions.c
    query = (
        sa.select(c.truth, c.predicted, sa.func.sum(c.images))
        .where(c.at >= stretch(since, DAY), c.at < times.text(until), c.version == version, c.source == source)
        .group_by(c.truth, c.predicted)
    )
    with database.reading() as connection:
        counts = Counter({(truth, predicted): int(images) for truth, predicted, images in connection.execute(query)})
    if source == "feedback":
        for (of_version, truth, predicted), images in feedback.confusions(database, registry, since, until).items():
            if of_version == version:
                counts[truth, predicted] += images
    return counts


@dataclass(frozen=True, slots=True)
class Confused:
    """Images of one class that were answered as another."""

    truth: int
    predicted: int
    images: int
    share: Share  # of the images of the true class


def worst(counts: Confusion, most: int) -> list[Confused]:
    """Who is taken for whom, by how many images that concerns."""
    of_class = Counter[int]()
    for (truth, _), images in counts.items():
        of_class[truth] += images
    wrong = sorted(((n, t, p) for (t, p), n in counts.items() if t != p), key=lambda one: (-one[0], *one[1:]))
    return [Confused(t, p, n, Share.of(n, of_class[t])) for n, t, p in wrong[:most]]


@dataclass(frozen=True, slots=True)
class Bias:
    """How often new classes are answered, beside how often they are shown."""

    images: int
    shown: float  # share of images that show a new class
    answered: Share  # share of images that are taken for one


def bias(counts: Confusion, new: Collection[int]) -> Bias | None:
    """Of counted images; None without any, or where no class is new."""
    images = sum(counts.values())
    if not images or not new:
        return None
    shown = sum(n for (truth, _), n in counts.items() if truth in new)
    answered = sum(n for (_, predicted), n in counts.items() if predicted in new)
    return Bias(images, shown / images, Share.of(answered, images))
