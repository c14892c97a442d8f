"""Where the seconds of an increment go, seen from outside: the loop's own functions are timed as they run."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from lifelist.training import data, evaluate, increment, loop, network, rebalance

PHASES: tuple[tuple[str, Any, str, bool], ...] = (  # (phase, where, what, whether that is a pass through a network)
    ("augment", data.Augmentation, "__call__", False),
    ("augment", torch.nn.functional, "interpolate", False),
    ("student forward", network.Network, "logits", True),
    ("teacher", loop.Teacher, "__call__", True),
    ("loss", loop, "increment_loss", False),
    ("backward", torch.autograd, "grad", True),
    ("optimiser", torch.optim.SGD, "step", False),
    ("bias correction", rebalance, "features", True),
    ("bias correction", rebalance, "fit_bias", False),
    ("selection", increment, "_remember", False),
    ("evaluation", evaluate, "features", True),
    ("evaluation", evaluate, "accuracy", False),
)
NAMES = (*dict.fromkeys(name for name, *_ in PHASES), "other")


class Profile:
    """Wall seconds by phase. Of threads side by side, the mean; of a phase inside another, the outer one's."""

    def __init__(self) -> None:
        self._main = threading.get_ident()
        self._inside = threading.local()
        self._spent: dict[tuple[str, int], float] = {}
        self._passes: dict[tuple[str, int], float] = {}

    def timed(self, phase: str, function: Callable[..., Any], is_pass: bool) -> Callable[..., Any]:
        """`function`, whose time counts for `phase`, and as the networks' own if it is a pass through one."""

        def call(*arguments: Any, **named: Any) -> Any:
            outer, in_pass = getattr(self._inside, "phase", None), getattr(self._inside, "is_pass", False)
            if outer and (in_pass or not is_pass):
                return function(*arguments, **named)
            self._inside.phase, self._inside.is_pass, began = outer or phase, is_pass, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                key, spent = (outer or phase, threading.get_ident()), time.perf_counter() - began
                if not outer:
                    self._spent[key] = self._spent.get(key, 0.0) + spent
                if is_pass:
                    self._passes[key] = self._passes.get(key, 0.0) + spent
                self._inside.phase, self._inside.is_pass = outer, in_pass

        return call

    def seconds(self, whole: float) -> dict[str, float]:
        """Of each phase, in the order of NAMES; "other" is what is left of `whole`."""
        found = self._by_phase(self._spent)
        return found | {"other": max(0.0, whole - sum(found.values()))}

    def passes(self) -> dict[str, float]:
        """Of these, the seconds in passes through a network; "other" has none."""
        return self._by_phase(self._passes) | {"other": 0.0}

    def _by_phase(self, spent: Mapping[tuple[str, int], float]) -> dict[str, float]:
        found = {}
        for name in NAMES[:-1]:
            side = [s for (phase, thread), s in spent.items() if phase == name and thread != self._main]
            found[name] = spent.get((name, self._main), 0.0) + sum(side) / max(1, len(side))
        return found


@contextmanager
def profiled() -> Iterator[Profile]:
    """Times the functions of PHASES as long as the block lasts: a few µs for each call, six calls for each batch."""
    profile = Profile()
    with ExitStack() as stack:
        for phase, owner, name, is_pass in PHASES:
            timed = profile.timed(phase, getattr(owner, name), is_pass)
            stack.enter_context(mock.patch.object(owner, name, timed))
        yield profile
