"""What starts an increment by itself: enough images that wait, a time, drift, images that look unknown.

`decide` is a function of a situation, and of nothing else: the situation of this moment, or one of the last week, so
that a dry run says what would have happened. Whatever the trigger, one thing holds: images must wait that came since
the last increment began. One that was refused, failed or was rolled back is not started again with the same images.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from lifelist.client.answers import TriggerRow, Triggers
from lifelist.deploy import examples, rollout, tables, withdrawn
from lifelist.deploy.store import Store
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import LifelistError
from lifelist.monitoring import notices, times, unknowns
from lifelist.monitoring.figures import DAY, HOUR, MINUTE
from lifelist.monitoring.options import TriggerOptions
from lifelist.monitoring.unknowns import STRETCH, Stretch

LOOK_EVERY_S = 60.0
WEEK = 7 * DAY
LEAST_ANSWERS = 20  # of ten minutes, to say what share looks unknown

Obstacle = Literal["running", "no-images", "nothing-new", "distance", "quiet-hours", "budget"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision rests on. Times are Unix times."""

    waiting: int  # images to train on that are not learned
    fresh: int  # of those, the ones that came since the last increment began
    first_at: float | None = None  # when the first of those came
    last_began: float | None = None  # the last increment, or try to start one by a trigger
    running: bool = False
    trained_s: float = 0.0  # in the last 24 hours
    expected_s: float = 0.0  # of the next training: as the last one
    drifts: Sequence[tuple[str, float]] = ()  # alarms of drift that stand, and since when
    unknown_since: float | None = None  # since when the share of unknown answers is above the level


@dataclass(frozen=True, slots=True)
class Decision:
    """What comes of a situation."""

    because: str = ""  # the trigger that speaks for an increment; empty: none does
    obstacle: Obstacle | None = None  # what keeps it from being started all the same
    held: str = ""  # that in words

    @property
    def starts(self) -> bool:
        """Whether an increment is started."""
        return bool(self.because) and self.obstacle is None


def decide(options: TriggerOptions, found: Situation, at: float) -> Decision:
    """Whether to start an increment at a time, and why or why not."""
    because = next(_triggers(options, found, at), "")
    if not because:
        return Decision()
    obstacle, held = next(_obstacles(options, found, at), (None, ""))
    return Decision(because, obstacle, held)


def _obstacles(options: TriggerOptions, found: Situation, at: float) -> Iterator[tuple[Obstacle, str]]:
    """What is in the way of an increment, and that in words."""
    distance, budget = options.min_distance_h * HOUR, options.trainer_s_per_day
    if found.running:
        yield "running", "an increment is under way"
    if not found.waiting:
        yield "no-images", "no image waits to be learned; GET /v1/review has images to label, if they are kept"
    if not found.fresh:
        yield "nothing-new", "no image came since the last increment began"
    if found.last_began is not None and at - found.last_began < distance:
        yield "distance", f"the last one began less than {options.min_distance_h:g} h ago (triggers.min_distance_h)"
    if options.quiet_hours and _is_quiet(options.quiet_hours, at):
        yield "quiet-hours", f"it is {_clock(at)}, in triggers.quiet_hours {options.quiet_hours}"
    if budget and found.trained_s + found.expected_s > budget:
        yield (
            "budget",
            f"{found.trained_s:.0f} s were trained in 24 h, and the next takes about {found.expected_s:.0f}; "
            f"triggers.trainer_s_per_day is {budget:g}",
        )


def _triggers(options: TriggerOptions, found: Situation, at: float) -> Iterator[str]:
    """Those that speak for an increment now."""
    if options.pending_images and found.waiting >= options.pending_images:
        yield f"{found.waiting} images wait; triggers.pending_images is {options.pending_images}"
    since = max((time for time in (found.last_began, found.first_at) if time is not None), default=None)
    if found.waiting and since is not None:
        if options.every_h and at - since >= options.every_h * HOUR:
            yield f"{(at - since) / HOUR:.1f} h have passed; triggers.every_h is {options.every_h:g}"
        if options.at and since < _latest(options.at, at):
            yield f"it is past {options.at}, triggers.at"
    if options.drift_h:
        for name, raised_at in found.drifts:
            if at - raised_at >= options.drift_h * HOUR:
                yield f"{name} stands for {(at - raised_at) / HOUR:.1f} h; triggers.drift_h is {options.drift_h:g}"
    if (
        options.unknown_share
        and found.unknown_since is not None
        and at - found.unknown_since >= options.unknown_h * HOUR
    ):
        yield f"above {options.unknown_share:.0%} of answers look unknown for {(at - found.unknown_since) / HOUR:.1f} h"


def _latest(clock: str, at: float) -> float:
    """When it was that time of day last."""
    hours, minutes = map(int, clock.split(":"))
    today = at - at % DAY + hours * HOUR + minutes * MINUTE
    return today if today <= at else today - DAY


def _clock(at: float) -> str:
    return times.text(at)[11:16]


def _is_quiet(hours: str, at: float) -> bool:
    begins, ends = hours.split("-")
    now = _clock(at)
    return begins <= now < ends if begins < ends else now >= begins or now < ends


def unknown_since(stretches: Sequence[Stretch], level: float, at: float) -> float | None:
    """Since when the share of unknown answers has been above a level; None if it is not now.

    stretches: in order. One that is not over yet, or has too few answers, says nothing; an hour without any is an end.
    """
    since, last = None, None
    for one in stretches:
        if one.at + STRETCH > at or one.images < LEAST_ANSWERS:
            continue
        above = one.unknown > level * one.images
        since = None if not above else one.at if since is None or (last is not None and one.at - last > HOUR) else since
        last = one.at
    return since if last is not None and at - last <= HOUR + STRETCH else None


class Starter:
    """Starts increments beside a server; `look` is called every few seconds by one thread."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop, self._looked_at = workshop, 0.0

    def look(self, at: float) -> Decision:
        """Start an increment if it is time; at: now, a Unix time."""
        options = self.workshop.settings.triggers
        if not options.any or 0 <= at - self._looked_at < LOOK_EVERY_S:  # below 0: the clock was set back
            return Decision()
        self._looked_at = at
        past = Past.of(self.workshop, at)
        found = past.situation(options, at)
        made = decide(options, found, at)
        if made.starts:
            self._start(made.because)
        return made

    def _start(self, because: str) -> None:
        store = self.workshop.store
        try:
            started = rollout.start(self.workshop)
        except LifelistError as error:  # told, and not tried again before triggers.min_distance_h
            notices.tell(
                store, "trigger", f"no increment could be started although {because}: {error}", because=because
            )
            log.warning("trigger.failed", extra={"facts": {"because": because, "reason": str(error)}})
            return
        facts = {"because": because, "increment": started.id}
        notices.tell(store, "trigger", f"increment {started.id} was started, because {because}", None, **facts)
        log.info("trigger.started", extra={"facts": facts})


Moments = npt.NDArray[np.float64]  # Unix times


@dataclass(frozen=True, slots=True)
class _Begun:
    """An increment that began: when, of which classes, whether it brought them in, and how long it trained."""

    at: float
    ended: float | None
    classes: frozenset[int]
    trained: Sequence[tuple[float, float]]  # (when training ended, seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What happened in the last week, and stands now, as far as a trigger asks: made once, asked for many times."""

    came: Moments  # of images to train on, when they came
    learned: Moments  # of the same ones, when the increment began that learned them; infinity: they wait
    increments: Sequence[_Begun]  # in order
    tried: Moments  # when a trigger acted
    drifts: Sequence[tuple[str, float, float]]  # (alarm, since, until; infinity: it stands)
    unknown: Sequence[Stretch]
    simulated: list[tuple[float, float]] = field(default_factory=list)  # increments of a dry run: (when, seconds)

    @classmethod
    def of(cls, workshop: Workshop, at: float) -> "Past":
        """What the database has of it; at: now."""
        store = workshop.store
        increments = _increments(store, at)
        images = [(came, learned) for came, learned in _images(workshop, increments) if learned > at - WEEK]
        came, learned = np.array(images, np.float64).reshape(-1, 2).T
        told = notices.told(store, limit=1000, kinds=("trigger",))
        tried = np.array([times.unix(one.at) for one in told], np.float64)
        return cls(came, learned, increments, tried, _drifts(store), unknowns.since(store, at - WEEK - HOUR))

    def situation(self, options: TriggerOptions, at: float) -> Situation:
        """What there was to decide upon at a time."""
        began = [one.at for one in self.increments if one.at <= at]
        simulated = [when for when, _ in self.simulated if when <= at]
        # a dry run's increment has learned all that was there
        arrived = (self.came <= at) & (self.learned > at) & (self.came > max(simulated, default=-np.inf))
        fresh = self.came[arrived & (self.came > max([*began, *simulated], default=-np.inf))]
        trained = [pair for one in self.increments for pair in one.trained] + [
            (when + s, s) for when, s in self.simulated
        ]
        before = [(ended, seconds) for ended, seconds in trained if ended <= at]
        return Situation(
            waiting=int(arrived.sum()),
            fresh=len(fresh),
            first_at=float(fresh.min()) if len(fresh) else None,
            last_began=max([*began, *simulated, *self.tried[self.tried <= at].tolist()], default=None),
            running=any(one.at <= at and (one.ended is None or one.ended > at) for one in self.increments),
            trained_s=sum(seconds for ended, seconds in before if ended > at - DAY),
            expected_s=max(before)[1] if before else 0.0,
            drifts=[(name, since) for name, since, until in self.drifts if since <= at < until],
            unknown_since=unknown_since(self.unknown, options.unknown_share, at) if options.unknown_share else None,
        )


def _increments(store: Store, at: float) -> list[_Begun]:
    steps = tables.steps.c
    query = sa.select(steps.rollout_id, steps.began_at, steps.ended_at).where(steps.state == "train")
    with store.reading() as connection:
        rows = connection.execute(query).all()
    trained: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        ended = at if row.ended_at is None else times.unix(row.ended_at)
        trained[row.rollout_id].append((ended, ended - times.unix(row.began_at)))
    return [
        _Begun(
            times.unix(one.created_at),
            times.unix(one.updated_at) if one.ended else None,
            frozenset(one.class_ids),
            trained[one.id],
        )
        for one in reversed(store.rollouts())
    ]


def _images(workshop: Workshop, increments: Sequence[_Begun]) -> Iterator[tuple[float, float]]:
    """(when it came, when the increment began that learned it, infinity if none did) of each image to train on."""
    store, live, c = workshop.store, workshop.live, tables.examples.c
    query = sa.select(c.sha256, c.class_id, c.added_at).where(c.role == "training")
    with store.reading() as connection:  # those that were deleted too, as most are once learned: they did wait
        rows = connection.execute(query).all()
    out = withdrawn.ids(store, live)
    waiting = {one.sha256 for one in examples.waiting(workshop, live) if one.class_id not in out}
    for row in rows:
        arrived = times.unix(row.added_at)
        if row.sha256 in waiting:
            yield arrived, float("inf")
            continue
        learned = (begun.at for begun in increments if begun.at >= arrived and row.class_id in begun.classes)
        yield arrived, next(learned, arrived)  # of a base, or of a class that is out: it never waited


def _drifts(store: Store) -> list[tuple[str, float, float]]:
    """Alarms of drift: since when, until when."""
    told = notices.told(store, limit=10_000, kinds=("alarm", "cleared"))
    raised: dict[str, float] = {}
    found: list[tuple[str, float, float]] = []
    for one in reversed(told):
        name, at = str(one.data.get("alarm", "")), times.unix(one.at)
        if not name.startswith("drift."):
            continue
        if one.kind == "alarm":
            raised.setdefault(name, at)
        elif name in raised:
            found.append((name, raised.pop(name), at))
    return [*found, *((name, since, float("inf")) for name, since in raised.items())]


@dataclass(frozen=True, slots=True)
class Row:
    """A stretch of the last week in which a trigger spoke for an increment."""

    at: float
    until: float  # as at, if an increment would have been started
    decision: Decision
    waiting: int  # images, at its end


def dry_run(workshop: Workshop, options: TriggerOptions, at: float, every_s: float = 5 * MINUTE) -> list[Row]:
    """What these options would have done in the week before `at`, a Unix time, looked at every so often.

    Increments that were really started are as they were. One that would have been trains for as long as the last one.
    """
    rows: list[Row] = []
    if not options.any:
        return rows
    past = Past.of(workshop, at)
    for k in range(int(WEEK / every_s) + 1):
        when = at - WEEK + k * every_s
        found = past.situation(options, when)
        made = decide(options, found, when)
        last = rows[-1] if rows else None
        if made.starts:
            past.simulated.append((when, found.expected_s))
            rows.append(Row(when, when, made, found.waiting))
        elif made.because and last and (last.decision.obstacle, last.until) == (made.obstacle, when - every_s):
            rows[-1] = Row(last.at, when, made, found.waiting)
        elif made.because:
            rows.append(Row(when, when, made, found.waiting))
    return rows


def shown(workshop: Workshop, options: TriggerOptions, at: float) -> Triggers:
    """What would start an increment now, and what would have in the week before, as JSON."""
    found = Past.of(workshop, at).situation(options, at)
    made = decide(options, found, at)
    return {
        "enabled": options.any,
        "waiting": found.waiting,
        "trained_s": round(found.trained_s, 3),
        "now": _described(Row(at, at, made, found.waiting)) if made.because else None,
        "week": [_described(row) for row in dry_run(workshop, options, at)],
    }


def _described(row: Row) -> TriggerRow:
    made = row.decision
    return {
        "at": times.text(row.at),
        "until": times.text(row.until),
        "action": "start" if made.starts else "held",
        "because": made.because,
        "obstacle": made.obstacle,
        "held": made.held or None,
        "waiting": row.waiting,
    }
