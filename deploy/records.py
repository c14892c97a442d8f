"""The rows of deploy/store.py as values: classes, rollouts, their steps and events."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lifelist.client.answers import ENDED
from lifelist.monitoring.times import now as now


@dataclass(frozen=True, slots=True)
class KnownClass:
    """A class that has been named here once; its id is never given again."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """An increment on its way, as its row says. `facts` is what its finished steps returned, merged."""

    id: int
    state: str
    method: str  # as it was asked for
    request_key: str | None
    class_ids: tuple[int, ...]  # of the classes that bring images, new or known, in order of arrival
    cancel_requested: bool
    facts: Mapping[str, Any]
    reason: str | None  # why it was rejected, failed or cancelled
    version: int | None  # that it published
    created_at: str
    updated_at: str

    @property
    def row(self) -> str:
        """The row of the table of methods that it learned by; of "auto", that itself until it has been trained."""
        return str(self.facts.get("method", self.method))

    @property
    def ended(self) -> bool:
        """Whether it will never move again."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step that a rollout took, or is taking (`ended_at` None)."""

    state: str
    attempts: int
    began_at: str
    ended_at: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a rollout: `state`, `cancel-requested`, `ended`, or what its trainer says (`epoch` …)."""

    id: int  # rising; a reader that has seen all up to `id` asks for those after it
    rollout_id: int
    at: str
    kind: str
    data: Mapping[str, Any]
