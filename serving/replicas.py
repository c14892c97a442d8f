"""All replicas of the classifier at once. `handle.broadcast` is Ray Serve's public way to reach each of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from lifelist.exporter.errors import Unavailable
from lifelist.serving.follow import Report, Status
from lifelist.serving.metrics import Family
from lifelist.serving.observed import Observations
from lifelist.serving.statistics import Counts

DEPLOYMENT, APPLICATION = "Classifier", "classifier"

Snapshots = dict[str, tuple[Family, ...]]


class Replicas(Protocol):
    """What is asked of the replicas. Unavailable if none answers."""

    async def status(self) -> list[Status]:
        """How each replica stands that answers; those that do not are left out."""

    async def metrics(self) -> Snapshots:
        """What each replica counted, by its name."""

    async def statistics(self) -> list[Mapping[int, Counts]]:
        """What each replica counted for each version."""

    async def observed(self) -> list[Observations]:
        """A sample of what each replica answered since the last time, by version and kind of answer."""

    async def load(self, version: int) -> list[Report]:
        """Each replica's report of having loaded a version, to be asked by its number."""

    async def unload(self, version: int) -> list[Report]:
        """Each replica's report of having let it go."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """The replicas of a running Ray Serve."""

    timeout_s: float = 5
    load_timeout_s: float = 300

    async def status(self) -> list[Status]:
        """How each replica stands that answers."""
        return [found for found in await self._ask("status") if isinstance(found, Status)]

    async def metrics(self) -> Snapshots:
        """What each replica counted, by its name."""
        return dict(found for found in await self._ask("metrics") if isinstance(found, tuple))

    async def statistics(self) -> list[Mapping[int, Counts]]:
        """What each replica counted for each version."""
        return [found for found in await self._ask("statistics") if isinstance(found, dict)]

    async def observed(self) -> list[Observations]:
        """A sample of what each replica answered since the last time."""
        return [one for found in await self._ask("observed") if isinstance(found, list) for one in found]

    async def load(self, version: int) -> list[Report]:
        """Each replica's report of having loaded a version, to be asked by its number."""
        return await self._reports("load", version, self.load_timeout_s)

    async def unload(self, version: int) -> list[Report]:
        """Each replica's report of having let it go."""
        return await self._reports("unload", version, self.timeout_s)

    async def _reports(self, method: str, version: int, timeout_s: float) -> list[Report]:
        found = await self._ask(method, version, timeout_s=timeout_s)
        if not (reports := [one for one in found if isinstance(one, Report)]):
            raise Unavailable(f"no replica answers: {'; '.join(map(str, found))[:300]}")
        return reports

    async def _ask(self, method: str, *arguments: Any, timeout_s: float | None = None) -> list[Any]:
        try:
            asked = classifier().broadcast(method, *arguments)
            found: list[Any] = await asked.results_async(timeout_s=timeout_s or self.timeout_s, return_exceptions=True)
        except (DeploymentUnavailableError, RayServeException, TimeoutError) as error:
            raise Unavailable(f"no replica answers: {error}") from error
        return found


def classifier() -> Any:
    """The handle of the classifier, in any process that Ray Serve is known to."""
    return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
