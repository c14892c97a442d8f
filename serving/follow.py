"""A replica's part of a swap: prepare, commit, release; and keeping up by itself with what is live in the registry.

The registry is the truth and a message is only the fast way: a replica that missed one finds out within a second.
Whatever takes time runs in a thread, one thing at a time; the event loop only ever sees one assignment.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from lifelist.exporter import index, session
from lifelist.exporter.errors import Corrupt, LifelistError, Missing
from lifelist.exporter.registry import Ref, Registry
from lifelist.exporter.session import Loaded
from lifelist.serving.live import Live
from lifelist.serving.metrics import Metrics
from lifelist.serving.options import ServingOptions

Found = TypeVar("Found")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """What one replica did in one phase of a swap. `problem` is why it could not."""

    replica: str
    version: int  # that answers here now
    generation: int
    seconds: float
    problem: LifelistError | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """How one replica stands."""

    replica: str
    version: int
    generation: int
    provider: str
    precision: str
    held: tuple[int, ...]
    behind: str | None  # why it does not answer by what is live, if it does not
    process_id: int
    pinned: tuple[int, ...] = ()  # of those held: the ones that no swap lets go


REST_S = 0.06  # between pieces of the work of loading, each of 10 ms or so: those who wait are answered in between
Load = Callable[[int, Loaded | None], Loaded]  # (version, one to share the session of) -> ready to answer


def loader(registry: Registry, options: ServingOptions, threads: int, lanes: int) -> Load:
    """Loads a version verified and warm. Blocks; for threads. Beside one that answers it takes rests."""

    def load(version: int, share: Loaded | None) -> Loaded:
        rest = partial(time.sleep, REST_S * options.replicas if share else 0)  # replicas load at the same time
        loaded = session.load(
            registry,
            version,
            threads=threads,
            lanes=lanes,
            provider=options.provider,
            precision=options.precision,
            share=share,
            rest=rest,
        )
        # a full batch would take the cores from those who are answered now
        loaded.warm((1, min(8, options.max_batch)), rest)
        return loaded

    return load


class Follower:
    """Moves a replica's `Live` along. All methods are called on the replica's event loop."""

    def __init__(self, replica: str, registry: Registry, load: Load, live: Live, metrics: Metrics) -> None:
        self.replica, self.registry, self.load, self.live, self.metrics = replica, registry, load, live, metrics
        self.behind: str | None = None
        self._thread = ThreadPoolExecutor(1, "versions", index.one_thread)  # where versions are loaded, and warmed
        self._turn = asyncio.Lock()
        self._shown()

    async def prepare(self, version: int, expected: int) -> Report:
        """Have a version ready to answer, for the swap that saw `live` at generation `expected`."""
        return await self._phase("prepare", self._hold(version, expected))

    async def commit(self, ref: Ref) -> Report:
        """Answer by the version of `ref` from the next batch on, unless something later answers already."""
        return await self._phase("commit", self._follow(ref))

    async def release(self, abandoned: int | None = None) -> Report:
        """Keep live and previous, and let go of the rest; also of `abandoned`, whose swap has failed."""
        return await self._phase("release", self._release(abandoned))

    async def pin(self, version: int) -> Report:
        """Hold a version so that it can be asked by its number, whatever is live, until `unpin`."""
        return await self._phase("load", self._hold_for_its_own_sake(version))

    async def unpin(self, version: int) -> Report:
        """No longer hold it for its own sake: it goes unless it is live or previous."""
        return await self._phase("unload", self._let_go(version))

    async def keep_up(self, every_s: float) -> None:
        """Look at what is live, for ever, and catch up if a message was missed."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        """Catch up with the registry once. What stops it is logged and told in `behind`; the next look tries again."""
        try:
            ref = await self._off_loop(partial(self.registry.ref, "live"))
            if ref is not None and ref.generation > self.live.ref.generation:
                async with self._turn:
                    await self._follow(ref)
            self.behind = None
        except Exception as error:  # noqa: BLE001  a replica that answers goes on answering; it says that it is behind
            if self.behind is None:
                log.error("live.missed", extra={"facts": {"replica": self.replica, "reason": str(error)}})
            self.behind = f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """Free the thread."""
        self._thread.shutdown(wait=False)

    async def _phase(self, phase: str, work: Awaitable[None]) -> Report:
        began = time.perf_counter()
        problem = None
        async with self._turn:
            try:
                await work
            except LifelistError as error:
                problem = error
            except Exception as error:  # noqa: BLE001  whatever a loader makes of odd bytes; the swap is told
                problem = Corrupt(f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - began
        self.metrics.swap.labels(phase).observe(seconds)
        facts = {"phase": phase, "replica": self.replica, "live": self.live.ref.version, "seconds": round(seconds, 4)}
        if problem is None:
            log.info("phase.finished", extra={"facts": facts})
        else:
            self.metrics.failed_swaps.labels(phase).inc()
            log.warning("phase.failed", extra={"facts": facts | {"reason": str(problem)}})
        return Report(self.replica, self.live.ref.version, self.live.ref.generation, seconds, problem)

    async def _hold(self, version: int, expected: int) -> None:
        loaded = self.live.held.get(version)
        if loaded is None:
            loaded = await self._off_loop(partial(self.load, version, self.live.current))
        self.live.hold(loaded, expected)
        self._shown()

    async def _hold_for_its_own_sake(self, version: int) -> None:
        before = version in self.live.pinned
        self.live.pin(version)
        try:
            await self._hold(version, 0)
        except BaseException:
            if not before:
                self.live.pinned.discard(version)
            raise

    async def _let_go(self, version: int) -> None:
        self.live.pinned.discard(version)
        await self._release(None)

    async def _follow(self, ref: Ref) -> None:
        if ref.generation <= self.live.ref.generation:
            return
        if ref.version not in self.live.held:  # it joined, or came back, between prepare and commit
            await self._hold(ref.version, ref.generation)
        self.live.commit(ref)
        self._shown()
        log.info("version.live", extra={"facts": {"replica": self.replica, "version": ref.version}})

    async def _release(self, abandoned: int | None) -> None:
        live, previous = await self._off_loop(lambda: (self.registry.ref("live"), self.registry.ref("previous")))
        if live is None:
            raise Missing(f"{self.registry.url} has no live version any more")
        self.live.release([ref.version for ref in (live, previous) if ref is not None], live.generation, abandoned)
        self._shown()

    async def _off_loop(self, work: Callable[[], Found]) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _shown(self) -> None:
        self.metrics.now_live(self.live.current)
        self.metrics.held_versions.set(len(self.live.held))
