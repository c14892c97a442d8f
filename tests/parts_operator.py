"""A whole server in this process: the real operator and one real replica behind one port, without Ray around them.

What Ray would do (start replicas, carry a swap to each of them) is done here by a direct call; the tests of serving and
of faults run the real thing. This one starts in a tenth of a second.
"""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from parts import BIRDS, encoded, tiny_images, tiny_version
from starlette.types import Receive, Scope, Send

from lifelist.deploy import haproxy, operator, tables
from lifelist.deploy.records import Rollout, now
from lifelist.deploy.settings import Settings
from lifelist.deploy.workshop import Workshop, open_workshop
from lifelist.exporter.registry import Registry
from lifelist.serving import keys, metrics, prediction
from lifelist.serving.app import Replica
from lifelist.serving.catalog import Catalog
from lifelist.serving.follow import Report, Status
from lifelist.serving.keys import Guard
from lifelist.serving.metrics import Family
from lifelist.serving.observed import Observations, Taken
from lifelist.serving.statistics import Counts


@dataclass(frozen=True)
class Server:
    """Where it listens, and what it works with."""

    url: str
    settings: Settings
    workshop: Workshop
    replica: Replica
    loop: asyncio.AbstractEventLoop

    @property
    def port(self) -> str:
        """The port, as a flag takes it."""
        return self.url.rpartition(":")[2]

    def observed(self) -> list[Observations]:
        """What it answered since the last time, as the watcher gets it."""

        async def take() -> list[Taken]:
            return self.replica.observed.take()

        taken = asyncio.run_coroutine_threadsafe(take(), self.loop).result(30)
        return [sample.arrays() for sample in taken]


class _One:
    """The one replica of this process, asked directly: `Replicas` as the catalog knows them."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    async def status(self) -> list[Status]:
        return [self.replica.status()]

    async def metrics(self) -> dict[str, tuple[Family, ...]]:
        return {"one": metrics.snapshot(self.replica.metrics.registry)}

    async def statistics(self) -> list[Mapping[int, Counts]]:
        return [self.replica.statistics.snapshot()]

    async def observed(self) -> list[Observations]:
        return [sample.arrays() for sample in self.replica.observed.take()]

    async def load(self, version: int) -> list[Report]:
        return [await self.replica.follower.pin(version)]

    async def unload(self, version: int) -> list[Report]:
        return [await self.replica.follower.unpin(version)]


@contextlib.contextmanager
def serving(
    home: Path, known: Sequence[str] = BIRDS[:3], before: Callable[[Workshop], Any] | None = None, **settings: Any
) -> Iterator[Server]:
    """A server whose live version 1 is tiny and knows the `known` classes, with ids from 1; `before` it starts."""
    made = Settings(home=home, **settings)
    tiny_version(Registry(made.registry_url), known, first_id=1, live=True)

    def named(workshop: Workshop) -> None:
        with workshop.store.writing() as connection:
            connection.execute(tables.classes.insert(), [{"name": name, "created_at": now()} for name in known])
        if before is not None:
            before(workshop)

    with running(made, named) as server:
        yield server


@contextlib.contextmanager
def running(made: Settings, before: Callable[[Workshop], Any] = lambda _: None) -> Iterator[Server]:
    """A server of settings that have a live version."""
    registry = Registry(made.registry_url)
    loop = asyncio.new_event_loop()
    key = prediction.key_in(made.secret_file)
    guard = Guard(made.keys_file, anonymous=made.is_open, own=keys.own(key))
    replica = Replica("one", registry, made.serving, key, guard)

    def wait_for(work: Any) -> None:
        report = asyncio.run_coroutine_threadsafe(work, loop).result(30)
        if report.problem is not None:
            raise report.problem

    def swap(version: int, expected: int | None) -> None:
        wait_for(replica.follower.prepare(version, expected or 0))
        ref = registry.promote(version, expected)
        wait_for(replica.follower.commit(ref))
        wait_for(replica.follower.release())

    workshop = open_workshop(made, swap=swap)
    before(workshop)
    operated = operator.app(workshop, Catalog(registry, _One(replica), made.serving, nonce="test"), guard)

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        chosen = replica.app if path == "/v1/classify" or re.match(haproxy.QUERIES, path) else operated
        await chosen(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(both, port=0, log_level="error", lifespan="on", timeout_graceful_shutdown=1))

    def serve() -> None:
        loop.run_until_complete(server.serve())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Server(f"http://127.0.0.1:{port}", made, workshop, replica, loop)
    finally:
        server.should_exit = True
        thread.join(10)
        replica.close()
        workshop.store.close()


def bird(k: int, variant: int = 0) -> bytes:
    """An image file of the k-th of parts.BIRDS; each variant is another file, with a few pixels changed."""
    image = tiny_images()[k].copy()
    if variant:
        image[variant % 16, variant // 16 % 16] ^= 1
    return encoded(image)


def files(k: int, count: int, first: int = 0) -> list[tuple[str, bytes]]:
    """`count` different image files of the k-th bird, with their names."""
    return [(f"{BIRDS[k]}-{n}.png", bird(k, n)) for n in range(first, first + count)]


def take_step(workshop: Workshop, rollout: Rollout, to: str, facts: Mapping[str, Any] | None = None) -> Rollout:
    """Do what a carrier does to the database at a step's end, without the step's work: deploy's tests do that."""
    if rollout.state != "queued":
        workshop.store.begin_step(rollout)
    return workshop.store.move(rollout, to, facts)


def tell_epoch(workshop: Workshop, rollout: Rollout, epoch: int, epochs: int) -> None:
    """An event as the trainer writes one after each epoch."""
    event = {"phase": "main", "epoch": epoch, "epochs": epochs, "loss": {"classify_new": 1 / epoch}}
    event |= {"images_per_second": 100.0, "seconds_left": float(epochs - epoch)}
    workshop.store.tell(rollout.id, "epoch", event)


def play(server: Server) -> None:
    """What a carrier would tell of a whole rollout."""
    shop = server.workshop
    rollout = take_step(shop, shop.store.rollout(1), "intake")
    rollout = take_step(shop, rollout, "train")
    for epoch in range(1, 6):
        time.sleep(0.05)
        tell_epoch(shop, rollout, epoch, 5)
    for state in ("export", "parity", "gate", "quantise", "publish", "swap", "tidy", "done"):
        rollout = take_step(shop, rollout, state)
