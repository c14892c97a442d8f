"""Where the seconds of an increment go, seen from outside: the loop's own functions are timed as they run."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from lifelist.training import data, evaluate, increment, loop, network, rebalance

PHASES: tuple[tuple[str, Any, str], ...] = (
    ("augment", data.Augmentation, "__call__"),
    ("augment", torch.nn.functional, "interpolate"),
    ("student forward", network.Network, "logits"),
    ("teacher", loop.Teacher, "__call__"),
    ("loss", loop, "increment_loss"),
    ("backward", torch.autograd, "grad"),
    ("optimiser", torch.optim.SGD, "step"),
    ("bias correction", rebalance, "features"),
    ("bias correction", rebalance, "fit_bias"),
    ("selection", increment, "_remember"),
    ("evaluation", evaluate, "features"),
    ("evaluation", evaluate, "accuracy"),
)
NAMES = (*dict.fromkeys(name for name, _, _ in PHASES), "other")


class Profile:
    """Wall seconds by phase. Of threads side by side, the mean; of a phase inside another, the outer one's."""

    def __init__(self) -> None:
        self._main = threading.get_ident()
        self._inside = threading.local()
        self._spent: dict[tuple[str, int], float] = {}

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time counts for `phase`."""

        def call(*arguments: Any, **named: Any) -> Any:
            if getattr(self._inside, "phase", None):
                return function(*arguments, **named)
            self._inside.phase, began = phase, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                key = phase, threading.get_ident()
                self._spent[key] = self._spent.get(key, 0.0) + time.perf_counter() - began
                self._inside.phase = None

        return call

    def seconds(self, whole: float) -> dict[str, float]:
        """Of each phase, in the order of NAMES; "other" is what is left of `whole`."""
        found = {}
        for name in NAMES[:-1]:
            side = [s for (phase, thread), s in self._spent.items() if phase == name and thread != self._main]
            found[name] = self._spent.get((name, self._main), 0.0) + sum(side) / max(1, len(side))
        return found | {"other": max(0.0, whole - sum(found.values()))}


@contextmanager
def profiled() -> Iterator[Profile]:
    """Times the functions of PHASES as long as the block lasts: a few µs for each call, six calls for each batch."""
    profile = Profile()
    with ExitStack() as stack:
        for phase, owner, name in PHASES:
            stack.enter_context(mock.patch.object(owner, name, profile.timed(phase, getattr(owner, name))))
        yield profile
