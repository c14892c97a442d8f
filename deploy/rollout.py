"""The rollout: a durable job that takes an increment from examples to live, or ends it and says why.

A table of steps, and a few lines that walk it. Whoever walks it may be killed at any moment: the next one begins again
at the step that had not ended. One rollout is carried at a time; later ones wait in the queue.
"""

import dataclasses
import itertools
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lifelist.deploy import examples, gate, steps
from lifelist.deploy.records import KnownClass, Rollout
from lifelist.deploy.store import QUEUED
from lifelist.deploy.workshop import Workshop, memory
from lifelist.exporter.errors import (
    BadInput,
    BadSetting,
    Cancelled,
    Conflict,
    Corrupt,
    Failed,
    Missing,
    Moved,
    Refused,
)
from lifelist.exporter.manifest import Manifest
from lifelist.training.methods import NAMES, certainly_trains, possible
from lifelist.training.options import TrainingOptions, check, uncorrected

log = logging.getLogger(__name__)

MOST_FAILURES = 5  # tries of a step that raised; then the rollout fails with what it raised
MOST_ATTEMPTS = 50  # of a step whose process was killed each time


@dataclass(frozen=True, slots=True)
class Step:
    """What a state does, and the states that follow. `if_moved`: live moved while the step was under way."""

    run: Callable[[Workshop, Rollout], steps.Facts]
    then: str
    if_refused: str = "rejected"
    if_moved: str = "failed"
    if_failed: str = "failed"  # for good; where that is no end in failure, the reason is an event only


# fmt: off
STEPS = {
    "intake":   Step(steps.fix_images,           then="train"),
    "train":    Step(steps.train_increment,      then="export"),  # resumes from its last epoch
    "export":   Step(steps.export_candidate,     then="parity"),
    "parity":   Step(steps.compare_with_network, then="gate"),
    "gate":     Step(steps.judge_candidate,      then="quantise", if_refused="keep"),
    "quantise": Step(steps.quantise_candidate,   then="publish", if_failed="publish"),  # then fp32 serves
    "publish":  Step(steps.publish_version,      then="swap"),
    "swap":     Step(steps.make_live,            then="tidy",    if_moved="publish"),  # classes were enrolled meanwhile
    "tidy":     Step(steps.tidy,                 then="done",    if_failed="done"),  # live has moved already
    "keep":     Step(steps.keep_rejected,        then="rejected"),
}
# fmt: on


def start(
    workshop: Workshop,
    classes: Sequence[str | int] | None = None,
    method: str | None = None,
    request_key: str | None = None,
) -> Rollout:
    """Queue a rollout of the named classes (names or ids), or of all that are pending, by a method, or the settings'.
    A class that is trained already is learned again with the images that came since.

    A `request_key` that was used before gives the rollout that it was used for, and changes nothing. Conflict if there
    is nothing to learn, or a class cannot be learned now; BadSetting if memory or batch do not do for so many classes
    or images; Missing for an unknown class. Its first events are warnings of what is known before any work.
    """
    store, settings = workshop.store, workshop.settings
    if method is not None and method not in NAMES:
        raise BadSetting(f"method {method!r} does not exist; there are {', '.join(NAMES)}")
    named = None if classes is None else [store.class_named(name) for name in classes]
    if request_key is not None and (known := store.rollout_of(request_key)) is not None:
        return _same_request(known, named, method)
    live = workshop.live
    waiting = examples.pending(workshop, live)
    chosen = waiting if named is None else named
    if not chosen:
        raise Conflict("no class waits to be learned: add examples first, of a new one or of one that is known")
    _check_learnable(workshop, live, chosen)
    options = dataclasses.replace(settings.training, method=method or settings.training.method)
    _check_options(workshop, live, chosen, options)
    warnings = list(_warnings(workshop, live, chosen, options))
    rollout = store.add_rollout(options.method, [c.id for c in chosen], request_key, warnings)
    return rollout if request_key is None else _same_request(rollout, named, method)


def carry_all(workshop: Workshop) -> list[Rollout]:
    """Carry every open rollout to its end, in order. [] if there is none, or if another process is at it."""
    store = workshop.store
    with store.exclusive() as alone:
        if not alone:
            return []
        for rollout in store.rollouts():
            if rollout.ended:  # its carrier may have been killed just before it cleared up
                _clear(workshop, rollout)
        ended = []
        while waiting := store.open_rollouts():
            ended.append(carry(workshop, waiting[0]))
        return ended


def carry(workshop: Workshop, rollout: Rollout) -> Rollout:
    """Carry a rollout from where it stands to an end. Call it again after a crash, from any process.

    What a step raises that time may cure is raised here too, and the state stays: call it again. The caller makes sure
    that nobody else carries one, as `carry_all` does.
    """
    store = workshop.store
    while not rollout.ended:
        if rollout.cancel_requested:
            if rollout.state == "train":  # a carrier that was killed left it
                workshop.end_training()
            rollout = store.move(rollout, "cancelled", reason=f"cancelled in state {rollout.state!r}")
            continue
        following, facts = ("intake", {}) if rollout.state == QUEUED else _take(workshop, rollout)
        try:
            rollout = store.move(rollout, following, facts, reason=facts.get("reason"), version=facts.get("version"))
        except Moved:
            rollout = store.rollout(rollout.id)
            if not (rollout.ended or rollout.cancel_requested):
                raise
        log.info("rollout.moved", extra={"facts": {"id": rollout.id, "state": rollout.state}})
    _clear(workshop, rollout)
    facts = {"id": rollout.id, "state": rollout.state, "version": rollout.version, "reason": rollout.reason}
    log.info("rollout.ended", extra={"facts": facts})
    return rollout


def _take(workshop: Workshop, rollout: Rollout) -> tuple[str, steps.Facts]:
    """Run the step of a rollout's state: (the state that follows, facts)."""
    step = STEPS[rollout.state]
    begun, raised = workshop.store.begin_step(rollout)
    if begun - raised > MOST_ATTEMPTS:
        return _failed(workshop, rollout, f"step {rollout.state!r} was killed {MOST_ATTEMPTS} times")
    try:
        return step.then, step.run(workshop, rollout)
    except Refused as refusal:  # a verdict
        return step.if_refused, {**refusal.facts, "reason": str(refusal)}
    except Cancelled as request:
        workshop.end_training()
        return "cancelled", {"reason": str(request)}
    except Moved as error:
        return step.if_moved, {} if step.if_moved in STEPS else {"reason": str(error)}
    except (BadInput, Conflict, Corrupt, Failed, Missing) as error:  # the same again would end the same
        log.warning("step.failed", extra={"facts": {"id": rollout.id, "state": rollout.state}}, exc_info=True)
        return _failed(workshop, rollout, f"in step {rollout.state!r}: {error}")
    except Exception as error:
        if (raised := workshop.store.fail_step(rollout)) < MOST_FAILURES:
            raise
        log.exception("step.failed", extra={"facts": {"id": rollout.id, "state": rollout.state}})
        kind = type(error).__name__
        return _failed(workshop, rollout, f"step {rollout.state!r} failed {raised} times, at last with {kind}: {error}")


def _failed(workshop: Workshop, rollout: Rollout, reason: str) -> tuple[str, steps.Facts]:
    """(the state that follows, facts) of a step that is given up."""
    following = STEPS[rollout.state].if_failed
    if following == "failed":
        return following, {"reason": reason}
    workshop.store.tell(rollout.id, "step-failed", {"state": rollout.state, "reason": reason})
    return following, {}


def _clear(workshop: Workshop, rollout: Rollout) -> None:
    """Delete the files of a rollout that has ended; all that must stay is in registry and database."""
    if not workshop.settings.examples.keep:
        shutil.rmtree(workshop.folder(rollout.id), ignore_errors=True)


def _same_request(rollout: Rollout, named: Sequence[KnownClass] | None, method: str | None) -> Rollout:
    """The rollout that a key was used for, if this request asks for the same."""
    differs = named is not None and {known.id for known in named} != set(rollout.class_ids)
    if differs or method not in (None, rollout.method):
        raise Conflict(
            f"the idempotency key {rollout.request_key!r} was used for increment {rollout.id}, of classes "
            f"{list(rollout.class_ids)} by method {rollout.method!r}; use another key to ask for something else"
        )
    return rollout


def _check_learnable(workshop: Workshop, live: Manifest | None, chosen: Sequence[KnownClass]) -> None:
    """Conflict if a class has nothing to train on that live has not seen."""
    trained = {entry.id for entry in live.trained} if live else set()
    images = examples.waiting(workshop, live, [known.id for known in chosen])
    counts = Counter((example.class_id, example.role) for example in images)
    if empty := [known for known in chosen if not counts[known.id, "training"]]:
        if again := [known.name for known in empty if known.id in trained]:
            raise Conflict(
                f"classes {again} are trained already, in version {live and live.version}, and have no new images to "
                "train on; add examples of them first"
            )
        raise Conflict(
            f"classes {[known.name for known in empty]} have no images to train on; add examples of them first"
        )


def _check_options(
    workshop: Workshop, live: Manifest | None, chosen: Sequence[KnownClass], options: TrainingOptions
) -> None:
    """BadSetting if memory or batch do not do for the classes and images that this increment would have."""
    trained = {entry.id for entry in live.trained} if live else set()
    images = examples.waiting(workshop, live, [known.id for known in chosen])
    count = sum(example.role == "training" for example in images)
    if live and any(row.replays for row in possible(options.method)):
        count += sum(map(len, memory(workshop.registry, live)["exemplars"].values()))
    trains = certainly_trains(options.method, len(trained))
    check(options, classes=len(trained | {known.id for known in chosen}), images=count if trains else None)


def _warnings(
    workshop: Workshop, live: Manifest | None, chosen: Sequence[KnownClass], options: TrainingOptions
) -> Iterator[tuple[str, str]]:
    """(what, message) of what an operator should know before anything is trained."""
    trained = {entry.id for entry in live.trained} if live else set()
    new = [known for known in chosen if known.id not in trained]
    judging = [check.min_images for check in workshop.settings.gate if check.check == "new_class_accuracy"]
    needed = max(judging, default=0)
    images = examples.kept(workshop.store, [known.id for known in new])
    counts = Counter(example.class_id for example in images if example.role == "gate")
    if few := [known for known in new if counts[known.id] < needed]:
        shown = gate.some([f"{known.name!r} ({counts[known.id]} of {needed})" for known in few])
        yield (
            "classes.unjudged",
            f"the gate will not judge {shown}, of which too few images are set apart: learned all the same; "
            f"{_remedy(workshop, needed)}",
        )
    if new and not workshop.settings.examples.holdout_share and all(row.holdout for row in possible(options.method)):
        yield (
            "examples.no-correction",
            "examples.holdout_share is 0, so no image is held out to fit a bias correction on: method "
            f"{options.method!r} will answer uncorrected. Give it a share (0.1 is usual), or use method wa",
        )
    elif new and (message := uncorrected(options, len(trained) or len(new))):
        yield "memory.no-correction", message


def _remedy(workshop: Workshop, needed: int) -> str:
    """What would give a class so many images for the gate."""
    shares = workshop.settings.examples
    if not shares.gate_share:
        return "examples.gate_share is 0, so no image is set apart"
    pattern = enumerate(examples.roles(shares.gate_share, shares.holdout_share), start=1)
    least = next(itertools.islice((k for k, role in pattern if role == "gate"), needed - 1, None))
    return f"send at least {least} images of a class to have it judged"
