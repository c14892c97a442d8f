"""How single classes fare: which are asked about most, how well each is recognised, what is forgotten or favoured.

All of it is of the live version, and is asked of the database as sums: it is looked at every few seconds.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import sqlalchemy as sa

from lifelist.exporter.errors import Missing
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry
from lifelist.monitoring import feedback, tables, times
from lifelist.monitoring.database import Database
from lifelist.monitoring.figures import DAY, NONE, SUMS, Figure, Source, together
from lifelist.monitoring.intervals import Bounded, Change, Share

Counts = Mapping[int, tuple[int, int]]  # class id → images answered right, and all that were probed

LEAST = 2  # probed images of a class, to say that it was forgotten


def busiest(database: Database, live: Manifest, since: float, most: int) -> list[int]:
    """At most so many ids of classes that a version answers, those of most images since then (a Unix time) first.

    Images are counted as they are estimated, or else as they were labelled or probed; classes of none come last, by id.
    """
    answered = {entry.id for entry in live.answerable}
    c = tables.figures.c
    estimated, all_ = (
        sa.func.sum(images) for images in (sa.case((c.source == "estimated", c.images), else_=0), c.images)
    )
    query = (
        sa.select(c.class_id)
        .where(c.group == "class", c.at >= times.text(since))
        .group_by(c.class_id)
        .order_by(estimated.desc(), all_.desc(), c.class_id)
    )
    with database.reading() as connection:
        seen = [class_id for class_id in connection.scalars(query) if class_id in answered]
    return list(dict.fromkeys((*seen, *sorted(answered))))[:most]


def recall(
    database: Database, registry: Registry, live: Manifest, since: float, until: float, shown: Sequence[int]
) -> list[Figure]:
    """By source, how many images of each class shown were answered right, and of all other classes together (NONE).

    Times are Unix times; of the answers of the live version alone. Of probes, which ask about the same images again and
    again, it is the mean of one.
    """
    c = tables.figures.c
    which = sa.case((c.class_id.in_(shown), c.class_id), else_=NONE).label("class_id")
    query = (
        sa.select(c.source, which, sa.func.count(c.class_id.distinct()), *(sa.func.sum(c[name]) for name in SUMS))
        .where(c.group == "class", c.version == live.version, c.at >= times.text(since), c.at < times.text(until))
        .group_by(c.source, which)
    )
    with database.reading() as connection:
        rows = connection.execute(query).all()
    begins, length = times.text(since), int(until - since)

    def figure(source: Source, class_id: int, images: float, total: float, right: float, squares: float) -> Figure:
        return Figure(begins, length, live.version, source, "class", class_id, round(images), total, right, squares)

    def of_one_round(source: Source, class_id: int, classes: int, *sums: float) -> Figure:
        images, total, right, squares, all_rounds = sums  # in the order of SUMS
        rounds = all_rounds / classes if source == "probe" else 1
        return figure(source, class_id, images / rounds, total / rounds, right / rounds, squares / rounds)

    named = set(shown)
    labelled = [
        figure(
            one.source, one.class_id if one.class_id in named else NONE, one.images, one.total, one.right, one.squares
        )
        for one in feedback.figures(database, registry, since, until, DAY)
        if one.group == "class" and one.version == live.version
    ]
    return together([*(of_one_round(*row) for row in rows), *labelled])


@dataclass(frozen=True, slots=True)
class Probes:
    """What versions said to the gate images that each was probed with last."""

    forgotten: Bounded | None  # mean over old classes of the best recall so far less the present one
    favoured: dict[str, Bounded]  # by group, old and new: images answered as one of its classes, for each of one


def probes(database: Database, registry: Registry, live: Manifest) -> Probes:
    """What probes say of how the live version changed, and whether it leans to its newest classes.

    forgotten: of the classes that came before the latest increment, each with its best version (Chaudhry et al., ECCV
    2018, eq. 3, but a class that improved counts 0). None without an earlier version that was probed with such a class.
    favoured: 1 where classes are answered as often as they are shown. Empty where no class is new.
    """
    c = tables.probes.c
    query = sa.select(c.version, c.truth, c.predicted, sa.func.count()).group_by(c.version, c.truth, c.predicted)
    with database.reading() as connection:
        rows = connection.execute(query).all()
    right: defaultdict[int, Counter[int]] = defaultdict(Counter)  # by version: images by class
    shown: defaultdict[int, Counter[int]] = defaultdict(Counter)
    truths: Counter[bool] = Counter()  # whether the class is new → images of the live version's probe
    answers: Counter[bool] = Counter()
    for version, judged in _judges(registry, {row.version for row in rows}).items():
        for _, truth, predicted, images in (row for row in rows if row.version == version):
            if (outcome := judged(predicted, truth)) == "unseen" or (true := live.instead.get(truth, truth)) is None:
                continue
            shown[version][true] += images
            right[version][true] += images * (outcome == "correct")
            if version == live.version:
                truths[true in live.newest] += images
                answers[predicted in live.newest] += images
    counts = {
        version: {k: (right[version][k], n) for k, n in of_class.items() if k not in live.newest and n >= LEAST}
        for version, of_class in shown.items()
    }
    now = counts.pop(live.version, {})
    names, every = {"new": True, "old": False}, truths.total()
    favoured = {
        name: Bounded.of_share(Share.of(answers[new], every), truths[new] / every)
        for name, new in names.items()
        if live.newest and truths[new]
    }
    return Probes(forgotten(now, list(counts.values())), favoured)


def forgotten(now: Counts, before: Sequence[Counts]) -> Bounded | None:
    """The mean over classes of the best share of right answers before less that now, 0 where it rose.

    None if no class of `now` is in any of `before`. By chance alone the best of several is above the true one. So the
    interval begins where that of the version does which was better as a whole, classes that rose included: of all
    versions, 5 % of error divided by them (Bonferroni). It ends by the best of each class, at the latest.
    """
    best = {k: max((c[k] for c in before if k in c), key=_rate) for k in now if any(k in c for c in before)}
    if not best:
        return None
    ratio = sum(max(0.0, _rate(best[k]) - _rate(now[k])) for k in best) / len(best)
    z = NormalDist().inv_cdf(1 - 0.025 / len(before))
    low = 0.0
    for counts in before:
        shared = [k for k in best if k in counts]  # classes that a version did not know lost nothing since
        if (change := Change.between(*(Share.mean([c[k] for k in shared], z) for c in (counts, now)))) is not None:
            low = max(low, -change.high * len(shared) / len(best))
    change = Change.between(*(Share.mean([c[k] for k in best]) for c in (best, now)))
    assert change is not None
    high = min(1.0, ratio + change.difference - change.low)
    return Bounded(ratio, min(ratio, low), high, sum(now[k][1] for k in best))


def _rate(counted: tuple[int, int]) -> float:
    return counted[0] / counted[1]


def _judges(registry: Registry, versions: set[int]) -> dict[int, feedback.Judge]:
    found = {}
    for version in sorted(versions):
        try:
            found[version] = feedback.judge(registry.manifest(version))
        except Missing:  # its files were removed, its answers are still here
            continue
    return found
