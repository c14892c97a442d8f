"""Where the time of a query goes inside a replica: marks on its way, while `lifelist bench stages` asks for them.

Ray Serve is told to put `middleware` around the HTTP server of each replica in place of serving/direct.py's (stages.py
does that, and nothing else does). It answers PATH itself: `?on` begins to time the functions that make the stages,
`?off` ends that, and both tell what has come together since the latest `?on`. Before and after, nothing is timed.
"""

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any
from unittest import mock

from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lifelist.serving import direct

PATH = "/v1/classify/marks"
BEGAN = "lifelist.began"  # in a scope: when the first byte of the request was parsed

Spent = defaultdict[str, float]  # seconds by stage
_spent: ContextVar[Spent] = ContextVar("spent")  # of the query that this task answers


def middleware() -> list[Middleware]:
    """What Ray Serve puts around the HTTP server of each replica: Direct, and around that the marks.

    From here on a request knows when it began. That cannot wait for `?on`: connections keep the functions they have.
    """
    begin = HttpToolsProtocol.on_message_begin

    def begun(protocol: Any) -> None:
        begin(protocol)
        protocol.scope[BEGAN] = time.perf_counter()

    HttpToolsProtocol.on_message_begin = begun  # type: ignore[method-assign, assignment]
    return [*direct.middleware(), Middleware(Marked)]


class Marks:
    """Seconds by stage, of all queries that were answered while the marks are on."""

    def __init__(self) -> None:
        from lifelist.serving import classify  # here, since the operator's process has no use for it
        from lifelist.serving.batcher import Batcher
        from lifelist.serving.body import Body
        from lifelist.serving.live import Live

        self.queries = 0
        self.spent = Spent(float)
        self._done: dict[int, float] = {}  # id of an image or a query → seconds that a thread worked on it
        self._thread = threading.local()
        self._patches = ExitStack()
        for owner, name, timed in (
            (Body, "images", self._awaited("body")),
            (classify, "_pixels", self._pixels),
            (classify, "_decoded", self._decoded),
            (Batcher, "submit", self._submitted),
            (Live, "_said", self._said),
            (Live, "_run", self._ran),
            (classify, "_content", self._timed("answer")),
            (JSONResponse, "render", self._timed("JSON")),
        ):
            self._patches.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))

    def close(self) -> None:
        """Let the code run as it was."""
        self._patches.close()

    async def follow(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Let `app` answer a query, and count what it spent, unless nothing could be sent."""
        entered, ended = time.perf_counter(), 0.0
        spent = Spent(float)
        _spent.set(spent)

        async def sending(message: Message) -> None:
            nonlocal ended
            began = time.perf_counter()
            await send(message)
            ended = time.perf_counter()
            spent["sending"] += ended - began

        await app(scope, receive, sending)
        if ended:
            spent["parsing"] = entered - scope[BEGAN]
            spent["layers"] = ended - scope[BEGAN] - sum(spent.values())  # whatever is in none of the stages
            self.queries += 1
            for stage, seconds in spent.items():
                self.spent[stage] += seconds

    def _awaited(self, stage: str) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
        def timed(inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def call(*arguments: Any) -> Any:
                began = time.perf_counter()
                found = await inner(*arguments)
                _add(stage, time.perf_counter() - began)
                return found

            return call

        return timed

    def _timed(self, stage: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def timed(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                began = time.perf_counter()
                found = inner(*arguments)
                _add(stage, time.perf_counter() - began)
                return found

            return call

        return timed

    def _pixels(self, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def pixels(parts: Any, sent: Any, preprocess: Any) -> Any:
            began = time.perf_counter()
            found = await inner(parts, sent, preprocess)
            took, decode = time.perf_counter() - began, sum(self._done.pop(id(image), 0.0) for image in sent)
            _add("decode", decode)
            _add("decoder", took - decode)
            return found

        return pixels

    def _decoded(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def decoded(image: Any, preprocess: Any, limits: Any) -> Any:
            began = time.perf_counter()
            found = inner(image, preprocess, limits)
            self._done[id(image)] = time.perf_counter() - began
            return found

        return decoded

    def _submitted(self, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def submit(batcher: Any, work: Any, images: int) -> Any:
            began = time.perf_counter()
            answer = await inner(batcher, work, images)
            took, model = time.perf_counter() - began, self._done.pop(id(work), 0.0)
            _add("lane", answer.queue_s)
            _add("model", model)
            _add("scores", answer.model_s - model)
            _add("back", took - answer.queue_s - answer.model_s)
            return answer

        return submit

    def _said(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """What a batch says to its queries: each of them waits as long as the model runs for all."""

        def said(live: Any, loaded: Any, queries: Any, alone: bool) -> Any:
            self._thread.seconds = 0.0
            found = inner(live, loaded, queries, alone)
            for query in queries:
                self._done[id(query)] = self._thread.seconds
            return found

        return said

    def _ran(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def ran(*arguments: Any) -> Any:
            began = time.perf_counter()
            found = inner(*arguments)
            self._thread.seconds += time.perf_counter() - began
            return found

        return ran


def _add(stage: str, seconds: float) -> None:
    if (spent := _spent.get(None)) is not None:
        spent[stage] += seconds


class Marked:
    """ASGI middleware: answers PATH, and follows all else while the marks are on."""

    marks: Marks | None = None

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH:
            await self._told(scope)(scope, receive, send)
        elif scope["type"] == "http" and self.marks is not None:
            await self.marks.follow(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _told(self, scope: Scope) -> Response:
        asked, marks = scope["query_string"], self.marks
        if marks is not None and asked in (b"on", b"off"):
            marks.close()
            self.marks = None
        found = {
            "process_id": os.getpid(),
            "port": scope["server"][1],
            # the one that runs this was made by Ray, and threading need not know it
            "threads": {thread.native_id: thread.name for thread in threading.enumerate()}
            | {threading.get_native_id(): "loop"},
            "queries": marks.queries if marks else 0,
            "seconds": dict(marks.spent) if marks else {},
        }
        if asked == b"on":
            self.marks = Marks()
        return Response(json.dumps(found), media_type="application/json")
