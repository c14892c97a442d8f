"""From the body of a query to images: a raw file, many in a form, or a tensor. Limits hold while it still arrives."""

import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from lifelist.exporter.errors import BadInput, Overloaded, TooLarge, WrongType
from lifelist.exporter.preprocess import Pixels
from lifelist.serving import arrival
from lifelist.serving.options import ServingOptions

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")  # the last: curl --data-binary
FORM_TYPE = "multipart/form-data"
SHAPE_HEADER = "x-tensor-shape"
FEWER = "Send fewer or smaller images in one query"

HOW = (
    "send an image (image/jpeg, image/png, image/webp), a form of image files (multipart/form-data), or a uint8 tensor "
    "(application/octet-stream with the header X-Tensor-Shape: N,H,W,3)"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image file as it was sent."""

    name: str  # the file's; empty if it has none
    data: bytes


Images = list[Encoded] | Pixels  # files, or N×H×W×3


class Intake:
    """Lets requests in and reads their bodies, within what a replica can hold at once. One for each replica."""

    def __init__(self, options: ServingOptions) -> None:
        self.options = options
        self.requests = 0
        self.held = 0  # bytes

    @contextmanager
    def admitted(self, request: Request) -> Iterator["Body"]:
        """The body of a request, which counts until the block ends. Overloaded if there are too many already."""
        with self.share() as share:
            yield Body(share, request)

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one request takes of what a replica can hold, until the block ends. Overloaded as above."""
        if self.requests >= self.options.max_requests:
            raise Overloaded(f"{self.requests} queries are being answered at the moment, the limit; try again")
        share = Share(self)
        self.requests += 1
        try:
            yield share
        finally:
            self.requests -= 1
            self.held -= share.held


class Share:
    """The bytes that one request holds."""

    def __init__(self, intake: Intake) -> None:
        self.intake, self.options, self.held = intake, intake.options, 0

    def take(self, size: int) -> None:
        """Count bytes that are held now. Overloaded if they are too many, with those of all other requests."""
        self.held += size
        self.intake.held += size
        if self.intake.held > self.options.max_buffered_bytes:
            raise Overloaded(
                f"the bodies of all queries together exceed {self.options.max_buffered_bytes:,} bytes; try again"
            )


class Body:
    """The body of one request."""

    def __init__(self, share: Share, request: Request) -> None:
        self.share, self.options, self.request = share, share.options, request

    async def images(self, shape: str | None) -> Images:
        """What was sent. `shape`: of a tensor, "N,H,W,3" or "H,W,3", if the query names one; else its header counts.

        WrongType, TooLarge, TooSlow, Overloaded or BadInput if it cannot be used.
        """
        headers = self.request.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        shape = shape if shape is not None else headers.get(SHAPE_HEADER)
        self._check_head(kind, shape, headers)
        if kind == FORM_TYPE:
            return await self._form(headers)
        data = await self.whole()
        if not data:
            raise BadInput(f"the body is empty; {HOW}")
        return [Encoded("", data)] if shape is None else tensor(data, shape, self.options)

    async def whole(self) -> bytes:
        """All of it, as it was sent. TooLarge, TooSlow, Overloaded or BadInput if it does not arrive."""
        return b"".join([chunk async for chunk in self._chunks()])

    def _check_head(self, kind: str, shape: str | None, headers: Headers) -> None:
        """What can be refused before a byte of the body is read."""
        if kind not in (*IMAGE_TYPES, *RAW_TYPES, FORM_TYPE):
            raise WrongType(f"the content type is {kind!r}; {HOW}")
        if shape is not None and kind not in RAW_TYPES:
            raise WrongType(f"a shape belongs to a tensor, application/octet-stream; the content type is {kind!r}")
        if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
            raise WrongType(
                f"the content encoding is {encoding!r}; images are compressed already, send them as they are"
            )

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, each byte counted."""
        limit, size = self.options.max_body_bytes, 0
        arrival.check_length(self.request, limit, FEWER)
        async for chunk in arrival.chunks(self.request, self.options, self.options.read_timeout_s):
            size += len(chunk)
            if size > limit:
                raise TooLarge(arrival.too_large(size, limit, FEWER))
            self.share.take(len(chunk))
            yield chunk

    async def _form(self, headers: Headers) -> list[Encoded]:
        limit = self.options.max_images
        parser = _InMemory(headers, self._chunks(), max_files=limit + 1, max_fields=1)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                raise TooLarge(f"the form has more than {limit} images; send at most {limit} in one query") from error
            raise BadInput(f"the form cannot be read: {error.message}") from error
        except KeyError as error:
            raise BadInput(f"the form cannot be read: {error} is missing in a part's Content-Disposition") from error
        parts = form.multi_items()
        if fields := [name for name, part in parts if not isinstance(part, UploadFile)]:
            raise BadInput(f"the field {fields[0]!r} is text; images are sent as files: curl -F images=@cat.jpg …")
        if len(parts) > limit:
            raise TooLarge(f"the form has {len(parts)} images; send at most {limit} in one query")
        if not parts:
            raise BadInput(f"the form has no image, or ends before its last boundary; {HOW}")
        files = [part for _, part in parts if isinstance(part, UploadFile)]
        return [Encoded(file.filename or "", await file.read()) for file in files]


class _InMemory(MultiPartParser):
    """What is read is limited and counted already, so nothing needs to go to disk."""

    spool_max_size = 2**62


def tensor(data: bytes, shape: str, options: ServingOptions) -> Pixels:
    """The N×H×W×3 uint8 pixels that `data` holds, row by row. BadInput or TooLarge if it is not of that shape."""
    parts = [part.strip() for part in shape.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts) or len(parts) not in (3, 4):
        raise BadInput(f"the tensor's shape should be N,H,W,3 or H,W,3, as 8,32,32,3; not {shape[:80]!r}")
    sizes = [int(part) for part in parts]
    return pixels(data, sizes if len(sizes) == 4 else [1, *sizes], options)


def pixels(data: bytes | memoryview | Pixels, sizes: Sequence[int], options: ServingOptions) -> Pixels:
    """`data` as N×H×W×3 uint8 pixels, `sizes`. BadInput or TooLarge if it is not, or may not be, of that shape."""
    count, height, width, channels = sizes
    shape = ",".join(map(str, sizes))
    if channels != 3 or not count or not height or not width:
        raise BadInput(f"the tensor's shape {shape} should end in 3, for red, green and blue, and have no 0")
    if count > options.max_images:
        raise TooLarge(f"the tensor has {count} images; send at most {options.max_images} in one query")
    if height * width > options.max_pixels:
        raise TooLarge(f"an image of {width}×{height} = {width * height:,} pixels; the limit is {options.max_pixels:,}")
    if (needed := math.prod(sizes)) != len(data):
        raise BadInput(f"a uint8 tensor of shape {shape} has {needed:,} bytes; the body has {len(data):,}")
    return np.frombuffer(data, np.uint8).reshape(sizes)
