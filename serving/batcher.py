"""A batcher without a timer: whatever is queued goes into the model as soon as the model is free."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from lifelist.exporter.errors import Overloaded

Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[Work, Result]):
    work: Work
    images: int
    result: "asyncio.Future[Result]"


class Batcher(Generic[Work, Result]):
    """Runs what is queued in a thread of its own; a lone request never waits. Use it on one event loop.

    run         gives one result for each piece of work; it runs in the thread, one batch at a time
    max_batch   images in one batch; a piece of work with more is a batch by itself, since pieces are never cut
    max_queue   images that may wait; beyond them `submit` raises Overloaded
    on_batch    told the number of images of each batch
    on_cancel   told of each piece of work that nobody waits for any more
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], Sequence[Result]],
        *,
        max_batch: int,
        max_queue: int,
        on_batch: Callable[[int], None] = lambda images: None,
        on_cancel: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.max_batch, self.max_queue = run, max_batch, max_queue
        self.on_batch, self.on_cancel = on_batch, on_cancel
        self.queued = 0  # images
        self._queue: deque[_Waiting[Work, Result]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._drainer: asyncio.Task[None] | None = None

    async def submit(self, work: Work, images: int) -> Result:
        """The result of one piece of work, `images` images large.

        Cancelled while it waits, it frees its place at once, and takes no model time.
        """
        if self.queued + images > self.max_queue:
            raise Overloaded(
                f"{self.queued} images wait for the model, and {images} more would exceed the limit of "
                f"{self.max_queue}; send them again in a second, or set serving.max_queue or serving.replicas higher"
            )
        waiting: _Waiting[Work, Result] = _Waiting(work, images, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self.queued += images
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        try:
            return await waiting.result
        except asyncio.CancelledError:
            self._withdraw(waiting)
            raise

    def close(self) -> None:
        """Free the thread once its batch is done."""
        self._thread.shutdown(wait=False)

    def _withdraw(self, waiting: _Waiting[Work, Result]) -> None:
        self.on_cancel()
        with contextlib.suppress(ValueError):  # it is in the model already
            self._queue.remove(waiting)
            self.queued -= waiting.images

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            self.on_batch(sum(waiting.images for waiting in batch))
            results: Sequence[Result | Exception]
            try:
                results = await loop.run_in_executor(self._thread, self.run, [waiting.work for waiting in batch])
            except Exception as error:  # noqa: BLE001  not swallowed: every caller of this batch gets it
                results = [error] * len(batch)
            for waiting, result in zip(batch, results, strict=True):
                if waiting.result.done():  # a client that left has cancelled its future
                    continue
                if isinstance(result, Exception):
                    waiting.result.set_exception(result)
                else:
                    waiting.result.set_result(result)

    def _take(self) -> list[_Waiting[Work, Result]]:
        """What goes into the model next, in the order of arrival; what nobody waits for any more is dropped."""
        batch: list[_Waiting[Work, Result]] = []
        images = 0
        while self._queue and (not batch or images + self._queue[0].images <= self.max_batch):
            waiting = self._queue.popleft()
            self.queued -= waiting.images
            if not waiting.result.done():
                batch.append(waiting)
                images += waiting.images
        return batch
