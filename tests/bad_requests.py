"""Requests that cannot be answered, with the status and the message that each gets: data for a test and for the docs.

python tests/bad_requests.py > docs/errors.md
"""

import gzip
import io
import re
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

Json = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """What the requests need to know about the server that they are sent to."""

    prediction_id: str  # of an answer it gave
    refused: int  # a version that its gate refused
    ended: int  # an increment that is done


@dataclass(frozen=True)
class Bad:
    """One bad request. `…` in the message stands for anything."""

    what: str
    method: str
    path: str
    status: int
    error: str
    request: Mapping[str, Any] = field(default_factory=dict)  # httpx's arguments
    from_scene: Callable[[Scene], Mapping[str, Any]] | None = None  # those that need one


# ----------------------------------------------------------------------------------------------------------- bodies


def picture(kind: str = "PNG", size: tuple[int, int] = (16, 16), seed: int = 0, **options: Any) -> bytes:
    """A valid image file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def flat(size: tuple[int, int]) -> bytes:
    """A PNG of one colour: kilobytes that become hundreds of megabytes."""
    out = io.BytesIO()
    Image.new("1", size).save(out, "PNG")
    return out.getvalue()


def promising(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than there could be."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def moving() -> bytes:
    """An animated WebP of two frames."""
    frames = [Image.fromarray(np.full((16, 16, 3), shade, np.uint8)) for shade in (0, 255)]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()


def of_type(kind: str, body: bytes = b"{}") -> Json:
    return {"content": body, "headers": {"Content-Type": kind}}


def images(*bodies: bytes, names: tuple[str, ...] = ()) -> list[tuple[str, tuple[str, bytes]]]:
    """A form's files."""
    return [("images", (names[k] if names else f"{k}.png", body)) for k, body in enumerate(bodies)]


def form(name: str, *bodies: bytes, names: tuple[str, ...] = ()) -> Json:
    """Examples of a class."""
    return {"data": {"class": name}, "files": images(*bodies, names=names)}


def raw(*parts: str, end: str = "--b--\r\n") -> Json:
    """A form, written out by hand."""
    return of_type("multipart/form-data; boundary=b", ("".join(f"--b\r\n{part}\r\n" for part in parts) + end).encode())


def tensor(shape: str, size: int) -> Json:
    return {"content": bytes(size), "headers": {"X-Tensor-Shape": shape, "Content-Type": "application/octet-stream"}}


def pixels(shape: list[int], data: list[int]) -> Json:
    """A request of the Open Inference Protocol."""
    return {"inputs": [{"name": "images", "datatype": "UINT8", "shape": shape, "data": data}]}


PNG, JPEG = picture(), picture("JPEG")
WEB_SOCKET = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip
FIELD = 'Content-Disposition: form-data; name="class"\r\n\r\nwren'
FILE = 'Content-Disposition: form-data; name="images"; filename="a.png"\r\n\r\nx'
READABLE = "send an image (image/jpeg, image/png, image/webp), a form of image files (multipart/form-data), or a uint8…"

CLASSIFY, EXAMPLES, INCREMENTS, FEEDBACK = "/v1/classify", "/v1/examples", "/v1/increments", "/v1/feedback"
INFER = "/v2/models/lifelist/infer"

# ------------------------------------------------------------------------------------------------------------- rows

# fmt: off
ROWS = [
    # any route
    Bad("no such route", "GET", "/v1/nothing", 404, "there is no /v1/nothing here; see /docs"),
    Bad("no such route, with a trailing slash", "GET", "/v1/classes/", 404, "there is no /v1/classes/ here; see /docs"),
    Bad("out of the documentation's folder", "GET", "/docs/..%2f..%2fetc%2fpasswd", 404, "there is no …; see /docs"),
    Bad("no such file of the page", "GET", "/dashboard/nothing.js", 404,
        "there is no /dashboard/nothing.js; see /dashboard"),
    Bad("asked for by a page of another site", "POST", "/v1/rollback", 403,
        "a page of another site may not ask for this through its visitor's browser; use a page of this server's",
        {"headers": {"Sec-Fetch-Site": "cross-site"}}),
    *[Bad("called by a name that is not the server's", method, path, 403,
          "the server is not called 'other.example:8000'; call it localhost, name that in serving.hosts, or present an "
          "API key (lifelist keys add)", {"headers": {"Host": "other.example:8000"}})
      for method, path in (("POST", "/v1/classify"), ("GET", "/v1/quality"))],
    Bad("wrong method", "DELETE", "/v1/classes", 405, "DELETE does not go with /v1/classes; allowed: GET, HEAD"),
    Bad("wrong method", "PATCH", "/v1/rollback", 405, "PATCH does not go with /v1/rollback; allowed: POST"),
    Bad("method that HTTP does not know", "FOO", "/v1/classes", 400,
        "the request cannot be read: its method, its path or a header is none that HTTP knows"),
    Bad("WebSocket", "GET", "/v1/classes", 403, "there are no WebSockets here; send a plain HTTP request, see /docs",
        {"headers": WEB_SOCKET}),
    Bad("header beyond ASCII", "GET", "/v1/classes", 400,
        "a header has characters beyond ASCII; send it without, or encoded", {"headers": {"X-Request-ID": b"\xff"}}),
    Bad("unknown parameter", "GET", "/v1/classes?x=1", 400,
        "there is no parameter 'x'; GET /v1/classes has none"),
    Bad("unknown parameter", "GET", "/v1/versions/1?classes", 400,
        "there is no parameter 'classes'; GET /v1/versions/1 has none"),
    Bad("unknown parameter", "GET", f"{INCREMENTS}?state=done", 400, "there is no parameter 'state'; …"),
    Bad("unknown parameter", "POST", "/v1/rollback?to=1", 400, "there is no parameter 'to'; …"),
    Bad("unknown parameter", "GET", "/metrics?name=lifelist_held_versions", 400, "there is no parameter 'name'; …"),
    # classify
    Bad("wrong method", "GET", CLASSIFY, 405, "GET does not go with /v1/classify; allowed: POST"),
    Bad("below a route", "POST", f"{CLASSIFY}/x", 404, "there is no /v1/classify/x here; see /docs",
        {"content": PNG}),
    Bad("empty body", "POST", CLASSIFY, 400, "the body is empty; …", {"content": b""}),
    Bad("JSON", "POST", CLASSIFY, 415, f"the content type is 'application/json'; {READABLE}", {"json": {}}),
    Bad("text", "POST", CLASSIFY, 415, "the content type is 'text/plain'; …", of_type("text/plain")),
    Bad("compressed body", "POST", CLASSIFY, 415, "the content encoding is 'gzip'; …",
        {"content": PNG, "headers": {"Content-Encoding": "gzip"}}),
    Bad("not an image", "POST", CLASSIFY, 400, "not an image that we read: 12 bytes, of no JPEG, PNG or WebP file",
        {"content": b"not an image"}),
    Bad("GIF", "POST", CLASSIFY, 400, "not an image that we read: …", {"content": picture("GIF")}),
    Bad("cut-off PNG", "POST", CLASSIFY, 400, "the image is broken or cut off, and cannot be decoded: …",
        {"content": PNG[:-100]}),
    Bad("cut-off JPEG", "POST", CLASSIFY, 400, "the image is broken or cut off, and cannot be decoded: …",
        {"content": JPEG[:-100]}),
    Bad("PNG with altered bytes", "POST", CLASSIFY, 400, "the image is broken or cut off, and cannot be decoded: …",
        {"content": PNG[:60] + bytes(200) + PNG[260:]}),
    Bad("moving WebP", "POST", CLASSIFY, 400, "the image is animated, with 2 frames; send a single one",
        {"content": moving()}),
    Bad("decompression bomb", "POST", CLASSIFY, 413,
        "the image is 8000×8000 = 64,000,000 pixels; the limit is 50,000,000. Send a smaller one",
        {"content": flat((8000, 8000))}),
    Bad("header that promises 10 gigapixels", "POST", CLASSIFY, 413,
        "the image has more than 50,000,000 pixels; send a smaller one", {"content": promising(100_000, 100_000)}),
    Bad("body over the limit", "POST", CLASSIFY, 413,
        "the body has 67,108,865 bytes or more; the limit is 67,108,864. Send fewer or smaller images in one query",
        {"content": bytes(64 * 2**20 + 1)}),
    Bad("image over the limit", "POST", CLASSIFY, 413,
        "the image has 10,485,761 bytes; the limit is 10,485,760. Send a smaller one",
        {"content": bytes(10 * 2**20 + 1)}),
    Bad("one broken image of three", "POST", CLASSIFY, 400,
        "image 2 of 3 ('1.png'): the image is broken or cut off, …", {"files": images(PNG, PNG[:-100], PNG)}),
    Bad("empty file in a form", "POST", CLASSIFY, 400, "…the image is empty; send a JPEG, PNG or WebP file",
        {"files": images(b"")}),
    Bad("257 images", "POST", CLASSIFY, 413, "the form has 257 images; send at most 256 in one query",
        {"files": images(*[PNG] * 257)}),
    Bad("text in place of a file", "POST", CLASSIFY, 400, "the field 'class' is text; images are sent as files: …",
        {"data": {"class": "wren"}, "files": images(PNG)}),
    Bad("form without its boundary", "POST", CLASSIFY, 400, "the form cannot be read: …",
        of_type("multipart/form-data")),
    Bad("form that was cut off", "POST", CLASSIFY, 400, "the form has no image, or ends before its last boundary; …",
        raw(FILE, end="")),
    Bad("top_k of 0", "POST", f"{CLASSIFY}?top_k=0", 400, "top_k should be a number from 1 to 10000, not '0'",
        {"content": PNG}),
    Bad("huge top_k", "POST", f"{CLASSIFY}?top_k=99999999999999999999", 400,
        "top_k should be a number from 1 to 10000, not …", {"content": PNG}),
    Bad("top_k of 5000 digits", "POST", f"{CLASSIFY}?top_k=000000001{'9' * 5000}", 400,
        "top_k should be a number from 1 to 10000, not '000000001999…'", {"content": PNG}),
    Bad("top_k that is no number", "POST", f"{CLASSIFY}?top_k=all", 400,
        "top_k should be a number from 1 to 10000, not 'all'", {"content": PNG}),
    Bad("unknown kind of answer", "POST", f"{CLASSIFY}?answer=best", 400,
        "answer should be linear or nearest_mean, not 'best'", {"content": PNG}),
    Bad("unknown parameter", "POST", f"{CLASSIFY}?topk=3", 400,
        "there is no parameter 'topk'; there are top_k, answer, shape, unknown_at", {"content": PNG}),
    Bad("unknown_at above 1", "POST", f"{CLASSIFY}?unknown_at=5", 400,
        "unknown_at should be a share from 0 to 1, such as 0.05, not '5'", {"content": PNG}),
    Bad("unknown_at that is no number", "POST", f"{CLASSIFY}?unknown_at=often", 400,
        "unknown_at should be a share from 0 to 1, such as 0.05, not 'often'", {"content": PNG}),
    Bad("parameter given twice", "POST", f"{CLASSIFY}?top_k=1&top_k=2", 400, "the parameter top_k is given twice; …",
        {"content": PNG}),
    Bad("tensor of another size than its shape", "POST", CLASSIFY, 400,
        "a uint8 tensor of shape 1,16,16,3 has 768 bytes; the body has 767", tensor("1,16,16,3", 767)),
    Bad("tensor with four channels", "POST", CLASSIFY, 400, "the tensor's shape 1,16,16,4 should end in 3, …",
        tensor("1,16,16,4", 1024)),
    Bad("tensor with a shape that overflows", "POST", CLASSIFY, 413,
        "the tensor has 999999999 images; send at most 256…", tensor("999999999,999999999,999999999,3", 100)),
    Bad("tensor with a shape of words", "POST", CLASSIFY, 400, "the tensor's shape should be N,H,W,3 or H,W,3, …",
        tensor("one,two,three,3", 100)),
    # infer
    Bad("wrong method", "GET", INFER, 405, "GET does not go with /v2/models/lifelist/infer; allowed: POST"),
    Bad("no JSON", "POST", INFER, 400, "the body is not JSON: …", {"content": b"{"}),
    Bad("no inputs", "POST", INFER, 400,
        "send one input, images (UINT8, N,H,W,3) or image_bytes (BYTES, N: image files); not 'none'", {"json": {}}),
    Bad("unknown parameter", "POST", f"{INFER}?top_k=3", 400,
        "there is no parameter 'top_k'; parameters stand in the request's JSON", {"content": PNG}),
    Bad("tensor of another size than its shape", "POST", INFER, 400,
        "the data of 'images' has 3 elements; its shape says 768", {"json": pixels([1, 16, 16, 3], [1, 2, 3])}),
    Bad("numbers that are no pixels", "POST", INFER, 400, "the data of 'images' run from 0 to 256; UINT8 holds 0 … 255",
        {"json": pixels([1, 1, 1, 3], [0, 1, 256])}),
    Bad("length of the JSON beyond the body", "POST", INFER, 400,
        "Inference-Header-Content-Length should be a number from 0 to the body's 2 bytes, not '3'",
        {"content": b"{}", "headers": {"Inference-Header-Content-Length": "3"}}),
    Bad("compressed in a way that is not read", "POST", INFER, 415,
        "the content encoding is 'br'; send gzip, deflate, or the body as it is",
        {"content": b"x", "headers": {"Content-Encoding": "br"}}),
    Bad("compressed, and cut off", "POST", INFER, 400, "the body is not one whole gzip stream: …",
        {"content": gzip.compress(bytes(999))[:-4], "headers": {"Content-Encoding": "gzip"}}),
    Bad("unknown model", "POST", "/v2/models/other/infer", 404,
        "there is no model 'other'; this server has 'lifelist'", {"json": {}}),
    Bad("version that is not loaded", "POST", "/v2/models/lifelist/versions/{refused}/infer", 409,
        "version … is not loaded; loaded: …. Load it first: POST /v2/repository/models/lifelist/versions/…/load",
        {"json": {}}),
    Bad("unknown version", "POST", "/v2/models/lifelist/versions/4711/infer", 404, "there is no version 4711 in …",
        {"json": {}}),
    Bad("unknown version", "GET", "/v2/models/lifelist/versions/stable", 404,
        "there is no version 'stable'; there are numbers from 1, and live, previous, candidate"),
    Bad("version that is not loaded", "GET", "/v2/models/lifelist/versions/{refused}/ready", 409,
        "version … is not loaded; load it first"),
    Bad("model in the request", "POST", "/v2/repository/models/lifelist/load", 400,
        "the parameter 'config' brings a model; only versions that the registry has are loaded",
        {"json": {"parameters": {"config": "{}"}}}),
    Bad("unloading what is live", "POST", "/v2/repository/models/lifelist/unload", 409,
        "version … is live, and stays loaded: it answers", {"json": {"parameters": {"version": "live"}}}),
    Bad("index of no JSON", "POST", "/v2/repository/index", 400, "the request should be a JSON object, not []",
        {"json": []}),
    # examples
    Bad("wrong method", "GET", EXAMPLES, 405, "GET does not go with /v1/examples; allowed: POST"),
    Bad("JSON", "POST", EXAMPLES, 415,
        "send multipart/form-data, with a field `class` and files `images`; not application/json",
        {"json": {"class": "wren"}}),
    Bad("form without its boundary", "POST", EXAMPLES, 400, "the content type multipart/form-data lacks its boundary",
        of_type("multipart/form-data")),
    Bad("form that was cut off", "POST", EXAMPLES, 400, "the multipart body ends before its last boundary: …",
        raw(FIELD, FILE, end="--b\r\nContent-Dispo")),
    Bad("form that is none", "POST", EXAMPLES, 400, "the multipart body is broken: …",
        of_type("multipart/form-data; boundary=b", b"class=wren")),
    Bad("no class", "POST", EXAMPLES, 400, "the field `class`, with the name, is there 0 times; …",
        {"files": images(PNG)}),
    Bad("class given twice", "POST", EXAMPLES, 400, "the field `class`, with the name, is there 2 times; …",
        raw(FIELD, FIELD, FILE)),
    Bad("empty class name", "POST", EXAMPLES, 400, "a class name has 1 to 100 characters; '' has 0", form("", PNG)),
    Bad("class name of spaces", "POST", EXAMPLES, 400, "a class name has 1 to 100 characters; '   ' has 0",
        form("   ", PNG)),
    Bad("class name of 101 characters", "POST", EXAMPLES, 400, "a class name has 1 to 100 characters; … has 101",
        form("w" * 101, PNG)),
    Bad("class name with a bell in it", "POST", EXAMPLES, 400,
        r"a class name has no control characters; … has '\x07'", form("wr\x07en", PNG)),
    Bad("class name that is not UTF-8", "POST", EXAMPLES, 400, "the field 'class' is not UTF-8: …",
        of_type("multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="class"\r\n\r\n\xff\xfe\r\n--b--\r\n')),
    Bad("no image", "POST", EXAMPLES, 400, "there is no file `images`; send at least one", raw(FIELD)),
    Bad("text in place of a file", "POST", EXAMPLES, 400, "the field 'images' should be a file, but text was sent: …",
        raw(FIELD, 'Content-Disposition: form-data; name="images"\r\n\r\ncat.png')),
    Bad("unknown field", "POST", EXAMPLES, 400,
        "there is no field 'label'; send `class`, the name, and `images`, the files",
        {"data": {"class": "wren", "label": "4"}, "files": images(PNG)}),
    Bad("new class of which no image can be read", "POST", EXAMPLES, 400,
        "no image of the new class 'puffin' can be accepted. 0.png: not an image …; 1.png: the image is broken …",
        form("puffin", b"not an image", PNG[:-100])),
    Bad("bomb behind a path for a name", "POST", EXAMPLES, 400,
        "no image of the new class 'puffin' can be accepted. ../../../etc/passwd: the image is 8000×8000 = …",
        form("puffin", flat((8000, 8000)), names=("../../../etc/passwd",))),
    Bad("image that shows another class already", "POST", EXAMPLES, 400,
        "no image of the new class 'puffin' … the same image is already an example of class 'lonely'; an image shows…",
        form("puffin", picture(seed=99))),
    # classes
    Bad("unknown class", "GET", "/v1/classes/4711", 404, "no class has id 4711; ids go up to …"),
    Bad("class that is no number", "GET", "/v1/classes/heron", 404,
        "no class has id 'heron'; ids are numbers, see /v1/classes"),
    Bad("class of 5000 digits", "GET", f"/v1/classes/0000000001{'9' * 5000}", 404,
        "no class has id '0000000001999…'; …"),
    Bad("unknown class", "PATCH", "/v1/classes/4711", 404, "no class has id 4711; ids go up to …",
        {"json": {"retired": True}}),
    Bad("no body", "PATCH", "/v1/classes/0", 400, "the body: Field required"),
    Bad("nothing to change", "PATCH", "/v1/classes/0", 400,
        "there is nothing to change; send name, aliases, retired or merged_into", {"json": {"name": None}}),
    Bad("unknown field", "PATCH", "/v1/classes/0", 400, "state: Extra inputs are not permitted, not 'retired'",
        {"json": {"state": "retired"}}),
    Bad("name that another class has", "PATCH", "/v1/classes/0", 409,
        "the name 'gull' is that of class 1, 'gull'", {"json": {"name": "gull"}}),
    Bad("name with a bell in it", "PATCH", "/v1/classes/0", 400,
        r"a class name has no control characters; … has '\x07'", {"json": {"name": "wr\x07en"}}),
    Bad("class merged into itself", "PATCH", "/v1/classes/0", 409, "class 'heron' cannot be merged into itself",
        {"json": {"merged_into": 0}}),
    Bad("class merged into an unknown one", "PATCH", "/v1/classes/0", 404, "no class has id 4711; …",
        {"json": {"merged_into": 4711}}),
    Bad("class merged by name", "PATCH", "/v1/classes/0", 400,
        "merged_into: Input should be a valid integer, not 'gull'", {"json": {"merged_into": "gull"}}),
    Bad("retired and merged at once", "PATCH", "/v1/classes/0", 409,
        "class 'heron' is merged into class 1; a class is retired or merged: un-merge it first",
        {"json": {"retired": True, "merged_into": 1}}),
    Bad("change of a version that is not live", "PATCH", "/v1/classes/0", 409,
        "version … is live, and you expected 4711; look at the class again",
        {"json": {"retired": True, "expected_version": 4711}}),
    Bad("JSON with another content type", "PATCH", "/v1/classes/0", 415,
        "send Content-Type: application/json; not text/plain", of_type("text/plain", b'{"retired": true}')),
    Bad("wrong method", "POST", "/v1/classes/0", 405, "POST does not go with /v1/classes/0; allowed: GET, HEAD, PATCH"),
    # increments
    Bad("not JSON", "POST", INCREMENTS, 400, "the body is not JSON: …", of_type("application/json", b"{classes: all}")),
    Bad("not UTF-8", "POST", INCREMENTS, 400, "the body is not JSON: it is not UTF-8",
        of_type("application/json", b"\xff")),
    Bad("compressed JSON", "POST", INCREMENTS, 415, "the content encoding is 'gzip'; send the JSON as it is",
        {"content": gzip.compress(b"{}"),
         "headers": {"Content-Type": "application/json", "Content-Encoding": "gzip"}}),
    Bad("a list", "POST", INCREMENTS, 400, "the body: Input should be a valid dictionary…", {"json": ["wren"]}),
    Bad("a string of classes", "POST", INCREMENTS, 400, "classes: Input should be a valid list, not 'wren'",
        {"json": {"classes": "wren"}}),
    Bad("no class in the list", "POST", INCREMENTS, 400, "classes: List should have at least 1 item…",
        {"json": {"classes": []}}),
    Bad("truth value for a class", "POST", INCREMENTS, 400,
        "classes.0: Input should be a valid string or be a valid integer, not 'True'", {"json": {"classes": [True]}}),
    Bad("negative class id", "POST", INCREMENTS, 400,
        "classes.1: Input should be a valid string or be greater than or equal to 0, not '-1'",
        {"json": {"classes": ["wren", -1]}}),
    Bad("class name of 101 characters", "POST", INCREMENTS, 400,
        "classes.0: String should have at most 100 characters or be a valid integer, not 'www…'",
        {"json": {"classes": ["w" * 101]}}),
    Bad("JSON without a content type", "POST", INCREMENTS, 415,
        "send Content-Type: application/json; the request has none", {"content": b"{}"}),
    Bad("form", "POST", INCREMENTS, 415,
        "send Content-Type: application/json; not application/x-www-form-urlencoded", {"data": {"method": "bic"}}),
    Bad("unknown class", "POST", INCREMENTS, 404, "no class is named 'ostrich' or has that id; …",
        {"json": {"classes": ["ostrich"]}}),
    Bad("unknown class, by id", "POST", INCREMENTS, 404, "no class is named 4711 or has that id; …",
        {"json": {"classes": [4711]}}),
    Bad("class that is trained", "POST", INCREMENTS, 409,
        "classes ['heron'] are trained already, in version …, and have no new images to train on; …",
        {"json": {"classes": ["heron"]}}),
    Bad("unknown method", "POST", INCREMENTS, 400, "method 'bick' does not exist; there are bic, eeil, …",
        {"json": {"method": "bick"}}),
    Bad("unknown field", "POST", INCREMENTS, 400, "class: Extra inputs are not permitted, not 'wren'",
        {"json": {"class": "wren"}}),
    Bad("two idempotency keys", "POST", INCREMENTS, 400,
        "the header Idempotency-Key and the field idempotency_key differ; …",
        {"json": {"idempotency_key": "a"}, "headers": {"Idempotency-Key": "b"}}),
    Bad("idempotency key of 201 characters", "POST", INCREMENTS, 400,
        "idempotency-key: String should have at most 200 characters…",
        {"json": {}, "headers": {"Idempotency-Key": "k" * 201}}),
    Bad("unknown increment", "GET", f"{INCREMENTS}/4711", 404, "no increment has id 4711"),
    Bad("increment that is no number", "GET", f"{INCREMENTS}/latest", 404, "no increment has number 'latest'; …"),
    Bad("increment 0", "GET", f"{INCREMENTS}/0", 404, "no increment has number '0'; they are numbered from 1"),
    Bad("increment 10³⁰", "GET", f"{INCREMENTS}/1{'0' * 30}", 404, "no increment has number '1000…'; …"),
    Bad("increment with zeros and 20 digits", "GET", f"{INCREMENTS}/00000000001{'9' * 20}", 404,
        "no increment has number '00000000001999…'; …"),
    Bad("increment of 5000 digits", "GET", f"{INCREMENTS}/0000000001{'9' * 5000}", 404,
        "no increment has number '0000000001999…'; …"),
    Bad("JSON of 2 MiB", "POST", INCREMENTS, 413,
        "the body has … bytes or more; the limit is 1,048,576. Only POST /v1/examples takes as much",
        {"content": b'{"classes": ["' + b"w" * 2**21 + b'"]}', "headers": {"Content-Type": "application/json"}}),
    Bad("wrong method", "DELETE", f"{INCREMENTS}/1", 405,
        "DELETE does not go with /v1/increments/1; allowed: GET, HEAD"),
    Bad("wrong method", "PUT", INCREMENTS, 405, "PUT does not go with /v1/increments; allowed: GET, HEAD, POST"),
    Bad("events of an unknown increment", "GET", f"{INCREMENTS}/4711/events", 404, "no increment has id 4711"),
    Bad("Last-Event-ID that is no number", "GET", f"{INCREMENTS}/{{ended}}/events", 400,
        "Last-Event-ID should be the id of an event, a number from 0 on; not 'last'",
        {"headers": {"Last-Event-ID": "last"}}),
    Bad("Last-Event-ID of 5000 digits", "GET", f"{INCREMENTS}/{{ended}}/events", 400,
        "Last-Event-ID should be the id of an event, a number from 0 on; not '999…'",
        {"headers": {"Last-Event-ID": "9" * 5000}}),
    Bad("cancelling an unknown increment", "POST", f"{INCREMENTS}/4711:cancel", 404, "no increment has id 4711"),
    Bad("cancelling what has ended", "POST", f"{INCREMENTS}/{{ended}}:cancel", 409,
        "increment … cannot be cancelled in state 'done': it has ended"),
    # versions
    Bad("unknown version", "GET", "/v1/versions/4711", 404, "there is no version 4711 in …; there is: …"),
    Bad("version of 5000 digits", "GET", f"/v1/versions/0000000001{'9' * 5000}", 404,
        "no version has number '0000000001999…'; …"),
    Bad("version that is no number", "GET", "/v1/versions/latest", 404, "no version has number 'latest'; …"),
    Bad("version with a minus", "GET", "/v1/versions/-1", 404, "no version has number '-1'; …"),
    Bad("exemplars of an unknown class", "GET", "/v1/versions/1/exemplars/4711", 404,
        "version 1 keeps no exemplar of class 4711 (any more); see /v1/versions/1/exemplars"),
    Bad("exemplars of a class that is no id", "GET", "/v1/versions/1/exemplars/gull", 404, "no class has id 'gull'; …"),
    Bad("confusions of an unknown version", "GET", "/v1/quality/confusions?version=4711", 404,
        "there is no version 4711 in …; there is: …"),
    Bad("a curve of a class, of all groups", "GET", "/v1/quality/curve?class_id=1", 400,
        "class_id is one of group=class; give both"),
    Bad("promoting an unknown version", "POST", "/v1/versions/4711:promote", 404, "there is no version 4711 in …"),
    Bad("promoting what the gate refused", "POST", "/v1/versions/{refused}:promote", 409,
        "the gate refused version …: a class is missing. Send force: true to promote it still"),
    Bad("force that is no truth value", "POST", "/v1/versions/{refused}:promote", 400,
        "force: Input should be a valid boolean, not 'yes'", {"json": {"force": "yes"}}),
    Bad("JSON with another content type", "POST", "/v1/versions/{refused}:promote", 415,
        "send Content-Type: application/json; not text/plain", of_type("text/plain", b'{"force": true}')),
    Bad("wrong method", "GET", "/v1/versions/1:promote", 405,
        "GET does not go with /v1/versions/1:promote; allowed: POST"),
    # feedback
    Bad("no prediction id", "POST", FEEDBACK, 400, "prediction_id: Field required", {"json": {"class": "heron"}}),
    Bad("no class", "POST", FEEDBACK, 400, "class: Field required", {"json": {"prediction_id": "x"}}),
    Bad("prediction id that is none", "POST", FEEDBACK, 400,
        "prediction_id 'x' was not given out by this server, or was altered; send it as it was received",
        {"json": {"prediction_id": "x", "class": "heron"}}),
    Bad("altered prediction id", "POST", FEEDBACK, 400,
        "prediction_id … was not given out by this server, or was altered; …",
        from_scene=lambda scene: {"json": {"prediction_id": altered(scene.prediction_id), "class": "heron"}}),
    Bad("unknown class", "POST", FEEDBACK, 404, "no class is named 'herom' or has that id; …Did you mean heron?",
        from_scene=lambda scene: {"json": {"prediction_id": scene.prediction_id, "class": "herom"}}),
    Bad("class that is neither name nor id", "POST", FEEDBACK, 400,
        "class: Input should be a valid string or be a valid integer, not …",
        from_scene=lambda scene: {"json": {"prediction_id": scene.prediction_id, "class": {"id": 1}}}),
    # review and webhooks
    Bad("image that is not kept", "GET", "/v1/review/x/image", 404,
        "no image of answer 'x' is kept for review; GET /v1/review lists those that are"),
    Bad("verdict on an image that is not kept", "POST", "/v1/review/x", 404, "no image of answer 'x' is kept for …",
        {"json": {"class": "heron"}}),
    Bad("verdict that says nothing", "POST", "/v1/review/x", 400,
        "send class, its name or id; or skip: true, if nobody can tell", {"json": {}}),
    Bad("verdict that says both", "POST", "/v1/review/x", 400, "send class, its name or id; or skip: true, …",
        {"json": {"class": "heron", "skip": True}}),
    Bad("example of no class", "POST", "/v1/review/x", 400,
        "an image that is skipped is no example of any class; send its class",
        {"json": {"skip": True, "example": True}}),
    Bad("reason that there is not", "GET", "/v1/review?why=blurred", 400,
        "why: Input should be 'unknown', 'disagree' or 'margin', not 'blurred'"),
    Bad("test without a webhook", "POST", "/v1/webhooks:test", 409,
        "there is no webhook in the settings; see webhooks in docs/settings.md"),
    Bad("JSON with another content type", "POST", FEEDBACK, 415, "send Content-Type: application/json; not text/plain",
        {"content": b'{"prediction_id": "x", "class": "heron"}', "headers": {"Content-Type": "text/plain"}}),
]
# fmt: on


def altered(prediction_id: str) -> str:
    """One bit of it is another."""
    return prediction_id[:9] + ("A" if prediction_id[9] != "A" else "B") + prediction_id[10:]


def page() -> str:
    """docs/errors.md."""
    lines = [_INTRODUCTION]
    for row in ROWS:
        path = re.sub(r"\d{15,}", lambda found: f"{found[0][:10]}… ({len(found[0])} digits)", row.path)
        path = path.replace("{", "<").replace("}", ">")
        error = row.error.replace("|", r"\|").replace("`", "'")
        lines.append(f"| {row.what} | `{row.method} {path}` | {row.status} | `{error}` |\n")
    return "".join(lines)


_INTRODUCTION = f"""# Errors

<!-- Made by `python tests/bad_requests.py > docs/errors.md`; tests/test_bad_requests.py sends each of them. -->

Every answer from 400 on is JSON, `{{"error": "…"}}`, and says what was wrong and what would be right. Statuses:

| status | when |
| --- | --- |
| 400 | what was sent cannot be used |
| 401 | no API key where one is needed, or one that is not known |
| 403 | an API key that may do other things; a page of another site; a name that is not the server's; a WebSocket |
| 404 | a route, version, class or increment that does not exist |
| 405 | a method that does not go with the route |
| 408 | a body that did not arrive in time |
| 409 | it cannot be done in the state that things are in |
| 413 | over a limit; `lifelist settings` lists them |
| 415 | a content type, or an encoding, that is not read |
| 429 | one caller wants more than its share; `Retry-After` says when to try again |
| 501 | a part of the Open Inference Protocol that this server does not have |
| 503 | not now: too much is queued, or no version answers; `Retry-After` says when to try again |
| 504 | the time that the request itself gave has passed |

A broken request is never answered by a 5xx. {len(ROWS)} of them, and what each gets (`…` stands for more of the same):

| request | sent to | status | `error` |
| --- | --- | --- | --- |
"""

if __name__ == "__main__":
    sys.stdout.write(page())
