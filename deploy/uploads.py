"""Uploads of any size up to the limit, without holding them in memory: the body goes to disk, then part by part out."""

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lifelist.exporter.errors import BadInput, TooLarge, WrongType

CHUNK = 1 << 18  # bytes

REQUEST_BODY = {  # of POST /v1/examples, for /openapi.json
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["class", "images"],
                "properties": {
                    "class": {"type": "string", "minLength": 1, "maxLength": 100, "description": "name of the class"},
                    "images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
                },
            }
        }
    },
}

LARGEST_JSON = 2**20  # bytes


@dataclass(slots=True)
class Part:
    """One field or file of a multipart body."""

    name: str = ""
    filename: str | None = None  # None: a field
    data: bytearray = field(default_factory=bytearray)

    def text(self) -> str:
        """A field's value. BadInput if it is not UTF-8, or not a field but a file."""
        if self.filename is not None:
            raise BadInput(f"the field {self.name!r} should be text, but a file {self.filename!r} was sent")
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"the field {self.name!r} is not UTF-8: {error}") from error


async def spool(request: Request, folder: Path, limit: int) -> IO[bytes]:
    """The body as a file without a name, which closing it removes. TooLarge as soon as it is over `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(_too_large(int(declared), limit))
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the caller closes it)
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise TooLarge(_too_large(size, limit))
            await asyncio.to_thread(file.write, chunk)
    except BaseException as error:
        file.close()
        if isinstance(error, ClientDisconnect):
            raise BadInput(f"the connection was closed after {size:,} bytes of the body") from error
        raise
    return file


class SmallBodies:
    """Reads a body before the application does, and answers 413 if it is longer than any JSON that is asked for.

    but_for: the one path whose route reads its own body, as it arrives.
    """

    def __init__(self, app: ASGIApp, *, but_for: str) -> None:
        self.app, self.but_for = app, but_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == self.but_for:
            await self.app(scope, receive, send)
            return
        arrived: list[Message] = []
        size, more = 0, True
        while more:
            arrived.append(message := await receive())
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > LARGEST_JSON:
                error = f"the body is longer than {LARGEST_JSON:,} bytes; only POST {self.but_for} takes as much"
                await JSONResponse({"error": error}, status_code=413)(scope, receive, send)
                return
        arrived.reverse()

        async def again() -> Message:
            return arrived.pop() if arrived else await receive()

        await self.app(scope, again, send)


def _too_large(size: int, limit: int) -> str:
    return f"the body has {size:,} bytes or more; the limit is {limit:,}. Send fewer images in one request"


def boundary(content_type: str) -> bytes:
    """What separates the parts. WrongType if the body is not declared as multipart/form-data."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise WrongType(
            f"send multipart/form-data, with a field `class` and files `images`; not {content_type or 'no type'}"
        )
    if not options.get(b"boundary"):
        raise BadInput("the content type multipart/form-data lacks its boundary")
    return options[b"boundary"]


def parts(file: IO[bytes], separator: bytes) -> Iterator[Part]:
    """The parts of a multipart body in order, one at a time in memory.

    BadInput where the body is not well formed, or ends before its last boundary.
    """
    reader = _Reader()
    try:
        parser = MultipartParser(separator, reader.callbacks())  # type: ignore[arg-type]
        file.seek(0)
        while chunk := file.read(CHUNK):
            parser.write(chunk)
            yield from reader.taken()
    except FormParserError as error:
        raise BadInput(f"the multipart body is broken: {error}") from error
    if not reader.complete:
        raise BadInput(
            "the multipart body ends before its last boundary: it was cut off, or the boundary is another one"
        )


def labelled(file: IO[bytes], separator: bytes) -> tuple[str, Iterator[tuple[str, bytes]]]:
    """A body of one field `class` and files `images`, in any order: the class, and (file name, bytes) of each image.

    The whole form is looked at before this returns, so that a broken one changes nothing. BadInput says what is wrong.
    """
    names: list[str] = []
    images = 0
    for part in parts(file, separator):
        if part.name == "class":
            names.append(part.text())
        elif part.name != "images":
            raise BadInput(f"there is no field {part.name[:80]!r}; send `class`, the name, and `images`, the files")
        elif part.filename is None:
            raise BadInput(
                "the field 'images' should be a file, but text was sent: curl -F images=@cat.jpg, with the @"
            )
        else:
            images += 1
    if len(names) != 1:
        raise BadInput(f"the field `class`, with the name, is there {len(names)} times; send it once in each request")
    if not images:
        raise BadInput("there is no file `images`; send at least one")
    return names[0], (
        (part.filename or "", bytes(part.data)) for part in parts(file, separator) if part.name == "images"
    )


class _Reader:
    """Collects what the parser calls out."""

    def __init__(self) -> None:
        self.complete = False
        self.part = Part()
        self.header, self.value = bytearray(), bytearray()
        self.finished: list[Part] = []

    def callbacks(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}

    def taken(self) -> list[Part]:
        """The parts that have been finished since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def on_part_begin(self) -> None:
        self.part = Part()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def on_header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self.value))
            self.part.name = options.get(b"name", b"").decode(errors="replace")
            if (filename := options.get(b"filename")) is not None:
                self.part.filename = filename.decode(errors="replace")
        self.header, self.value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        if not self.part.name:
            raise BadInput('a part of the multipart body has no name: Content-Disposition: form-data; name="images"')

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.part.data += data[start:end]

    def on_part_end(self) -> None:
        self.finished.append(self.part)

    def on_end(self) -> None:
        self.complete = True
