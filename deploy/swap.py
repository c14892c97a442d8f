"""Replacing the live version under traffic: prepare on every replica, move the reference, commit, release.

Blocks, and is for threads: the operator's routes run in some, the worker is one. The reference in the registry decides
what is live; the messages only make it quick. A replica that misses one catches up by itself (serving/follow.py).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from lifelist.deploy.workshop import Swap
from lifelist.exporter.errors import Moved, Unavailable
from lifelist.exporter.registry import Ref, Registry
from lifelist.serving.follow import Report
from lifelist.serving.replicas import classifier

log = logging.getLogger(__name__)

ROUNDS = 8  # in which replicas that died, or came, are asked anew
COMMIT_ROUNDS = 3
PAUSE_S = 1.0

Ask = Callable[..., list[Any]]  # (method, *arguments) → what each replica that lives said: a Report, or an exception


@dataclass(frozen=True, slots=True)
class Swapped:
    """A swap that was made."""

    ref: Ref
    replicas: int  # that answer by it now; others follow by themselves
    seconds: dict[str, float]  # by phase


def over_replicas(registry: Registry, timeout_s: float) -> Swap:
    """`swap` as the update path calls it, on the replicas of the Ray Serve that this process is part of."""

    def swap_here(version: int, expected: int | None) -> None:
        swap(registry, version, expected, partial(ask_all, timeout_s))

    return swap_here


def ask_all(timeout_s: float, method: str, *arguments: Any) -> list[Any]:
    """What every living replica says to a call. Empty if none lives."""
    try:
        found: list[Any] = (
            classifier().broadcast(method, *arguments).results(timeout_s=timeout_s, return_exceptions=True)
        )
    except (RayServeException, RayError, TimeoutError) as error:
        log.warning("replicas.missed", extra={"facts": {"method": method, "reason": str(error)}})
        return []
    return found


def swap(registry: Registry, version: int, expected: int | None, ask: Ask) -> Swapped:
    """Make `version` live on all replicas, if `live` is still at generation `expected`.

    Missing if there is no such version, Moved if another swap was first, Unavailable if no replica lives; Corrupt (or
    what else a replica says) if the version cannot be loaded. In each of these nothing has changed: live answers on.
    Once the reference has moved the swap counts, even if every replica dies at that moment.
    """
    registry.manifest(version)
    _check(registry, expected)
    clock = _Clock()
    try:
        _prepare(ask, version, expected or 0)
        clock.lap("prepare")
        ref = registry.promote(version, expected)
        clock.lap("promote")
    except BaseException:
        ask("release", version)  # it is held in vain; no harm if nobody hears
        raise
    replicas = _commit(ask, ref)
    clock.lap("commit")
    ask("release")
    clock.lap("release")
    log.info("live.swapped", extra={"facts": {"version": version, "replicas": replicas} | clock.laps})
    return Swapped(ref, replicas, clock.laps)


def _check(registry: Registry, expected: int | None) -> None:
    """Moved if the swap could not succeed any more: loading for nothing takes the time of those who answer."""
    now = registry.ref("live")
    found = now.generation if now else None
    if found != expected:
        stands = f"at generation {found}, version {now.version}" if now else "not set"
        raise Moved(
            f"reference 'live' is {stands}; you expected generation {expected}. Read it again, and decide again"
        )


def _prepare(ask: Ask, version: int, generation: int) -> None:
    """Have every living replica ready. One that dies on the way is left out: its successor loads what is live.

    Raises the problem that a replica reports; Unavailable if, in all rounds, none was there or one always died.
    """
    lost = "none is running"
    for left in reversed(range(ROUNDS)):
        found = ask("prepare", version, generation)
        reports = [one for one in found if isinstance(one, Report)]
        for report in reports:
            if report.problem is not None:
                raise report.problem
        if reports and len(reports) == len(found):
            return
        lost = "; ".join(str(one) for one in found if not isinstance(one, Report))[:300] or lost
        log.warning("prepare.repeated", extra={"facts": {"rounds_left": left, "reason": lost}})
        if left:
            time.sleep(PAUSE_S)
    raise Unavailable(f"the replicas could not load version {version}, in {ROUNDS} rounds: {lost}")


def _commit(ask: Ask, ref: Ref) -> int:
    """Tell all replicas what is live; how many answer by it. A replica that cannot is told so by its own next look."""
    done: list[Any] = []
    for _ in range(COMMIT_ROUNDS):
        found = ask("commit", ref.version, ref.generation)
        done = [one for one in found if isinstance(one, Report) and one.generation >= ref.generation]
        if done and len(done) == len(found):
            return len(done)
        time.sleep(PAUSE_S)
    log.warning("commit.missed", extra={"facts": {"version": ref.version, "replicas": len(done)}})
    return len(done)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now
