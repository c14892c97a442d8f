"""Queries go straight from a replica's HTTP server to its application; a client that leaves ends its own, no other."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from lifelist.serving import direct

BODY: Message = {"type": "http.request", "body": b"image", "more_body": False}
GONE: Message = {"type": "http.disconnect"}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    direct._own = None


async def rays_own(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})


class Application:
    """Reads the body, waits for `seconds`, answers; remembers how it ended."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.ended = "not"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            assert (await receive())["body"] == b"image"
            await asyncio.sleep(self.seconds)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
            self.ended = "answered"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


async def asked(messages: "asyncio.Queue[Message]", path: str = "/query", **scope: Any) -> list[Message]:
    """What is sent back."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await direct.Direct(rays_own)({"type": "http", "path": path, "headers": []} | scope, messages.get, send)
    return sent


def queue(*messages: Message) -> "asyncio.Queue[Message]":
    found: asyncio.Queue[Message] = asyncio.Queue()
    for message in messages:
        found.put_nowait(message)
    return found


def test_queries_go_to_the_replica_and_all_else_to_ray() -> None:
    async def story() -> None:
        assert (await asked(queue(BODY)))[0]["status"] == 299  # before there is a replica
        direct.take(Application(), lambda path: path == "/query")
        assert (await asked(queue(BODY)))[0]["status"] == 200
        assert (await asked(queue(BODY), "/-/healthz"))[0]["status"] == 299
        assert (await asked(queue(BODY), type="websocket"))[0]["status"] == 299

    asyncio.run(story())


def test_an_answer_has_the_id_of_its_request_or_one_of_its_own() -> None:
    async def story() -> None:
        direct.take(Application(), lambda path: True)
        given = await asked(queue(BODY), headers=[(b"x-request-id", b"mine")])
        assert given[0]["headers"] == [(b"a", b"b"), (b"x-request-id", b"mine")]
        first, second = [dict((await asked(queue(BODY)))[0]["headers"])[b"x-request-id"] for _ in range(2)]
        assert first[:17] == second[:17]  # the process, and then a number
        assert first != second

    asyncio.run(story())


def test_a_client_that_leaves_ends_its_query() -> None:
    async def story() -> None:
        application = Application(seconds=30)
        direct.take(application, lambda path: True)
        messages = queue(BODY)
        asking = asyncio.create_task(asked(messages))
        await asyncio.sleep(0.2)
        assert application.ended == "not"
        messages.put_nowait(GONE)
        assert await asyncio.wait_for(asking, 5) == []  # nothing was sent, nothing was raised
        assert application.ended == "cancelled"

    asyncio.run(story())


def test_a_server_that_ends_ends_its_queries() -> None:
    async def story() -> None:
        application = Application(seconds=30)
        direct.take(application, lambda path: True)
        asking = asyncio.create_task(asked(queue(BODY)))
        await asyncio.sleep(0.2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert application.ended == "cancelled"

    asyncio.run(story())


def test_nothing_is_left_behind() -> None:
    async def story() -> None:
        for seconds in (0.0, 0.2):  # before, and after, it began to be watched
            direct.take(Application(seconds), lambda path: True)
            await asked(queue(BODY))
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())
