"""All replicas of the classifier at once. `handle.broadcast` is Ray Serve's public way to reach each of them."""

from dataclasses import dataclass
from typing import Any, Protocol

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from lifelist.exporter.errors import Unavailable
from lifelist.serving.follow import Status
from lifelist.serving.metrics import Family

DEPLOYMENT, APPLICATION = "Classifier", "classifier"

Snapshots = dict[str, tuple[Family, ...]]


class Replicas(Protocol):
    """What the catalog asks of the replicas."""

    async def status(self) -> list[Status]:
        """How each replica stands that answers; those that do not are left out."""

    async def metrics(self) -> Snapshots:
        """What each replica counted, by its name."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """The replicas of a running Ray Serve."""

    timeout_s: float = 5

    async def status(self) -> list[Status]:
        """How each replica stands that answers."""
        return [found for found in await self._ask("status") if isinstance(found, Status)]

    async def metrics(self) -> Snapshots:
        """What each replica counted, by its name."""
        return dict(found for found in await self._ask("metrics") if isinstance(found, tuple))

    async def _ask(self, method: str) -> list[Any]:
        try:
            asked = classifier().broadcast(method)
            found: list[Any] = await asked.results_async(timeout_s=self.timeout_s, return_exceptions=True)
        except (DeploymentUnavailableError, RayServeException, TimeoutError) as error:
            raise Unavailable(f"no replica answers: {error}") from error
        return found


def classifier() -> Any:
    """The handle of the classifier, in any process that Ray Serve is known to."""
    return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
