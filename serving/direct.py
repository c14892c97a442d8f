"""The short way of a query: from the HTTP server in a replica's process straight to the replica's own application.

Ray Serve wraps each request in tasks, ids, contexts and metrics of its own, which take longer than all that we do to
it. It lets middleware be put around the HTTP server of a replica (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH): this one
takes queries out before Ray's handling, and does of it what a query needs: an id, and an end when its client has left.
Whatever else arrives goes on to Ray: health checks, and all requests of the operator.
"""

import asyncio
import itertools
import os
from collections.abc import Callable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WATCHED_AFTER_S = 0.05  # a client whose answer takes longer than this is watched, whether it leaves

_process = os.urandom(8).hex()  # an id of a request is this and a number: a system call for each would cost more
_numbers = itertools.count(1)

_own: "tuple[ASGIApp, Callable[[str], bool]] | None" = None


def take(application: ASGIApp, is_query: Callable[[str], bool]) -> None:
    """From now on requests whose path `is_query` go to `application`, in this process."""
    global _own
    _own = application, is_query


def middleware() -> list[Middleware]:
    """What Ray Serve puts around the HTTP server of each replica that it starts in this process."""
    return [Middleware(Direct)]


class Direct:
    """ASGI middleware: queries to the replica's application, everything else to the one inside, which is Ray's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _own is None or scope["type"] != "http" or not _own[1](scope["path"]):
            await self.app(scope, receive, send)
        else:
            await _answered(_own[0], scope, receive, send)


async def _answered(application: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the application; cancel it if the client leaves before its answer."""
    query, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert query is not None
    request_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    if not request_id:
        request_id = f"{_process}-{next(_numbers):x}".encode()
        scope["headers"] = [*scope["headers"], (b"x-request-id", request_id)]
    timer: asyncio.TimerHandle | None = None
    watcher: asyncio.Task[None] | None = None
    left = False

    async def receiving() -> Message:
        nonlocal timer
        message = await receive()
        if timer is None and not message.get("more_body", False):
            timer = loop.call_later(WATCHED_AFTER_S, watch)
        return message

    def watch() -> None:
        nonlocal watcher
        watcher = loop.create_task(until_it_leaves())

    async def until_it_leaves() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        query.cancel()

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
        await send(message)

    try:
        await application(scope, receiving, sending)
    except asyncio.CancelledError:
        if not left:  # somebody else ends it: the server
            raise
    finally:
        if timer is not None:
            timer.cancel()
        if watcher is not None:
            watcher.cancel()
