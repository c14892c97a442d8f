"""What was taken for what, and how often new classes are answered: from labels, probes and held-out images."""

from collections import defaultdict
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

Confusion = Mapping[tuple[int, int], float]  # (true, answered) class ids → images, of repeated probes the mean


def found(
    database: Database, registry: Registry, since: float, until: float, version: int, source: Source
) -> dict[tuple[int, int], float]:
    """How images of each class were answered by a version, Unix times.

    Gate images, and labels that were put together, are kept by the day: those of `since` and `until` count as wholes.
    Probes ask about the same images again and again: it is the mean of one, so that they seem no more than they are.
    """
    begins, ends = stretch(since, DAY), times.text(until + -until % DAY)
    c = tables.confusions.c
    query = (
        sa.select(c.truth, c.predicted, sa.func.sum(c.images))
        .where(c.at >= begins, c.at < ends, c.version == version, c.source == source)
        .group_by(c.truth, c.predicted)
    )
    f = tables.figures.c
    of_probes = f.version == version, f.source == "probe", f.group == "all"
    with database.reading() as connection:
        rounds = 1
        if source == "probe":
            rounds = connection.scalar(sa.select(sa.func.sum(f.rounds)).where(f.at >= begins, f.at < ends, *of_probes))
        counts = {(truth, predicted): images / (rounds or 1) for truth, predicted, images in connection.execute(query)}
    if source == "feedback":
        for (of_version, truth, predicted), images in feedback.confusions(database, registry, since, until).items():
            if of_version == version:
                counts[truth, predicted] = counts.get((truth, predicted), 0.0) + images
    return counts


@dataclass(frozen=True, slots=True)
class Confused:
    """Images of one class that were answered as another."""

    truth: int
    predicted: int
    images: int
    share: Share  # of the images of the true class


def worst(counts: Confusion, most: int) -> list[Confused]:
    """Who is taken for whom, by how many images that concerns; half an image of many probes is none."""
    of_class: defaultdict[int, float] = defaultdict(float)
    for (truth, _), images in counts.items():
        of_class[truth] += images
    wrong = sorted(((n, t, p) for (t, p), n in counts.items() if t != p), key=lambda one: (-one[0], *one[1:]))
    return [Confused(t, p, round(n), Share.of(n, of_class[t])) for n, t, p in wrong[:most] if round(n)]


@dataclass(frozen=True, slots=True)
class Bias:
    """How often new classes are answered, beside how often they are shown."""

    images: int
    shown: float  # share of images that show a new class
    answered: Share  # share of images that are taken for one


def bias(counts: Confusion, new: Collection[int]) -> Bias | None:
    """Of counted images; None where none is of a new class, as of held-out ones of a version that enrolled it."""
    images = sum(counts.values())
    shown = sum(n for (truth, _), n in counts.items() if truth in new)
    if not shown:
        return None
    answered = sum(n for (_, predicted), n in counts.items() if predicted in new)
    return Bias(round(images), shown / images, Share.of(answered, images))
