"""True classes of earlier answers, joined to the version that gave them, and the accuracy that follows.

The last label of a prediction counts; every label is kept in the history. A label of a class that the answering version
did not know, or had retired, is no error of its: it counts as `unseen`, apart from all others.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from lifelist.deploy import tables
from lifelist.deploy.records import KnownClass, now
from lifelist.deploy.store import Store
from lifelist.exporter.errors import Missing
from lifelist.exporter.manifest import AnswerKind, Manifest
from lifelist.exporter.registry import Registry

Group = Literal["all", "old", "new", "unseen"]
Outcome = Literal["correct", "wrong", "unseen"]  # unseen: of a class that the version which answered could not name


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many answers of a version, with known truth, were right. `new`: the classes of its latest increment."""

    group: Group
    version: int
    correct: int
    total: int

    @property
    def ratio(self) -> float | None:
        """Share that was right, 0 … 1; None without a label."""
        return self.correct / self.total if self.total else None


def record(
    store: Store, prediction_id: str, *, version: int, predicted: int, answer: AnswerKind, truth: KnownClass
) -> None:
    """Note what class an answered image really was. The same again changes nothing; another one replaces it."""
    try:
        _record(store, prediction_id, version, predicted, answer, truth)
    except sa.exc.IntegrityError:  # another request was the first to label it, in this moment; now there is a row
        _record(store, prediction_id, version, predicted, answer, truth)


def _record(
    store: Store, prediction_id: str, version: int, predicted: int, answer: AnswerKind, truth: KnownClass
) -> None:
    row = {"version": version, "predicted": predicted, "truth": truth.id, "answer": answer, "at": now()}
    this = tables.feedback.c.prediction_id == prediction_id
    with store.writing() as connection:
        found = connection.execute(sa.select(tables.feedback.c.truth).where(this).with_for_update()).scalar()
        if found == truth.id:
            return
        if found is None:
            connection.execute(tables.feedback.insert().values(prediction_id=prediction_id, **row))
        else:
            connection.execute(tables.feedback.update().where(this).values(row))
        connection.execute(
            tables.feedback_history.insert().values(prediction_id=prediction_id, truth=truth.id, at=row["at"])
        )


def history(store: Store, prediction_id: str) -> list[tuple[int, str]]:
    """(class id, time) of every label that a prediction was given, oldest first."""
    c = tables.feedback_history.c
    with store.reading() as connection:
        query = sa.select(c.truth, c.at).where(c.prediction_id == prediction_id).order_by(c.id)
        return [(row.truth, row.at) for row in connection.execute(query)]


def judge(manifest: Manifest) -> Callable[[int, int], Outcome]:
    """(predicted, truth) → how an answer of this version was, by its classes: a merged one is its target here."""
    instead, named = manifest.instead, {entry.id for entry in manifest.answerable}

    def judged(predicted: int, truth: int) -> Outcome:
        true = instead.get(truth, truth)
        if true not in named:
            return "unseen"
        return "correct" if instead.get(predicted, predicted) == true else "wrong"

    return judged


def accuracy(store: Store, registry: Registry) -> list[Accuracy]:
    """A row for each version and group that has labels. A version that the registry does not have is left out."""
    c = tables.feedback.c
    query = sa.select(c.version, c.predicted, c.truth, sa.func.count()).group_by(c.version, c.predicted, c.truth)
    with store.reading() as connection:
        rows = [(int(v), int(p), int(t), int(n)) for v, p, t, n in connection.execute(query)]
    correct: Counter[tuple[int, Group]] = Counter()
    total: Counter[tuple[int, Group]] = Counter()
    for version in sorted({row[0] for row in rows}):
        try:
            manifest = registry.manifest(version)
        except Missing:
            continue
        judged, instead, newest = judge(manifest), manifest.instead, manifest.newest
        for _, predicted, truth, count in (row for row in rows if row[0] == version):
            found = judged(predicted, truth)
            if found == "unseen":
                groups: tuple[Group, ...] = ("unseen",)
            else:
                groups = ("all", "new" if instead.get(truth, truth) in newest else "old")
            for group in groups:
                total[version, group] += count
                correct[version, group] += count * (found == "correct")
    return [Accuracy(group, version, correct[version, group], n) for (version, group), n in sorted(total.items())]
