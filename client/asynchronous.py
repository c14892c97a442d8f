"""The client to be awaited: the methods of lifelist/client/blocking.py, where each is described."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from lifelist.client import routes, wire
from lifelist.client.answers import (
    ENDED,
    Added,
    AlarmList,
    Alive,
    BiasOf,
    ClassDetail,
    Classes,
    Classified,
    Confusions,
    DriftTests,
    Increment,
    Judged,
    Moved,
    Named,
    Notices,
    QualityOf,
    Ready,
    Reviewed,
    Reviews,
    Triggers,
    Version,
    Versions,
    Webhooks,
    WebhooksTested,
)
from lifelist.client.errors import Unavailable
from lifelist.client.images import QUERY_BYTES, UPLOAD_BYTES, Images, OnSent, batches, each, labelled, unfolded
from lifelist.client.wire import Call, Event, Found, Lines, Request, T, Watch


class AsyncClient:
    """A connection to one server, from one event loop: `async with AsyncClient(url) as client: await client.classes()`.

    Arguments, methods and errors are those of `Client`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60,
        patience_s: float = 30,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self.patience_s = url.rstrip("/"), patience_s
        self._http = httpx.AsyncClient(transport=transport, **wire.options(url, timeout_s, api_key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # ------------------------------------------------------------------------------------------------ queries

    async def classify(
        self,
        images: Images,
        top_k: int | None = None,
        answer: str | None = None,
        *,
        unknown_at: float | None = None,
    ) -> Classified:
        """The classes of each image, best first; one query, and one version answers it."""
        return await self._send(routes.classify(list(each(images)), top_k, answer, unknown_at))

    async def classify_many(
        self,
        images: Images,
        top_k: int | None = None,
        answer: str | None = None,
        *,
        unknown_at: float | None = None,
        batch: int = 64,
        batch_bytes: int = QUERY_BYTES,
        concurrency: int = 4,
    ) -> AsyncIterator[Named]:
        """The classes of any number of images, in order; at most `concurrency` queries are under way at once."""
        under_way: deque[asyncio.Task[Classified]] = deque()
        try:
            for some in batches(images, batch, batch_bytes):
                if len(under_way) == concurrency:
                    for one in routes.named(await under_way.popleft()):
                        yield one
                asked = routes.classify(some, top_k, answer, unknown_at)
                under_way.append(asyncio.create_task(self._send(asked)))
            while under_way:
                for one in routes.named(await under_way.popleft()):
                    yield one
        finally:  # the first that failed, or a caller that leaves, ends the others
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def classes(self) -> Classes:
        """Every class that the live version knows."""
        return await self._send(routes.classes())

    async def versions(self) -> Versions:
        """Every version, and which is live."""
        return await self._send(routes.versions())

    async def version(self, number: int) -> Version:
        """What a version says of itself."""
        return await self._send(routes.version(number))

    async def live(self) -> Alive:
        """That the server runs; Unavailable if it does not."""
        return await self._send(routes.live())

    async def health(self) -> Ready:
        """What answers queries, and where; Unavailable, with the reason, if nothing does."""
        return await self._send(routes.ready())

    async def ready(self) -> bool:
        """Whether a server is there and has a version that answers."""
        try:
            await self.health()
        except Unavailable:
            return False
        return True

    async def metrics(self) -> str:
        """Prometheus text."""
        return await self._send(routes.metrics())

    # ------------------------------------------------------------------------------------------------ updates

    async def add_examples(
        self,
        name: str,
        images: Images,
        on_sent: OnSent | None = None,
        *,
        batch: int = 1000,
        batch_bytes: int = UPLOAD_BYTES,
    ) -> Added:
        """Give a class examples: what became of each. A path may be a folder."""
        found = [
            await self._send(routes.add_examples(name, some, on_sent))
            for some in batches(unfolded(images), batch, batch_bytes)
        ]
        return routes.together(found)

    async def add_folder(self, folder: str | Path, on_sent: OnSent | None = None) -> list[Added]:
        """Give the classes that a folder has folders of their images, or that a folder of images is named after."""
        return [await self.add_examples(name, files, on_sent) for name, files in labelled([Path(folder)]).items()]

    async def start_increment(
        self, classes: Sequence[str | int] | None = None, method: str | None = None, key: str | None = None
    ) -> Increment:
        """Start learning the named classes, or all that are pending; the same key starts it once."""
        return await self._send(routes.start_increment(classes, method, key))

    async def increments(self) -> list[Increment]:
        """Every increment, the oldest first."""
        return await self._send(routes.increments())

    async def increment(self, number: int) -> Increment:
        """How an increment stands."""
        return await self._send(routes.increment(number))

    async def cancel(self, number: int) -> Increment:
        """Ask an increment to end; it does at its next step or epoch."""
        return await self._send(routes.cancel(number))

    async def wait(self, number: int, on_event: Callable[[Event], object] | None = None) -> Increment:
        """The increment once it has ended, however it did; `on_event` is called with each of its events."""
        async for event in self.events(number):
            if on_event is not None:
                on_event(event)
        return await self.increment(number)

    async def events(self, number: int, after: int = 0, patience_s: float = 120) -> AsyncIterator[Event]:
        """The events of an increment after the given one, as they come, until it ends."""
        await self.increment(number)
        watch = Watch(number, after, self.url, patience_s)
        while True:
            try:
                async for event in self._stream(watch.call()):
                    watch.seen(event)
                    yield event
                if (await self.increment(number))["state"] in ENDED:
                    return
            except Unavailable:
                if watch.over():
                    raise
            await asyncio.sleep(wire.RECONNECT_S)

    async def promote(self, number: int, force: bool = False) -> Moved:
        """Make a version live; one that the gate refused only by force."""
        return await self._send(routes.promote(number, force))

    async def rollback(self) -> Moved:
        """Make the previous version live again."""
        return await self._send(routes.rollback())

    async def class_(self, class_id: int) -> ClassDetail:
        """All that there is to say of a class, its history too."""
        return await self._send(routes.class_(class_id))

    async def change_class(self, class_id: int, **said: Any) -> ClassDetail:
        """Say something else of a class: name, aliases, retired, merged_into; expected_version, to be sure of live."""
        return await self._send(routes.change_class(class_id, said))

    async def quality(
        self,
        since: str | None = None,
        until: str | None = None,
        *,
        group: str | None = None,
        source: str | None = None,
        version: int | None = None,
    ) -> QualityOf:
        """How right the answers of a time were, each figure with its interval. since, until: RFC 3339, or "24h" ago.

        group: all, old, new, unseen or class; source: feedback, audit, probe or estimated; unless given, all but class.
        """
        asked = {"since": since, "until": until, "group": group, "source": source, "version": version}
        return await self._send(routes.quality(asked))

    async def confusions(
        self,
        since: str | None = None,
        until: str | None = None,
        *,
        source: str | None = None,
        version: int | None = None,
        limit: int | None = None,
    ) -> Confusions:
        """Which classes a version, live unless given, takes for which others, most images first.

        source: probe, unless given, or feedback. limit: pairs, 50 unless given.
        """
        asked = {"since": since, "until": until, "source": source, "version": version, "limit": limit}
        return await self._send(routes.confusions(asked))

    async def bias(self, since: str | None = None, until: str | None = None, *, version: int | None = None) -> BiasOf:
        """How often a version, live unless given, answers new classes, beside how often they are shown."""
        return await self._send(routes.bias({"since": since, "until": until, "version": version}))

    async def drift(self) -> DriftTests:
        """The latest result of each test for drift, of the live version."""
        return await self._send(routes.drift())

    async def alarms(self) -> AlarmList:
        """What is wrong now, and what was."""
        return await self._send(routes.alarms())

    async def notices(self, after: int = 0, limit: int = 100) -> Notices:
        """What happened, the latest first; after: only those with a larger id."""
        return await self._send(routes.notices(after, limit))

    async def feedback(self, prediction_id: str, truth: str | int) -> Judged:
        """Say what class the image of an earlier answer really was."""
        return await self._send(routes.feedback(prediction_id, truth))

    async def reviews(self, limit: int = 50, why: str | None = None) -> Reviews:
        """The images that would help most if a person labelled them; why: unknown, disagree or margin; None: any."""
        return await self._send(routes.reviews(limit, why))

    async def review_image(self, prediction_id: str) -> bytes:
        """The PNG of one of them, as the model saw it."""
        return await self._send(routes.review_image(prediction_id))

    async def review(self, prediction_id: str, truth: str | int | None, example: bool = False) -> Reviewed:
        """Say what class one of them shows; None: nobody can tell. example: make it an example of that class, too."""
        return await self._send(routes.review(prediction_id, truth, example))

    async def triggers(self) -> Triggers:
        """What would start an increment now, and what would have in the last week."""
        return await self._send(routes.triggers())

    async def webhooks(self, limit: int = 50) -> Webhooks:
        """The webhooks, how far each has been told, and the latest attempts."""
        return await self._send(routes.webhooks(limit))

    async def test_webhooks(self) -> WebhooksTested:
        """Send a test event to each webhook: what came back."""
        return await self._send(routes.test_webhooks())

    # ------------------------------------------------------------------------------------------------ sending

    async def _send(self, request: Request[T]) -> T:
        call = Call(request, self.url, self.patience_s)
        while True:
            found: Found
            try:
                found = await self._http.request(**call.arguments)
            except httpx.RequestError as error:
                found = error
            if (pause := call.pause(found)) is None:
                return call.result(found)
            await asyncio.sleep(pause)

    async def _stream(self, call: Call[None]) -> AsyncIterator[Event]:
        """The events of one connection."""
        lines = Lines()
        try:
            async with self._http.stream(**call.arguments) as answer:
                if not answer.is_success:
                    await answer.aread()
                call.result(answer)
                async for line in answer.aiter_lines():
                    if (event := lines.event(line)) is not None:
                        yield event
        except httpx.RequestError as error:
            raise call.unanswered(error) from error
