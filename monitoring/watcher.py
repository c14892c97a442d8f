"""Looks at the answers of a running server, again and again: what they estimate, whether images drift, what probes say.

It is told how to ask (replicas, probes, gate images), so that a test can let days go by. Nothing here is on the way of
an answer: whatever fails is told and tried again at the next look.
"""

import functools
import itertools
import logging
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lifelist.exporter.answering import Answering, held_out
from lifelist.exporter.errors import LifelistError, Moved
from lifelist.exporter.imagery import LOOKS, looks
from lifelist.exporter.manifest import AnswerKind, Manifest
from lifelist.exporter.provisional import HeldOut
from lifelist.exporter.registry import Ref, Registry
from lifelist.exporter.session import MODEL
from lifelist.monitoring import drift, fallen, feedback, figures, notices, probe, seen, tables, times, unknowns
from lifelist.monitoring.database import Database, put
from lifelist.monitoring.drift import Past
from lifelist.monitoring.fallen import Fallen
from lifelist.monitoring.figures import HOUR, MINUTE, stretch
from lifelist.monitoring.intervals import Share, points
from lifelist.monitoring.options import MonitoringOptions
from lifelist.monitoring.probe import GateImage, Probed
from lifelist.monitoring.review import Queue
from lifelist.monitoring.seen import Seen
from lifelist.serving.observed import Observations

log = logging.getLogger(__name__)

COMPACT_EVERY_S = 3600.0
JUDGE_EVERY_S = 30.0  # looks at labels, after a swap
WINDOWS = ("short", "long")
LATEST = 100  # swaps that are looked at after a start

Observe = Callable[[], Sequence[Observations]]
Probe = Callable[[Sequence[GateImage]], Sequence[Probed]]
RollBack = Callable[[int, int], None]  # to a version, if live is at this generation; Moved if it is not


@dataclass(frozen=True, slots=True)
class Outside:
    """How the rest of the world is asked."""

    observe: Observe  # what replicas answered since the last time
    probe: Probe  # what the server answers to gate images
    gate: Callable[[], Sequence[GateImage]]  # those that there are
    roll_back: RollBack | None = None


@dataclass(slots=True)
class _Windows:
    """What was answered of late by one version in one way: short windows one after the other, and a long one."""

    pending: dict[str, list[Seen]] = field(default_factory=lambda: {name: [] for name in WINDOWS})

    def full(self, name: str, length: int, more: Seen) -> list[Seen]:
        """Add what was seen; the windows that are full by that."""
        parts = [*self.pending[name], more]
        if sum(map(len, parts)) < length:
            self.pending[name] = parts
            return []
        whole = Seen.together(parts)
        count = len(whole) // length
        rest = whole.of(slice(count * length, None))
        self.pending[name] = [rest] if len(rest) else []
        return [whole.of(slice(k * length, (k + 1) * length)) for k in range(count)]


def _have_passed(seconds: float, since: float, at: float) -> bool:
    """Whether so many seconds have passed. If the clock was set back, nobody knows, and it counts as if they had."""
    return not 0 <= at - since < seconds


def _nothing() -> dict[str, Past]:
    """What was answered before there was anything, by kind of window."""
    return {name: Past() for name in WINDOWS}


class Watcher:
    """One for each server. `look` is called every few seconds, by one thread."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        options: MonitoringOptions,
        outside: Outside,
        seed: int | None = None,
        queue: Queue | None = None,
    ) -> None:
        self.database, self.registry, self.options, self.outside = database, registry, options, outside
        self.queue = queue  # of images to be labelled; None: none are kept
        self.alarms = notices.Alarms(database)
        self.losses = notices.Losses(database)
        self.labels = fallen.Labels(database, registry)
        self.random = np.random.default_rng(seed)
        self._windows: dict[tuple[int, AnswerKind, str], _Windows] = {}
        self._past = _nothing()
        self._tested = 0  # windows, in this look
        self._live: Ref | None = None
        self._changed_at = 0.0  # when live came to know other classes, or to answer by another model
        self._probed_at = 0.0
        self._compacted_at = 0.0
        self._judged_at = 0.0
        self._owed: Fallen | None = None  # what was decided and could not be done
        self.answering = functools.lru_cache(4)(functools.partial(Answering.of, registry))
        self.reference = functools.lru_cache(4)(self._reference)
        self.swaps_to = functools.lru_cache(1)(lambda live: fallen.swaps(registry))  # it reads all that was ever live

    def look(self, at: float) -> None:
        """One look; at: now, a Unix time. Unless answers are to be watched it tells of swaps, and tidies up, alone."""
        self.losses.tell()  # first: while nothing can be written, replicas keep what they saw
        self._follow(at)
        if self.options.enabled:
            self._watch(at)
        else:
            self.alarms.end("nobody looks any more: monitoring.enabled is off")
        if _have_passed(COMPACT_EVERY_S, self._compacted_at, at):
            self._compacted_at = at
            feedback.compact(self.database, self.registry, self.options.label_days, at)
            figures.compact(self.database, self.options, at)
            unknowns.compact(self.database, at)
            if self.queue is not None:
                self.queue.compact(at)

    def _watch(self, at: float) -> None:
        self._observe(at)
        if self._is_due(at):
            self.probe(at)
        if _have_passed(JUDGE_EVERY_S, self._judged_at, at):
            self._judged_at = at
            judged = [self.labels.fallen(swap, self.options.loss, at) for swap in self._swaps(at)]
            self._act([self._owed, *judged])

    def _observe(self, at: float) -> None:
        """Look at what was answered. What has been taken from the replicas and cannot be kept is lost, and counted."""
        self._tested = 0
        taken = [one for one in self.outside.observe() if len(one.ids)]
        try:
            while taken:
                self._seen(taken[0], at)
                del taken[0]
        except Exception:
            self.losses.add("answers", sum(one.answered for one in taken))
            raise

    # What is live

    def _follow(self, at: float) -> None:
        """Tell of every swap since the last look, those included that went by while nobody watched."""
        ref = self.registry.ref("live")
        if ref is None or ref == self._live:
            return
        told = self._live.generation if self._live else self._told(ref)
        for then, now in itertools.pairwise(self.registry.history("live")[-LATEST:]):
            before, after = (self.registry.manifest(one.version) for one in (then, now))
            named, named_before = ({entry.id for entry in manifest.answerable} for manifest in (after, before))
            if named != named_before or after.file(MODEL).sha256 != before.file(MODEL).sha256:
                self._changed_at = times.unix(now.at)
                if now.generation > told:
                    self._past = _nothing()  # shares among other classes, or by another model, do not compare
            if now.generation > told:
                came, went = len(named - named_before), len(named_before - named)
                message = f"version {now.version} is live, after {then.version}; classes new: {came}, gone: {went}"
                facts = {"before": then.version, "generation": now.generation, "at": times.text(times.unix(now.at))}
                notices.tell(self.database, "swap", message, now.version, **facts)
        self._live, self._probed_at = ref, 0.0  # a probe at once
        for key in [key for key in self._windows if key[0] != ref.version]:
            del self._windows[key]

    def _told(self, ref: Ref) -> int:
        """The generation of `live` that was told of last. Before any notice of a swap only the latest one is news."""
        last = notices.told(self.database, limit=1, kinds=("swap",))
        return int(last[0].data["generation"]) if last else ref.generation - 1

    @property
    def live(self) -> Manifest | None:
        """The version that is live, as it was last looked at."""
        return None if self._live is None else self.registry.manifest(self._live.version)

    # What was answered

    def _seen(self, observations: Observations, at: float) -> None:
        answering = self.answering(observations.version)
        raw = observations.logits, observations.embedding, looks(observations.images, observations.sides)
        found, believed = seen.see(answering, observations.kind, *raw)
        if believed is not None:
            stretches = [(stretch(at, seconds), seconds) for seconds in (MINUTE, HOUR)]
            estimated = seen.estimated(answering, believed, observations.answered, stretches[0], stretches[1])
            with self.database.writing() as connection:
                figures.add(connection, estimated)
        unknowns.note(self.database, found.unknown, observations.answered, at)
        if self.queue is not None:
            self.queue.keep(answering, observations, found, at)
            self.losses.add("images", self.queue.take_lost())
        if self._live is None or observations.version != self._live.version:
            return
        if observations.kind != answering.manifest.default_answer:  # what few ask for is not what all are answered
            return
        key = observations.version, observations.kind, observations.precision
        windows = self._windows.setdefault(key, _Windows())
        for name, length in zip(WINDOWS, (self.options.window, self.options.long_window), strict=True):
            for window in windows.full(name, length, found):
                self._test(answering, self.reference(*key), name, window, at)

    def _reference(self, version: int, kind: AnswerKind, precision: str) -> Seen | None:
        held: HeldOut | None = held_out(self.registry, self.registry.manifest(version), precision)
        if held is None:
            return None
        if untold := [name for name, column in zip(LOOKS, held.looks.T, strict=True) if np.isnan(column).any()]:
            log.warning("drift.untested", extra={"facts": {"version": version, "tests": untold}})  # it is an older one
        return seen.reference(self.answering(version), kind, held)

    def _test(self, answering: Answering, reference: Seen | None, name: str, window: Seen, at: float) -> None:
        """Hold a window against the version's reference, and its classes against those answered before."""
        found = [] if reference is None else drift.compare(reference, window, self.random)
        now, known = drift.counted(window.best), sorted(entry.id for entry in answering.manifest.answerable)
        if (tested := drift.shares(self._past[name].counts, now, known, self.random)) is not None:
            found.append(tested)
        self._past[name].add(now, self.options.raise_after, self.random)
        found = drift.corrected(found, self.options.false_alarms)
        moment = times.text(at + 0.001 * self._tested)  # one look may have several windows, each a row for itself
        self._tested += 1
        rows = [
            {"at": moment, "version": answering.version, "window": name, "test": one.test, "images": one.images,
             "score": one.score, "p_value": one.p_value, "rejected": one.rejected}
            for one in found
        ]  # fmt: skip
        with self.database.writing() as connection:
            put(connection, tables.drift, rows)
        held = at - self._changed_at < self.options.hold_s
        for one in found:
            self.alarms.look(
                f"drift.{one.test}.{name}",
                one.rejected and not held,
                f"{one.test} of the last {len(window)} answers is not as it was: {one.score:.3f}, p {one.p_value:.4f}",
                answering.version,
                self.options.raise_after,
                self.options.clear_after,
                score=one.score,
                p_value=one.p_value,
            )
        if reference is None or any(one.test in drift.OF_IMAGES for one in found):  # else the window is too odd
            for test in sorted({*drift.OF_IMAGES} - {one.test for one in found}):
                self.alarms.untested(f"drift.{test}.{name}", answering.version)

    # Probes

    def _is_due(self, at: float) -> bool:
        every = self.options.probe_every_s
        if not self.options.probe_images or self._live is None:
            return False
        return self._probed_at == 0.0 or (every > 0 and _have_passed(every, self._probed_at, at))

    def probe(self, at: float) -> None:
        """Send gate images through the live path, and judge what comes back."""
        self._probed_at = at
        live = self.live
        assert live is not None
        named = {entry.id for entry in live.answerable}
        instead = live.instead
        images = [image for image in self.outside.gate() if instead.get(image.class_id, image.class_id) in named]
        chosen = probe.choose(images, self.options.probe_images)
        if not chosen:
            return
        try:
            answered = list(self.outside.probe(chosen))
        except LifelistError as error:
            self.alarms.look("probe.failed", True, str(error), live.version)
            return
        self.alarms.look("probe.failed", False, "probes are answered", live.version)
        probe.record(self.database, self.registry, answered, at)
        if any(one.version == live.version for one in answered):
            self._judge(live, answered)
            self._act([fallen.by_probe(self.database, swap, self.options.loss) for swap in self._swaps(at)])

    # When accuracy fell

    def _swaps(self, at: float) -> list[fallen.Swap]:
        """Those that may be taken back, or told of."""
        if self.options.rollback == "off":
            return []
        return [swap for swap in self.swaps_to(self._live) if at - swap.at <= self.options.rollback_within_s]

    def _act(self, judged: Sequence[Fallen | None]) -> None:
        """Roll back if accuracy fell, or tell; once for each swap."""
        found = fallen.worst([one for one in judged if one is not None])
        if found is None:
            return
        live, before = found.swap.live, found.swap.before.version
        facts: dict[str, object] = {
            "generation": live.generation,
            "before": before,
            "source": found.source,
            "change": found.change.difference,
            "low": found.change.low,
            "high": found.change.high,
            "images": found.change.total,
        }
        log.warning("accuracy.fell", extra={"facts": {"version": live.version, "message": found.message} | facts})
        if self.options.rollback == "tell" or self.outside.roll_back is None:
            told = notices.told(self.database, kinds=("rollback-advised",), limit=LATEST)
            if all(one.data["generation"] != live.generation for one in told):
                advice = f"{found.message}; roll back with: lifelist versions promote {before}"
                notices.tell(self.database, "rollback-advised", advice, live.version, **facts)
            return
        self._owed = found
        try:
            self.outside.roll_back(before, live.generation)
        except Moved as error:  # somebody else decided meanwhile
            self._owed = None
            log.warning("rollback.missed", extra={"facts": {"version": live.version, "reason": str(error)}})
            return
        except LifelistError as error:
            self.alarms.look("rollback.failed", True, f"{found.message}; to roll back failed: {error}", live.version)
            return
        self._owed = None
        self.alarms.look("rollback.failed", False, "rolling back works", live.version)
        told_ = f"{found.message}: version {before} is live again, by itself"
        notices.tell(self.database, "rollback", told_, live.version, **facts)
        log.warning("rollback.done", extra={"facts": {"version": live.version, "to": before}})

    def _judge(self, live: Manifest, answered: Sequence[Probed]) -> None:
        """Whether the live version is as good as its held-out images said, and as the one before on old classes."""
        held = list(probe.held(live, answered, self._promised(live)))
        if held:
            share, reference = (
                Share.of(sum(right for right, _ in held), len(held)),
                statistics.fmean(s for _, s in held),
            )
            assert share.ratio is not None
            assert share.high is not None
            self.alarms.look(
                "accuracy.probe",
                share.high < reference - self.options.loss,
                f"version {live.version} is right on {share.ratio:.1%} of {share.total:.0f} gate images (at most "
                f"{share.high:.1%}); on held-out images it was on {reference:.1%} when it was made",
                live.version,
                accuracy=share.ratio,
            )
        else:
            self.alarms.untested("accuracy.probe", live.version)
        changes = [(before, probe.change(self.database, before, live)) for before in self._before(live)]
        found = [(change.high, before, change) for before, change in changes if change is not None]
        if found:
            _, before, worst = min(found, key=lambda one: one[0])
            self.alarms.look(
                "accuracy.old",
                worst.high < -self.options.loss,
                f"version {live.version} is right {points(-worst.difference)} points less often than version "
                f"{before.version}, by {worst.total} gate images of classes that version {before.version} knew "
                f"({points(-worst.high)} to {points(-worst.low)})",
                live.version,
                before=before.version,
                change=worst.difference,
            )
        else:
            self.alarms.untested("accuracy.old", live.version)

    def _promised(self, live: Manifest) -> dict[int, float]:
        """By class id, recall on its held-out images, as it answers by default, when it was made; of classes with any.

        A class that was enrolled has none: how well it would be recognised was never promised.
        """
        held = held_out(self.registry, live)
        if held is None or not len(held.labels):
            return {}
        reference = self.reference(live.version, live.default_answer, "fp32")
        assert reference is not None
        instead, right = live.instead, defaultdict[int, list[bool]](list)
        for truth, best in zip(held.labels.tolist(), reference.best.tolist(), strict=True):
            if (true := instead.get(truth, truth)) is not None:
                right[true].append(true == best)
        return {class_id: sum(found) / len(found) for class_id, found in right.items()}

    def _before(self, live: Manifest) -> list[Manifest]:
        """The version that was live before this one, and the last one of another model, which it may be worse than."""
        earlier = dict.fromkeys(ref.version for ref in reversed(self.registry.history("live")))
        manifests = [self.registry.manifest(version) for version in earlier if version != live.version]
        others = [found for found in manifests if found.file(MODEL).sha256 != live.file(MODEL).sha256]
        return list({found.version: found for found in (*manifests[:1], *others[:1])}.values())
