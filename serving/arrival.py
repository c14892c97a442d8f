"""The body of a request as it arrives: on every route it has so long in all, and so long for the next byte."""

import asyncio
from collections.abc import AsyncGenerator

import numpy as np
from starlette.requests import Request

from lifelist.exporter.errors import BadInput, TooLarge, TooSlow
from lifelist.serving.options import ServingOptions


async def chunks(request: Request, options: ServingOptions, within_s: float) -> AsyncGenerator[bytes, None]:
    """The body, piece by piece. TooSlow if it takes longer than `within_s`, or if nothing comes for `stall_timeout_s`;
    BadInput if the client leaves before its end.
    """
    loop = asyncio.get_running_loop()
    deadline, size, more = loop.time() + within_s, 0, True
    while more:
        patience = loop.time() + options.stall_timeout_s
        try:
            async with asyncio.timeout_at(min(deadline, patience)):
                message = await request.receive()
        except TimeoutError:
            stall_s = options.stall_timeout_s
            why = f"then none for {stall_s:g} s" if patience < deadline else f"and not all within {within_s:g} s"
            raise TooSlow(f"{size:,} bytes of the body arrived, {why}; send less in one request") from None
        if message["type"] == "http.disconnect":
            raise BadInput(f"the connection was closed after {size:,} bytes of the body")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if chunk:
            yield chunk


def check_length(request: Request, limit: int, advice: str) -> None:
    """TooLarge if a body says of itself that it is longer than `limit` bytes: before any of it is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(too_large(int(declared), limit, advice))


def too_large(size: int, limit: int, advice: str) -> str:
    """What is said of a body over its limit."""
    return f"the body has {size:,} bytes or more; the limit is {limit:,}. {advice}"


def check_depth(data: bytes | bytearray, limit: int) -> None:
    """BadInput for JSON with more than `limit` brackets in one another: a parser that follows them in could run out."""
    if data.count(b"[") + data.count(b"{") > limit and (found := depth(data)) > limit:
        raise BadInput(f"the JSON nests {found} deep; the limit is {limit}")


def depth(data: bytes | bytearray) -> int:
    """How many brackets are open at once, at most; those in strings do not count. Found without building anything."""
    characters = np.frombuffer(data.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    outside = np.cumsum(characters == ord('"'), dtype=np.uint8) % 2 == 0  # of strings; it wraps at an even number
    opening, closing = ((characters == ord(a)) | (characters == ord(b)) for a, b in ("[{", "]}"))
    steps = opening.astype(np.int8) - closing
    return int(np.cumsum(steps[outside & (steps != 0)], dtype=np.int32).max(initial=0))
