"""The deployment that answers queries: HTTP and model in one process, and the methods that a swap calls on it."""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import CollectorRegistry
from ray import serve
from starlette.types import ASGIApp

from lifelist.exporter import index
from lifelist.exporter.errors import Missing
from lifelist.exporter.registry import Ref, Registry
from lifelist.serving import auth, classify, direct, infer, metrics
from lifelist.serving.auth import Door
from lifelist.serving.batcher import Batcher
from lifelist.serving.body import Intake
from lifelist.serving.classify import Parts
from lifelist.serving.follow import Follower, Report, Status, loader
from lifelist.serving.grpc import Service
from lifelist.serving.keys import Guard
from lifelist.serving.live import Answer, Live, Query
from lifelist.serving.metrics import Family, Metrics
from lifelist.serving.observed import Observations, Observed
from lifelist.serving.options import ServingOptions
from lifelist.serving.replicas import DEPLOYMENT, Broadcast
from lifelist.serving.repository import Repository
from lifelist.serving.statistics import Counts, Statistics

log = logging.getLogger(__name__)

UNBOUNDED = 100_000  # requests that Ray lets in: admission is ours, so that what is refused is refused in JSON


class Replica:
    """One replica, without Ray: whatever it needs to answer, wired together."""

    def __init__(
        self, name: str, registry: Registry, options: ServingOptions, key: bytes, guard: Guard, watched: bool = True
    ) -> None:
        ref = registry.ref("live")
        if ref is None:
            raise Missing(f"{registry.url} has no live version; make one: lifelist base DATA")
        index.one_thread()  # here, where the first version is warmed, as in those that answer and load others
        share = max(1, cores() // options.replicas)
        lanes = options.lanes or share
        load = loader(registry, options, options.threads or share, lanes)
        self.options = options
        self.metrics = Metrics(CollectorRegistry(), options.metric_classes)
        self.statistics = Statistics()
        first = load(ref.version, None)
        self.live = Live(first, ref, options.max_batch, options.max_loaded, on_run=self.statistics.ran)
        self.batcher: Batcher[Query, Answer] = Batcher(
            self.live.answer,
            max_batch=options.max_batch,
            max_queue=options.max_queue,
            lanes=lanes if first.provider == "cpu" else 1,  # a GPU has one queue, and is best fed by large batches
            on_batch=self.metrics.batch.observe,
            on_cancel=self.metrics.cancelled.inc,
            initializer=index.one_thread,
        )
        self.intake = Intake(options)
        self.metrics.queued.set_function(lambda: self.batcher.queued)
        self.metrics.held.set_function(lambda: self.intake.held)
        self.follower = Follower(name, registry, load, self.live, self.metrics)
        self.decoders = ThreadPoolExecutor(options.decode_threads, thread_name_prefix="decode")
        self.observed = Observed() if watched else Observed(most=0)
        self.replicas = Broadcast(load_timeout_s=options.prepare_timeout_s)
        self.parts = Parts(
            options=options,
            live=self.live,
            batcher=self.batcher,
            intake=self.intake,
            decoders=self.decoders,
            metrics=self.metrics,
            statistics=self.statistics,
            observed=self.observed,
            repository=Repository(registry, self.replicas, options),
            key=key,
            door=Door(guard, options.requests_per_second / options.replicas, auth.names(options)),
        )
        self.app: ASGIApp = classify.app(self.parts, infer.ROUTES)

    def status(self) -> Status:
        """How it stands."""
        follower, live = self.follower, self.live
        return Status(
            replica=follower.replica,
            version=live.ref.version,
            generation=live.ref.generation,
            provider=live.current.provider,
            precision=live.current.precision,
            held=tuple(sorted(live.held)),
            behind=follower.behind,
            process_id=os.getpid(),
            pinned=tuple(sorted(live.pinned)),
        )

    def close(self) -> None:
        """Free its threads."""
        self.batcher.close()
        self.follower.close()
        self.decoders.shutdown(wait=False)


@serve.ingress()
class Classifier(Service):
    """A replica as Ray Serve runs it. Its methods here are called by `handle.broadcast`, those of `Service` by gRPC."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self,
        registry: str,
        options: ServingOptions,
        key: bytes,
        guard: Guard,
        set_up: Callable[[], None],
        watched: bool,
    ) -> None:
        set_up()
        name = serve.get_replica_context().replica_id.unique_id
        self.replica = await asyncio.to_thread(Replica, name, Registry(registry), options, key, guard, watched)
        direct.take(self.replica.app, classify.is_query)
        await self.replica.follower.look()  # a swap may have gone by while it loaded
        self.following = asyncio.create_task(self._keep_up(options.reconcile_s))

    async def _keep_up(self, every_s: float) -> None:
        """Load what the other replicas hold because clients loaded it; then follow what is live, for ever."""
        follower = self.replica.follower
        try:
            pinned = {version for status in await self.replica.replicas.status() for version in status.pinned}
            for version in sorted(pinned):
                await follower.pin(version)
        except Exception as error:  # noqa: BLE001  whatever it is, it must not keep this replica from following live
            log.warning("loaded.missed", extra={"facts": {"replica": follower.replica, "reason": str(error)}})
        await follower.keep_up(every_s)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self.replica.app

    async def prepare(self, version: int, expected: int) -> Report:
        """Fetch, verify, load and warm a version beside the one that answers."""
        return await self.replica.follower.prepare(version, expected)

    async def commit(self, version: int, generation: int) -> Report:
        """Answer by a version from the next batch on."""
        return await self.replica.follower.commit(Ref(version, generation))

    async def release(self, abandoned: int | None = None) -> Report:
        """Let go of all versions but live and previous."""
        return await self.replica.follower.release(abandoned)

    async def load(self, version: int) -> Report:
        """Hold a version so that it can be asked by its number."""
        return await self.replica.follower.pin(version)

    async def unload(self, version: int) -> Report:
        """Let it go again."""
        return await self.replica.follower.unpin(version)

    async def statistics(self) -> dict[int, Counts]:
        """What it counted for each version."""
        return self.replica.statistics.snapshot()

    async def observed(self) -> list[Observations]:
        """A sample of what it answered since the last time."""
        taken = self.replica.observed.take()
        return await asyncio.to_thread(lambda: [sample.arrays() for sample in taken])

    async def metrics(self) -> tuple[str, tuple[Family, ...]]:
        """Which replica this is, and what it counted."""
        return self.replica.follower.replica, metrics.snapshot(self.replica.metrics.registry)

    async def status(self) -> Status:
        """How this replica stands."""
        return self.replica.status()

    async def __del__(self) -> None:
        if hasattr(self, "following"):
            self.following.cancel()
        if hasattr(self, "replica"):
            self.replica.close()


def application(
    registry: str,
    options: ServingOptions,
    key: bytes,
    guard: Guard,
    set_up: Callable[[], None] = lambda: None,
    watched: bool = True,
) -> serve.Application:
    """The Ray Serve application that answers at /v1/classify. `set_up` runs first in each replica: logging, say.

    watched: whether replicas keep a sample of what they answer, for one who asks for it (observed.py).
    """
    deployment: Any = serve.deployment(  # its stubs take it for a decorator alone
        Classifier,
        name=DEPLOYMENT,
        num_replicas=options.replicas,
        max_ongoing_requests=UNBOUNDED,
        max_queued_requests=-1,
        ray_actor_options={"num_cpus": 0, "num_gpus": 0},
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=options.drain_s + 5,
        graceful_shutdown_wait_loop_s=0.2,
    )
    bound: serve.Application = deployment.bind(registry, options, key, guard, set_up, watched)
    return bound


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
