"""A batcher without a timer: whatever is queued goes into the model as soon as a lane is free."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
    """Runs what is queued in threads of its own, its lanes; a lone request never waits. Use it on one event loop.

    run         gives one result for each piece of work, or the error that it met; told whether all other lanes are idle
                and nothing waits, so that it has the cores to itself. It runs in `lanes` threads at a time
    lanes       runs at once. What waits is shared out among those that are free
    max_batch   images in one batch; a piece of work with more is a batch by itself, since pieces are never cut
    max_queue   images that may wait; beyond them `submit` raises Overloaded
    on_batch    told the number of images of each batch
    on_cancel   told of each piece of work that nobody waits for any more
    initializer called first in each of its threads
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work], bool], Sequence[Result | Exception]],
        *,
        max_batch: int,
        max_queue: int,
        lanes: int = 1,
        on_batch: Callable[[int], None] = lambda images: None,
        on_cancel: Callable[[], None] = lambda: None,
        initializer: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.lanes, self.max_batch, self.max_queue = run, lanes, max_batch, max_queue
        self.on_batch, self.on_cancel = on_batch, on_cancel
        self.queued = 0  # images
        self._queue: deque[_Waiting[Work, Result]] = deque()
        self._threads = ThreadPoolExecutor(lanes, "model", initializer)
        self._free = lanes
        self._woken = False

    async def submit(self, work: Work, images: int) -> Result:
        """The result of one piece of work, `images` images large.

        Cancelled while it waits, it frees its place at once, and takes no model time.
        """
        if self.queued + images > self.max_queue:
            raise Overloaded(
                f"{self.queued} images wait for the model, and {images} more would exceed the limit of "
                f"{self.max_queue}; send them again in a second, or set serving.max_queue or serving.replicas higher"
            )
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Work, Result] = _Waiting(work, images, loop.create_future())
        self._queue.append(waiting)
        self.queued += images
        if self._free and not self._woken:  # after all that has arrived at this moment, which goes together
            self._woken = True
            loop.call_soon(self._fill)
        try:
            return await waiting.result
        except asyncio.CancelledError:
            self._withdraw(waiting)
            raise

    def close(self) -> None:
        """Free the threads once their batches are done."""
        self._threads.shutdown(wait=False)

    def _withdraw(self, waiting: _Waiting[Work, Result]) -> None:
        self.on_cancel()
        with contextlib.suppress(ValueError):  # it is in the model already
            self._queue.remove(waiting)
            self.queued -= waiting.images

    def _fill(self) -> None:
        """Give each free lane its share of what waits."""
        self._woken = False
        while self._free and (batch := self._take()):
            alone = self._free == self.lanes and not self._queue
            self._free -= 1
            self.on_batch(sum(waiting.images for waiting in batch))
            works = [waiting.work for waiting in batch]
            running = asyncio.get_running_loop().run_in_executor(self._threads, self.run, works, alone)
            running.add_done_callback(partial(self._ended, batch))

    def _ended(
        self,
        batch: Sequence[_Waiting[Work, Result]],
        running: "asyncio.Future[Sequence[Result | Exception]]",
    ) -> None:
        self._free += 1
        self._fill()  # first, so that the lane is not idle meanwhile
        error = running.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        results = running.result() if error is None else [error] * len(batch)  # every caller of this batch gets it
        for waiting, result in zip(batch, results, strict=True):
            if waiting.result.done():  # a client that left has cancelled its future
                continue
            if isinstance(result, Exception):
                waiting.result.set_exception(result)
            else:
                waiting.result.set_result(result)

    def _take(self) -> list[_Waiting[Work, Result]]:
        """What goes into a lane next, in the order of arrival; what nobody waits for any more is dropped."""
        batch: list[_Waiting[Work, Result]] = []
        images, most = 0, min(self.max_batch, -(-self.queued // self._free))
        while self._queue and (not batch or images + self._queue[0].images <= most):
            waiting = self._queue.popleft()
            self.queued -= waiting.images
            if not waiting.result.done():
                batch.append(waiting)
                images += waiting.images
        return batch
