"""Images that would help most if a person labelled them: kept, a bounded number of them, if the operator consents.

A version learns most from what it is not sure of (uncertainty sampling; Lewis & Gale, SIGIR 1994): images whose two
best classes are almost as probable, which its two kinds of answer take for different classes (query by committee; Seung
et al., COLT 1992), or which look like nothing it knows. What is kept is the image as the model saw it, as a PNG.

Labels of such images say nothing of how right answers are, since the hard ones were chosen: no figure counts them.
Answers that were drawn for the audit are not kept here, so that the audit stays a fair sample.
"""

import io
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from PIL import Image

from lifelist.exporter.answering import Answering
from lifelist.exporter.errors import Conflict, Missing
from lifelist.exporter.manifest import AnswerKind
from lifelist.exporter.preprocess import Pixels
from lifelist.exporter.registry import Blobs
from lifelist.monitoring import tables, times
from lifelist.monitoring.database import Database
from lifelist.monitoring.figures import DAY, HOUR
from lifelist.monitoring.options import ReviewOptions
from lifelist.monitoring.seen import Column, Seen
from lifelist.serving.observed import Observations

log = logging.getLogger(__name__)

WHY = ("unknown", "disagree", "margin")
SUGGESTIONS = 5  # classes for each image
State = Literal["open", "labelled", "skipped"]


@dataclass(frozen=True, slots=True)
class Kept:
    """An image that is kept, or was."""

    prediction_id: str
    sha256: str
    state: State
    use: float
    why: Sequence[str]
    version: int
    answer: str
    predicted: int
    margin: float | None
    unknown: float | None
    suggestions: Sequence[tuple[int, float | None]]
    at: str
    truth: int | None


_COLUMNS = [tables.review.c[name] for name in Kept.__slots__]


class Queue:
    """The images that wait. One process keeps them, the watcher's; any may show and judge them."""

    def __init__(
        self,
        database: Database,
        images: Blobs,
        options: ReviewOptions,
        audited: Callable[[str], bool] = lambda prediction_id: False,
    ) -> None:
        self.database, self.images, self.options, self.audited = database, images, options, audited
        self._lost = 0
        self._lately: deque[float] = deque()  # when an image was kept, of the last hour

    def keep(self, answering: Answering, observations: Observations, seen: Seen, at: float) -> int:
        """Keep those of the images that would help most, as far as the bounds allow; how many that were.

        What a full disk has no room for is counted (`take_lost`): nothing is kept of it, and no row.
        """
        if not self.options.keep_images:
            return 0
        while self._lately and self._lately[0] <= at - HOUR:
            self._lately.popleft()
        room = self.options.per_hour - len(self._lately)
        other, differs = disagreeing(answering, observations)
        margin = np.where(np.isnan(seen.confidence), np.nan, seen.margin)  # of a version that was not calibrated: none
        use = (np.nan_to_num(1 - margin) + np.nan_to_num(seen.unknown) + differs) / 3
        why, kept = self._why(seen.unknown, differs, margin), 0
        order = np.argsort(-use, kind="stable").tolist()
        chosen = [k for k in order if why[k] and not self.audited(observations.ids[k])][: max(0, room)]
        for place, k in enumerate(chosen):
            row = {
                "prediction_id": observations.ids[k],
                "state": "open",
                "use": float(use[k]),
                "why": why[k],
                "version": observations.version,
                "answer": observations.kind,
                "predicted": int(observations.best[k]),
                "margin": _number(margin[k]),
                "unknown": _number(seen.unknown[k]),
                "suggestions": _suggested(answering, observations, k, int(other[k])),
                "at": times.text(float(observations.at[k])),
                "added_at": times.text(at),
            }
            try:
                added = self._add(row, observations.images[k])
            except OSError as error:
                self._lost += len(chosen) - place
                log.warning("review.missed", extra={"facts": {"reason": str(error), "images": len(chosen) - place}})
                break
            if added:
                self._lately.append(at)
                kept += 1
        if kept:
            self._bounded()
        return kept

    def take_lost(self) -> int:
        """How many images could not be kept since this was asked last."""
        lost, self._lost = self._lost, 0
        return lost

    def _why(self, unknown: Column, differs: npt.NDArray[np.bool_], margin: Column) -> list[list[str]]:
        options = self.options
        columns = {
            "unknown": unknown > options.unknown,  # of NaN, neither is
            "disagree": differs & options.disagree,
            "margin": margin < options.margin,
        }
        return [[name for name in WHY if columns[name][k]] for k in range(len(differs))]

    def _add(self, row: Mapping[str, Any], image: Pixels) -> bool:
        """Keep one, unless the very same image waits, or was judged, already."""
        data = png(image)
        sha256 = self.images.put(data)  # before the row: what a kill leaves between them is swept
        c = tables.review.c
        with self.database.writing() as connection:
            same = sa.select(c.sha256).where((c.sha256 == sha256) | (c.prediction_id == row["prediction_id"]))
            if connection.execute(same).first() is not None:
                return False
            connection.execute(tables.review.insert().values(dict(row) | {"sha256": sha256}))
        return True

    def _bounded(self) -> None:
        """The least useful go, if more wait than may; of those of equal use the oldest."""
        c = tables.review.c
        order = c.use.desc(), c.at.desc(), c.prediction_id
        query = sa.select(c.prediction_id, c.sha256).where(c.state == "open").order_by(*order)
        with self.database.writing() as connection:
            gone = connection.execute(
                query.offset(self.options.images).limit(-1 if _is_sqlite(connection) else None)
            ).all()
            connection.execute(tables.review.delete().where(c.prediction_id.in_([row.prediction_id for row in gone])))
        for row in gone:
            self.images.remove(row.sha256)

    def compact(self, at: float) -> None:
        """Let go of images that waited too long, of what was judged so long ago, and of files that no row is of."""
        c, oldest = tables.review.c, times.text(at - self.options.days * DAY)
        with self.database.writing() as connection:
            if self.options.keep_images:
                connection.execute(tables.review.delete().where(c.added_at < oldest))
            else:  # the consent was taken back
                connection.execute(tables.review.delete().where((c.state == "open") | (c.added_at < oldest)))
            needed = set(connection.scalars(sa.select(c.sha256).where(c.state == "open")))
        for digest in self.images.digests():
            if digest not in needed and self.images.age_s(digest) > HOUR:
                self.images.remove(digest)

    # What a person does

    def waiting(self, limit: int, why: str | None = None) -> list[Kept]:
        """At most so many that wait, those of most use first; why: only those kept for that."""
        c = tables.review.c
        query = sa.select(*_COLUMNS).where(c.state == "open").order_by(c.use.desc(), c.at.desc(), c.prediction_id)
        with self.database.reading() as connection:
            found = [Kept(*row) for row in connection.execute(query)]
        return [one for one in found if why is None or why in one.why][:limit]

    def counts(self) -> dict[str, int]:
        """How many images wait, and how many were labelled and skipped of late."""
        c = tables.review.c
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(c.state, sa.func.count()).group_by(c.state)).all()
        return {"open": 0, "labelled": 0, "skipped": 0} | {state: int(count) for state, count in rows}

    def one(self, prediction_id: str) -> Kept:
        """One that waits. Missing if it never did, or no longer does; Conflict if it was judged already."""
        query = sa.select(*_COLUMNS).where(tables.review.c.prediction_id == prediction_id)
        with self.database.reading() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise Missing(
                f"no image of answer {prediction_id[:80]!r} is kept for review; GET /v1/review lists those that are"
            )
        found = Kept(*row)
        if found.state != "open":
            raise Conflict(
                f"the image of answer {prediction_id[:80]!r} was {found.state} already; another label goes to "
                "POST /v1/feedback"
            )
        return found

    def image(self, prediction_id: str) -> bytes:
        """Its PNG. Missing, Conflict as of `one`."""
        return self.images.get(self.one(prediction_id).sha256)

    def judged(self, prediction_id: str, state: State, truth: int | None, at: float) -> None:
        """It is labelled, or skipped: it waits no longer, and its image is deleted. Conflict if another was first."""
        found, c = self.one(prediction_id), tables.review.c
        this = (c.prediction_id == prediction_id) & (c.state == "open")
        values = {"state": state, "truth": truth, "judged_at": times.text(at)}
        with self.database.writing() as connection:
            if not connection.execute(tables.review.update().where(this).values(values)).rowcount:
                raise Conflict(f"the image of answer {prediction_id[:80]!r} was judged by another request just now")
        self.images.remove(found.sha256)


def disagreeing(
    answering: Answering, observations: Observations
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For each image what the other kind of answer says (class ids), and whether it differs, where both name both."""
    kind: AnswerKind = "nearest_mean" if observations.kind == "linear" else "linear"
    these, those = (
        answering.evidence(one, observations.logits, observations.embedding) for one in (observations.kind, kind)
    )
    best = these.ids[these.scores.argmax(axis=1)]
    other = those.ids[those.scores.argmax(axis=1)]
    return other, (best != other) & np.isin(other, these.ids) & np.isin(best, those.ids)


def _suggested(answering: Answering, observations: Observations, k: int, other: int) -> list[tuple[int, float | None]]:
    """The classes that it may be, best first, with how probable they are; the other kind of answer's among them."""
    one = slice(k, k + 1)
    raw = observations.logits[one], observations.embedding[one]
    believed = answering.probabilities_of(observations.kind, *raw)
    found = answering.evidence(observations.kind, *raw)
    scores = found.scores[0] if believed is None else believed[1][0]
    order = np.argsort(-scores, kind="stable")[:SUGGESTIONS].tolist()
    rows: list[tuple[int, float | None]] = [
        (int(found.ids[place]), None if believed is None else round(float(scores[place]), 6)) for place in order
    ]
    return rows if other in {class_id for class_id, _ in rows} else [*rows[: SUGGESTIONS - 1], (other, None)]


def _number(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def png(image: Pixels) -> bytes:
    """An image S×S×3 uint8 as a file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _is_sqlite(connection: sa.Connection) -> bool:
    """Which knows no OFFSET without a LIMIT; -1 is none."""
    return connection.dialect.name == "sqlite"
