"""Uploads of any size up to the limit, without holding them in memory: the body goes to disk, then part by part out."""

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lifelist.deploy.settings import Settings
from lifelist.exporter.errors import BadInput, LifelistError, TooLarge, WrongType
from lifelist.serving import arrival
from lifelist.serving.errors import as_json
from lifelist.serving.options import ServingOptions

CHUNK = 1 << 18  # bytes
FEWER = "Send fewer images in one request"

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


async def spool(request: Request, settings: Settings) -> IO[bytes]:
    """The body as a file without a name, which closing it removes. TooLarge as soon as it is over its limit."""
    limit = settings.examples.max_request_bytes
    arrival.check_length(request, limit, FEWER)
    file = tempfile.TemporaryFile(dir=settings.home)  # noqa: SIM115 (the caller closes it)
    size = 0
    try:
        async for chunk in arrival.chunks(request, settings.serving, settings.examples.read_timeout_s):
            size += len(chunk)
            if size > limit:
                raise TooLarge(arrival.too_large(size, limit, FEWER))
            await asyncio.to_thread(file.write, chunk)
    except BaseException:
        file.close()
        raise
    return file


class SmallBodies:
    """Reads a body before the application does, and refuses what is longer, slower or deeper than JSON may be.

    but_for: the one path whose route reads its own body, as it arrives.
    """

    def __init__(self, app: ASGIApp, *, options: ServingOptions, but_for: str) -> None:
        self.app, self.options, self.but_for = app, options, but_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == self.but_for:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            body = [{"type": "http.request", "body": await self._whole(request), "more_body": False}]
        except LifelistError as error:
            await as_json(request, error)(scope, receive, send)
            return

        async def again() -> Message:
            return body.pop() if body else await receive()

        await self.app(scope, again, send)

    async def _whole(self, request: Request) -> bytes:
        limit, advice = self.options.max_json_bytes, f"Only POST {self.but_for} takes as much"
        arrival.check_length(request, limit, advice)
        data = bytearray()
        async for chunk in arrival.chunks(request, self.options, self.options.read_timeout_s):
            data += chunk
            if len(data) > limit:
                raise TooLarge(arrival.too_large(len(data), limit, advice))
        arrival.check_depth(data, self.options.max_json_depth)
        return bytes(data)


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
