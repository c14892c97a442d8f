"""Requests that nobody should send: what a correct client sends, from real files, with something the matter with it.

Each generator is one function in GENERATORS; all that it draws comes from the generator of random numbers that it is
given, so that the same seed makes the same requests. A new kind of request is one more function there.
"""

import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Random = random.Random

CLASSIFY, EXAMPLES, FEEDBACK, INCREMENTS = b"/v1/classify", b"/v1/examples", b"/v1/feedback", b"/v1/increments"
NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**64, -1, -(2**63), 10**40)
WORDS = (
    b"", b"\0", b"\r\n", b"\r\n\r\n", b"--", b"--b--\r\n", b"NaN", b"1e999", b"null", b"true", b"[]", b"{}", b'"',
    b"\\u0000", b"\xed\xa0\x80", b"\xff\xfe", b"%00", b"%2e%2e%2f", b"../../etc/passwd", "ß\u202e𝔘".encode(),
    b"A" * 5000, b"[" * 2000,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as bytes will carry it. whole: whether HTTP can tell where it ends, so that an answer is owed."""

    method: bytes
    path: bytes
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""
    whole: bool = True
    raw: bytes = field(default=b"")  # if there is something here, it is sent as it is

    def wire(self) -> bytes:
        """What goes over the wire."""
        if self.raw:
            return self.raw
        names = {name.lower() for name, _ in self.headers}
        lines = [self.method + b" " + self.path + b" HTTP/1.1", *(name + b": " + value for name, value in self.headers)]
        if b"host" not in names:
            lines.append(b"Host: localhost")
        if (
            b"content-length" not in names
            and b"transfer-encoding" not in names
            and (self.body or self.method == b"POST")
        ):
            lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


# ------------------------------------------------------------------------------------------------------------ corpus


@cache
def photographs() -> tuple[bytes, ...]:
    """Real image files: the photographs that scikit-learn brings, made small, in each format that is read."""
    from sklearn import datasets

    found = []
    for file in sorted((Path(datasets.__file__).parent / "images").glob("*.jpg")):
        image = Image.open(file)
        small = image.resize((32, 32))
        found.append(_file(image.resize((200, 133)), "JPEG"))
        found += [_file(small, kind) for kind in ("JPEG", "PNG", "WEBP")]
        exif = Image.Exif()
        exif[0x0112] = 6
        found += [
            _file(small, "JPEG", exif=exif),
            _file(small.convert("CMYK"), "JPEG"),
            _file(small.convert("P"), "PNG"),
        ]
        found.append(_file(Image.fromarray(np.asarray(small.convert("L"), np.uint16) * 257), "PNG"))
        found.append(_file(small, "JPEG", progressive=True, icc_profile=bytes(500)))
        found.append(_file(small, "WEBP", save_all=True, append_images=[small.rotate(90)]))
        found.append(_file(small, "GIF"))
    return tuple(found)


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# --------------------------------------------------------------------------------------------------------- mutations


def mutated(random: Random, data: bytes, most: int = 8) -> bytes:
    """The same bytes with one to `most` changes: bits, bytes, pieces gone, doubled, swapped or put in."""
    changed = bytearray(data)
    for _ in range(random.randint(1, most)):
        random.choice(_MUTATIONS)(random, changed)
    return bytes(changed)


def _flip(random: Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _overwrite(random: Random, data: bytearray) -> None:
    at = _place(random, data)
    size = random.choice((1, 2, 4, 8))
    data[at : at + size] = random.choice((b"\0", b"\xff", random.randbytes(1))) * size


def _cut(random: Random, data: bytearray) -> None:
    at = _place(random, data)
    del data[at : at + random.choice((1, 2, 16, 256, len(data)))]


def _double(random: Random, data: bytearray) -> None:
    at = _place(random, data)
    data[at:at] = data[at : at + random.choice((1, 4, 64, 1024))] * random.choice((1, 2, 50))


def _insert(random: Random, data: bytearray) -> None:
    at = _place(random, data)
    data[at:at] = random.choice((random.choice(WORDS), str(random.choice(NUMBERS)).encode(), random.randbytes(8)))


def _swap(random: Random, data: bytearray) -> None:
    one, other = _place(random, data), _place(random, data)
    data[one : one + 8], data[other : other + 8] = data[other : other + 8], data[one : one + 8]


def _place(random: Random, data: bytearray) -> int:
    """Anywhere, and often near the front, where headers are."""
    return random.randrange(min(len(data), random.choice((16, 128, 2**40))) + 1)


_MUTATIONS = (_flip, _flip, _overwrite, _cut, _double, _insert, _swap)

# -------------------------------------------------------------------------------------------------------- generators


def image(random: Random) -> Request:
    """A damaged image file."""
    kinds = (b"image/jpeg", b"image/png", b"image/webp", b"application/octet-stream", b"image/tiff", b"text/html", b"")
    body = mutated(random, random.choice(photographs()))
    return Request(b"POST", CLASSIFY + _query(random), [(b"Content-Type", random.choice(kinds))], body)


def form(random: Random) -> Request:
    """A form whose parts, or what holds them together, are damaged."""
    files = [random.choice(photographs()) for _ in range(random.randint(0, 3))]
    files = [mutated(random, file) if random.random() < 0.3 else file for file in files]
    parts = [_part(random, b"images", file, b'; filename="%d.png"' % k) for k, file in enumerate(files)]
    return _multipart(random, CLASSIFY + _query(random), parts)


def examples(random: Random) -> Request:
    """Examples of classes with odd names. Those that are sound are learned."""
    names = (*WORDS, *(str(number).encode() for number in NUMBERS), "Dülmener".encode(), b"x" * 101)
    parts = [_part(random, b"class", random.choice(names)) for _ in range(random.choice((0, 1, 1, 1, 2)))]
    files = [mutated(random, random.choice(photographs())) for _ in range(random.randint(0, 3))]
    parts += [_part(random, b"images", file, b'; filename="a"') for file in files]
    random.shuffle(parts)
    return _multipart(random, EXAMPLES, parts)


def _part(random: Random, name: bytes, data: bytes, more: bytes = b"") -> bytes:
    head = b'Content-Disposition: form-data; name="%s"%s' % (name, more)
    head = mutated(random, head, 2) if random.random() < 0.15 else head
    return head + b"\r\n\r\n" + data


def _multipart(random: Random, path: bytes, parts: Sequence[bytes]) -> Request:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    body = mutated(random, body, 3) if random.random() < 0.4 else body
    kinds = (b"multipart/form-data; boundary=b",) * 6
    kind = random.choice(
        (*kinds, b"multipart/form-data", b"multipart/form-data; boundary=" + random.choice(WORDS[4:8]))
    )
    return Request(b"POST", path, [(b"Content-Type", kind)], body)


def tensor(random: Random) -> Request:
    """A tensor and a shape that often do not go together."""
    side, count = random.choice((1, 2, 8, 16, 32, 57)), random.choice((1, 2, 3, 64, 255, 256, 257))
    sizes: list[Any] = [count, side, random.choice((side, 1, 300)), 3]
    if random.random() < 0.5:
        sizes[random.randrange(4)] = random.choice((*NUMBERS, "x", "", "1.5", "1e3", " 3 ", "٣"))
    shape = (
        random.choice((",", ",", ",", ", ", ";", "x")).join(map(str, sizes[random.choice((0, 0, 0, 1, 2)) :])).encode()
    )
    exact = [size if isinstance(size, int) and 0 <= size < 400 else 3 for size in sizes]
    body = random.randbytes(max(0, min(2**20, int(np.prod(exact))) + random.choice((0, 0, 0, 1, -1))))
    headers = [(b"Content-Type", random.choice((b"application/octet-stream", b"", b"image/png")))]
    if random.random() < 0.5:
        return Request(b"POST", CLASSIFY + b"?shape=" + shape.replace(b" ", b"+"), headers, body)
    return Request(b"POST", CLASSIFY, [*headers, (b"X-Tensor-Shape", shape)], body)


def json_(random: Random) -> Request:
    """JSON of wrong types, wrong fields and no JSON at all."""
    method, path, value = random.choice(_JSON)
    text = json.dumps(odd(random, value), ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
    text = mutated(random, text, 3) if random.random() < 0.4 else text
    kinds = (b"application/json", b"application/json", b"application/json; charset=utf-16", b"text/plain", b"")
    return Request(method, path, [(b"Content-Type", random.choice(kinds))], text)


_JSON: Sequence[tuple[bytes, bytes, Any]] = (
    (b"POST", FEEDBACK, {"prediction_id": "A" * 56, "class": "heron"}),
    (b"POST", FEEDBACK, {"prediction_id": "AQAAAAEAAAAAAAAAAQABog_X17CP_W3nzCtLoEkSPDCgfwSu0QuFzzj5", "class": 1}),
    (b"POST", INCREMENTS, {"classes": ["wren", 4711], "method": "bic", "idempotency_key": "k"}),
    (b"POST", b"/v1/versions/4711:promote", {"force": True}),
    (b"POST", b"/v1/increments/4711:cancel", {}),
    (b"POST", b"/v1/rollback", {"to": 1}),
    (b"PATCH", b"/v1/classes/4711", {"name": "wren", "aliases": ["x"], "merged_into": 1, "expected_version": 1}),
)


_LEAVES: Sequence[Any] = (None, True, *NUMBERS, 1.5, float("nan"), "", "x" * 3000, "\0", "\ud800", [], {}, [[[]]] * 9)


def odd(random: Random, value: Any) -> Any:
    """Like the value, with something else in some place."""
    if random.random() < 0.25:
        return random.choice(_LEAVES)
    if isinstance(value, dict):
        made = {name: odd(random, item) for name, item in value.items() if random.random() < 0.9}
        return made | ({random.choice(("x", "", "__proto__", "class")): 1} if random.random() < 0.2 else {})
    return [odd(random, item) for item in value] if isinstance(value, list) else value


def paths(random: Random) -> Request:
    """Paths, queries and methods that are near those that exist."""
    known = (CLASSIFY, EXAMPLES, FEEDBACK, INCREMENTS, b"/v1/classes", b"/v1/versions", b"/v1/versions/1", b"/metrics",
             b"/v1/increments/1", b"/v1/increments/1/events", b"/docs", b"/docs/swagger-ui.css", b"/openapi.json",
             b"/v1/health/live", b"/v1/health/ready", b"/v1/versions/1:promote")  # fmt: skip
    path = random.choice(known)
    if random.random() < 0.7:
        path = b"/" + bytes(b for b in mutated(random, path[1:], 2) if 33 <= b < 127)[:3000]
    path += _query(random) if random.random() < 0.3 else b""
    methods = (b"GET", b"GET", b"GET", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"FOO")
    return Request(random.choice(methods), path)


def _query(random: Random) -> bytes:
    if random.random() < 0.5:
        return b""
    names = (b"top_k", b"answer", b"shape", b"", b"x", b"top_k[]", b"%74op_k")
    values = (b"1", b"5", b"linear", b"nearest_mean", b"1,2,2,3", *(str(number).encode() for number in NUMBERS), b"%ff")
    pairs = [random.choice(names) + b"=" + random.choice(values) for _ in range(random.choice((1, 1, 2, 30)))]
    return b"?" + b"&".join(pairs)


def headers(random: Random) -> Request:
    """A sound request with odd headers, odd ones that HTTP gives a meaning to among them."""
    pairs = [
        (b"Content-Encoding", random.choice((b"gzip", b"br", b"identity", b"IDENTITY", b"gzip, gzip", b"x"))),
        (b"Expect", random.choice((b"100-continue", b"200-ok"))),
        (b"Authorization", random.choice((b"Bearer", b"Bearer x", b"Basic eDp5", b"Bearer \xff"))),
        (b"X-API-Key", random.choice((b"x", b"\xe9" * 40))),
        (b"X-Request-ID", random.choice((b"a" * 3000, b"'\"<>", b"\xff"))),
        (b"X-Tensor-Shape", random.choice((b"1,2,2,3", b"x", b"9" * 400))),
        (b"X-Request-Timeout-Seconds", random.choice((b"x", b"nan", b"-1", b"1e999", b"\xff"))),
        (b"X-Request-Disconnect-Disabled", random.choice((b"?1", b"\xff"))),
        (b"Serve_Multiplexed_Model_Id", random.choice((b"a", b"\xff"))),
        (b"Accept", random.choice((b"text/html", b"*/*;q=" + b"9" * 99))),
        (b"Range", b"bytes=0-1,2-3,-1"),
        (b"Connection", random.choice((b"close", b"keep-alive", b"X-API-Key"))),
        (b"Last-Event-ID", str(random.choice(NUMBERS)).encode()),
        (b"Idempotency-Key", random.choice((b"x" * 201, b"\xff", b"k"))),
        (b"X-" + b"y" * random.choice((1, 1000)), b"z" * random.choice((0, 1, 3000))),
    ]
    chosen = [*random.sample(pairs, random.randint(1, 5)), (b"Content-Type", b"image/png")]
    return Request(b"POST", random.choice((CLASSIFY, CLASSIFY, FEEDBACK)), chosen, random.choice(photographs()))


def raw(random: Random) -> Request:
    """Bytes that are hardly HTTP: nothing is owed to them but that the next request is answered."""
    sound = random.choice((image, form, tensor, json_, headers))(random)
    return Request(b"", b"", whole=False, raw=mutated(random, sound.wire()[: random.choice((200, 2000, 2**20))], 6))


Generator = Callable[[Random], Request]

GENERATORS: dict[str, Generator] = {
    "image": image,
    "form": form,
    "tensor": tensor,
    "json": json_,
    "paths": paths,
    "headers": headers,
    "raw": raw,
    "examples": examples,
}
