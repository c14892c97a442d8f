"""The greedy batcher: it takes whatever is queued as soon as the model is free."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from lifelist.exporter.errors import Overloaded
from lifelist.serving.batcher import Batcher


class Model:
    """Doubles what it gets, and notes its batches. A stand-in, since here the order of things is what matters."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.alone: list[bool] = []
        self.free = threading.Event()
        if not held:
            self.free.set()

    def __call__(self, works: Sequence[int], alone: bool) -> list[int]:
        self.alone.append(alone)
        self.batches.append(list(works))
        self.threads.add(threading.current_thread().name)
        assert self.free.wait(10)
        if 13 in works:
            raise ArithmeticError("thirteen")
        return [2 * work for work in works]


def batcher(model: Model, max_batch: int = 4, max_queue: int = 100, **options: object) -> Batcher[int, int]:
    return Batcher(model, max_batch=max_batch, max_queue=max_queue, **options)  # type: ignore[arg-type]


async def until(claim: object) -> None:
    for _ in range(1000):
        if claim():  # type: ignore[operator]
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come about")


def test_a_lone_request_is_run_at_once_and_off_the_event_loop() -> None:
    model = Model()

    async def story() -> int:
        return await asyncio.wait_for(batcher(model).submit(21, 1), 1)

    assert asyncio.run(story()) == 42
    assert model.batches == [[21]]
    assert threading.current_thread().name not in model.threads


def test_each_of_its_threads_begins_by_what_it_is_told() -> None:
    begun: list[str] = []
    model = Model()

    async def story() -> None:
        made = batcher(model, lanes=2, initializer=lambda: begun.append(threading.current_thread().name))
        await made.submit(1, 1)

    asyncio.run(story())
    assert set(begun) == model.threads


def test_what_waits_while_the_model_is_busy_goes_together_and_each_gets_its_own_result() -> None:
    model = Model(held=True)

    async def story() -> list[int]:
        queue = batcher(model)
        asked = [asyncio.create_task(queue.submit(k, 1)) for k in range(6)]
        await until(lambda: model.batches)
        model.free.set()
        return await asyncio.gather(*asked)

    assert asyncio.run(story()) == [0, 2, 4, 6, 8, 10]
    assert sum(len(batch) for batch in model.batches) == 6
    assert max(len(batch) for batch in model.batches) == 4  # all of max_batch, and never more


def test_the_event_loop_runs_on_while_the_model_works() -> None:
    model = Model(held=True)

    async def story() -> int:
        queue = batcher(model)
        asked = asyncio.create_task(queue.submit(1, 1))
        ticks = 0
        while ticks < 20:
            await asyncio.sleep(0.001)
            ticks += 1
        assert not asked.done()
        model.free.set()
        return await asked

    assert asyncio.run(story()) == 2


def test_the_images_of_one_request_are_never_cut_apart() -> None:
    model, sizes = Model(held=True), list[int]()

    async def story() -> None:
        queue = batcher(model, max_batch=4, on_batch=sizes.append)
        asked = [asyncio.create_task(queue.submit(k, images)) for k, images in enumerate([1, 3, 2, 9, 1])]
        await until(lambda: model.batches)
        model.free.set()
        await asyncio.gather(*asked)

    asyncio.run(story())
    assert model.batches == [[0, 1], [2], [3], [4]]
    assert sizes == [4, 2, 9, 1]  # nine are over the limit, and go alone


def test_an_error_reaches_every_caller_of_its_batch_and_nobody_else() -> None:
    model = Model(held=True)

    async def story() -> list[object]:
        queue = batcher(model, max_batch=2)
        asked = [asyncio.create_task(queue.submit(work, 1)) for work in (13, 1, 2, 3)]
        await until(lambda: model.batches)
        model.free.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, *rest = asyncio.run(story())
    assert isinstance(first, ArithmeticError)
    assert isinstance(second, ArithmeticError)
    assert rest == [4, 6]


def test_a_client_that_left_takes_no_model_time_and_frees_its_place() -> None:
    model, cancelled = Model(held=True), list[int]()

    async def story() -> int:
        queue = batcher(model, max_batch=1, max_queue=3, on_cancel=lambda: cancelled.append(1))
        first = asyncio.create_task(queue.submit(1, 1))
        await until(lambda: model.batches)
        gone, stays = asyncio.create_task(queue.submit(2, 2)), asyncio.create_task(queue.submit(3, 1))
        await asyncio.sleep(0)
        assert queue.queued == 3
        gone.cancel()
        await asyncio.sleep(0)
        assert queue.queued == 1  # at once, while the model is still busy
        assert cancelled == [1]
        model.free.set()
        await first
        result = await stays
        assert queue.queued == 0
        return result

    assert asyncio.run(story()) == 6
    assert model.batches == [[1], [3]]


def test_more_than_may_wait_is_refused_with_the_numbers() -> None:
    model = Model(held=True)

    async def story() -> None:
        queue = batcher(model, max_queue=4)
        running = asyncio.create_task(queue.submit(1, 4))
        await until(lambda: model.batches)
        waiting = asyncio.create_task(queue.submit(2, 3))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"3 images wait .* 2 more would exceed the limit of 4") as refused:
            await queue.submit(3, 2)
        assert refused.value.retry_after_s >= 1
        model.free.set()
        await asyncio.gather(running, waiting)
        assert await queue.submit(3, 2) == 6  # the next is welcome again

    asyncio.run(story())


def test_what_waits_is_shared_out_among_free_lanes_which_run_at_once() -> None:
    model = Model(held=True)

    async def story() -> list[int]:
        queue = batcher(model, max_batch=64, lanes=2)
        asked = [asyncio.create_task(queue.submit(k, 1)) for k in range(7)]
        await until(lambda: len(model.batches) == 2)  # both at work, though neither has ended
        model.free.set()
        return await asyncio.gather(*asked)

    assert asyncio.run(story()) == [2 * k for k in range(7)]
    assert sorted(map(len, model.batches)) == [3, 4]
    assert len(model.threads) == 2


def test_a_run_is_told_whether_it_has_the_cores_to_itself() -> None:
    model = Model(held=True)

    async def story() -> None:
        queue = batcher(model, lanes=2)
        first = asyncio.create_task(queue.submit(1, 1))
        await until(lambda: model.batches)
        second = asyncio.create_task(queue.submit(2, 1))
        await until(lambda: len(model.batches) == 2)
        model.free.set()
        await asyncio.gather(first, second)
        await queue.submit(3, 1)

    asyncio.run(story())
    assert model.alone == [True, False, True]
