"""True classes of earlier answers, joined to the version that gave them.

The last label of a prediction counts; every label is kept in the history. A label of a class that the answering version
did not know, or had retired, is no error of its: it counts as `unseen`, apart from all others.

People report mistakes more readily than successes, so the share of right answers among all labels is too low. The audit
sample is drawn at random among all answers: the share among its labels, each counted by how many answers it stands for
(Horvitz & Thompson, JASA 1952, normalised as by Hájek), is not.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal

import sqlalchemy as sa

from lifelist.exporter.errors import BadInput, Missing
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry
from lifelist.monitoring import tables, times
from lifelist.monitoring.database import Database, put
from lifelist.monitoring.figures import DAY, HOUR, MINUTE, NONE, Figure, Group, add, together
from lifelist.monitoring.options import DAY_S
from lifelist.serving.prediction import Prediction

Outcome = Literal["correct", "wrong", "unseen"]  # unseen: of a class that the version which answered could not name
Judge = Callable[[int, int], Outcome]  # (predicted, truth), class ids
REVIEW = "review"  # what a label came via, if not from who asked
OTHERWISE = (
    "duplicate",
    "late",
    "orphan",
    "unnamed",
)  # what else becomes of a label: known already; too old; of no answer of ours; of a class that nobody knows

_TEXT = {MINUTE: 16, HOUR: 13, DAY: 10}  # characters of a time that all of a stretch have in common


def record(
    database: Database,
    prediction_id: str,
    made: Prediction,
    truth: int,
    label_days: float,
    at: float,
    via: str = "",
) -> bool:
    """Note what class an answered image really was: whether that is news. Another label than before replaces it.

    BadInput if the answer is older than `label_days`; at: now, a Unix time; via: `REVIEW`, if that asked for the label.
    """
    if at - made.at > label_days * DAY_S:
        raise BadInput(
            f"the answer was given {(at - made.at) / DAY_S:.0f} days ago; true classes are taken for {label_days:g} "
            "days (monitoring.label_days)"
        )
    try:
        return _record(database, prediction_id, made, truth, at, via)
    except sa.exc.IntegrityError:  # another request was the first to label it, in this moment; now there is a row
        return _record(database, prediction_id, made, truth, at, via)


def _record(database: Database, prediction_id: str, made: Prediction, truth: int, at: float, via: str) -> bool:
    row = {
        "version": made.version,
        "predicted": made.class_id,
        "truth": truth,
        "answer": made.answer,
        "at": times.text(at),
        "predicted_at": times.text(made.at),
        "weight": made.weight,
        "via": via,
    }
    c = tables.feedback.c
    this = c.prediction_id == prediction_id
    with database.writing() as connection:
        found = connection.execute(sa.select(c.truth, c.via).where(this).with_for_update()).first()
        if found is not None and "" in (via, found.via):  # whoever asked has labelled it, too: it counts
            row["via"] = ""
        if found is not None and found.truth == truth:
            connection.execute(tables.feedback.update().where(this).values(via=row["via"]))
            return False
        if found is None:
            connection.execute(tables.feedback.insert().values(prediction_id=prediction_id, **row))
        else:
            connection.execute(tables.feedback.update().where(this).values(row))
        connection.execute(
            tables.feedback_history.insert().values(prediction_id=prediction_id, truth=truth, at=row["at"])
        )
    return True


def history(database: Database, prediction_id: str) -> list[tuple[int, str]]:
    """(class id, time) of every label that a prediction was given, oldest first."""
    c = tables.feedback_history.c
    with database.reading() as connection:
        query = sa.select(c.truth, c.at).where(c.prediction_id == prediction_id).order_by(c.id)
        return [(row.truth, row.at) for row in connection.execute(query)]


def judge(manifest: Manifest) -> Judge:
    """(predicted, truth) → how an answer of this version was, by its classes: a merged one is its target here."""
    instead, named = manifest.instead, {entry.id for entry in manifest.answerable}

    def judged(predicted: int, truth: int) -> Outcome:
        true = instead.get(truth, truth)
        if true not in named:
            return "unseen"
        return "correct" if instead.get(predicted, predicted) == true else "wrong"

    return judged


def groups(manifest: Manifest) -> Callable[[int, int], list[tuple[Group, int]]]:
    """(predicted, truth) → the groups, with a class id or NONE, that an answer of this version counts in."""
    judged, instead, newest = judge(manifest), manifest.instead, manifest.newest

    def counted(predicted: int, truth: int) -> list[tuple[Group, int]]:
        if judged(predicted, truth) == "unseen":
            return [("unseen", NONE)]
        true = instead.get(truth, truth)
        assert true is not None
        return [("all", NONE), ("new" if true in newest else "old", NONE), ("class", true)]

    return counted


def figures(database: Database, registry: Registry, since: float, until: float, seconds: int = DAY) -> list[Figure]:
    """What labels say of the answers that were given in a time (Unix times), by the minute, hour or day.

    Each label counts for source `feedback`, those of the audit for `audit` too. Those of a version that the registry
    does not have are left out, and so are those that a review asked for: it asks about the hard images alone.
    """
    labels = _labels(database, registry, since, until, seconds, tables.feedback.c.via != REVIEW)
    return together(figure for row in labels for figure in _counted(row, seconds))


def of_version(database: Database, registry: Registry, version: int, since: float, until: float) -> list[Figure]:
    """The figures of single classes, of the answers of one version that were given and labelled in a time."""
    c = tables.feedback.c
    those = c.via != REVIEW, c.version == version, c.at >= times.text(since), c.at < times.text(until)
    labels = _labels(database, registry, since, until, DAY, *those)
    return together(figure for row in labels for figure in _counted(row, DAY) if figure.group == "class")


def confusions(database: Database, registry: Registry, since: float, until: float) -> Counter[tuple[int, int, int]]:
    """(version, truth, predicted) → images, of labels for answers of that time; classes as the version answers them."""
    found: Counter[tuple[int, int, int]] = Counter()
    for row in _labels(database, registry, since, until, DAY):
        if row.counted[0][0] != "unseen":
            found[row.manifest.version, row.truth, row.predicted] += row.images
    return found


class _Labels:
    """Labels of one stretch, version, predicted and true class: how many, and their weights."""

    def __init__(self, manifest: Manifest, at: str, predicted: int, truth: int, sums: tuple[int, int, float, float]):
        self.manifest, self.at = manifest, at
        self.counted = groups(manifest)(predicted, truth)
        self.correct = judge(manifest)(predicted, truth) == "correct"
        self.predicted, self.truth = (manifest.instead.get(k, k) or k for k in (predicted, truth))
        self.images, self.audited, self.weight, self.squares = sums


def _counted(row: _Labels, seconds: int) -> Iterator[Figure]:
    for group, class_id in row.counted:
        key = row.at, seconds, row.manifest.version
        right = float(row.correct)
        yield Figure(*key, "feedback", group, class_id, row.images, row.images, right * row.images, row.images)
        if row.audited:
            yield Figure(*key, "audit", group, class_id, row.audited, row.weight, right * row.weight, row.squares)


def _labels(
    database: Database, registry: Registry, since: float, until: float, seconds: int, *those: sa.ColumnElement[bool]
) -> Iterator[_Labels]:
    c, length = tables.feedback.c, _TEXT[seconds]
    start = sa.func.substr(c.predicted_at, 1, length).label("start")
    audited = sa.func.sum(sa.case((c.weight > 0, 1), else_=0))
    query = (
        sa.select(
            c.version, start, c.predicted, c.truth,
            sa.func.count(), audited, sa.func.sum(c.weight), sa.func.sum(c.weight * c.weight),
        )
        .where(c.predicted_at >= times.text(since), c.predicted_at < times.text(until), *those)
        .group_by(c.version, start, c.predicted, c.truth)
    )  # fmt: skip
    with database.reading() as connection:
        rows = connection.execute(query).all()
    manifests: defaultdict[int, list[Any]] = defaultdict(list)
    for row in rows:
        manifests[int(row[0])].append(row)
    rest = "1970-01-01T00:00:00.000Z"[length:]
    for version, of_version in sorted(manifests.items()):
        try:
            manifest = registry.manifest(version)
        except Missing:
            continue
        for _, begins, predicted, truth, images, drawn, weight, squares in of_version:
            sums = int(images), int(drawn), float(weight), float(squares)
            yield _Labels(manifest, f"{begins}{rest}", int(predicted), int(truth), sums)


def compact(database: Database, registry: Registry, label_days: float, at: float) -> int:
    """Labels of answers so old that no more is taken become figures by the day; how many that were."""
    c, before = tables.feedback.c, at - label_days * DAY_S
    before -= before % DAY
    days: Counter[tuple[str, int, int, int]] = Counter()
    for row in _labels(database, registry, 0, before, DAY):
        if row.counted[0][0] != "unseen":
            days[row.at, row.manifest.version, row.truth, row.predicted] += row.images
    kept = figures(database, registry, 0, before, DAY)
    old = c.predicted_at < times.text(before)
    with database.writing() as connection:
        ids = sa.select(c.prediction_id).where(old)
        history_ = tables.feedback_history
        connection.execute(history_.delete().where(history_.c.prediction_id.in_(ids)))
        gone = connection.execute(tables.feedback.delete().where(old)).rowcount
        rows = [
            {"at": day, "version": v, "source": "feedback", "truth": t, "predicted": p, "images": n}
            for (day, v, t, p), n in days.items()
        ]
        put(connection, tables.confusions, rows, adding=("images",))
        add(connection, kept)
    return int(gone)
