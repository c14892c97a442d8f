"""POST /v2/models/{model}[/versions/{version}]/infer: the hot path in the words of the Open Inference Protocol.

It is the path of POST /v1/classify with another way in and out: the same intake, decoders, batcher and model run.
"""

import asyncio
import base64
import binascii
import math
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast, get_args

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lifelist.exporter import rows
from lifelist.exporter.errors import BadInput, NotPrepared, TooLarge, TooLate, WrongType
from lifelist.exporter.manifest import AnswerKind, ClassEntry, Manifest
from lifelist.exporter.session import Loaded
from lifelist.serving import body, oip, repository
from lifelist.serving.body import Body, Encoded, Images
from lifelist.serving.classify import Parts, Sealed, ask, check_listed, sealed
from lifelist.serving.live import Answer
from lifelist.serving.numbers import natural
from lifelist.serving.options import ServingOptions
from lifelist.serving.repository import IMAGE_BYTES, IMAGES
from lifelist.serving.tensors import BYTES, Array, Strings, Tensor, best_of

PARAMETERS = ("answer", "timeout", "priority")  # beside binary_data_output; all queries have the same priority
DEFAULT_OUTPUTS = ("class_id", "label", "score", "prediction_id")
WINDOW = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
HARMLESS = 2**20  # bytes: a body that becomes no more than that may be compressed as far as it will go
WORTH_COMPRESSING = 1024  # bytes of an answer
LARGE_JSON, LARGE_OUTPUT = 2**16, 2**12  # bytes to read, elements to write: what takes some milliseconds

T = TypeVar("T")


async def infer(request: Request) -> Response:
    """What one version says to one tensor, or one list of image files."""
    parts: Parts = request.app.state.parts
    for name in request.query_params:
        raise BadInput(f"there is no parameter {name[:80]!r}; parameters stand in the request's JSON")
    model, version = request.path_params["model"], request.path_params.get("version", "")
    with parts.intake.admitted(request) as sent:
        content = await _uncompressed(parts, sent, request.headers.get("content-encoding", "identity"))
        header = request.headers.get(oip.HEADER)
        json_bytes = len(content) if header is None else natural(header, len(content)) or 0
        read = partial(oip.read, content, header, limits(parts.options), IMAGE_BYTES)
        asked = await _beside(parts, json_bytes > LARGE_JSON, read)
        found = await answered(parts, asked, model, version)
    binary = {wanted.name for wanted in asked.outputs if wanted.binary} if asked.outputs else _all_if(asked.binary)
    listed = sum(math.prod(tensor.shape) for tensor in found.outputs if tensor.name not in binary)
    write = partial(_written, found, binary, request.headers.get("accept-encoding", ""))
    data, length, encoding = await _beside(parts, listed > LARGE_OUTPUT, write)
    headers = {"X-Lifelist-Version": found.version}
    if length is not None:
        headers[oip.HEADER] = str(length)
    headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"} if encoding else {}
    return Response(data, headers=headers, media_type="application/json" if length is None else body.RAW_TYPES[1])


async def _beside(parts: Parts, large: bool, work: Callable[[], T]) -> T:
    """What the work gives; by a thread that decodes, if it is large, so that the event loop stays free for others."""
    return await asyncio.get_running_loop().run_in_executor(parts.decoders, work) if large else work()


def _written(response: oip.Response, binary: Collection[str], accepted: str) -> tuple[bytes, int | None, str]:
    """The body of an answer, how much of it was JSON before it was compressed (None: all), and how it is compressed."""
    data, length = oip.write(response, binary)
    data, encoding = _compressed(data, accepted)
    return data, length, encoding


ROUTES = [
    Route("/v2/models/{model}/infer", infer, methods=["POST"]),
    Route("/v2/models/{model}/versions/{version}/infer", infer, methods=["POST"]),
]


def limits(options: ServingOptions) -> oip.Limits:
    """What a request may bring."""
    return oip.Limits(json=options.max_infer_json_bytes, depth=options.max_json_depth, strings=options.max_images)


async def answered(parts: Parts, asked: oip.Request, model: str, version: str) -> oip.Response:
    """The answer to a request, whichever way it came. `version`: a number or a name; empty: live.

    Missing if there is no such model or version, NotPrepared if the version is not loaded, BadInput or TooLarge for
    what cannot be used, TooLate if the time that the request gave has passed.
    """
    with parts.statistics.query(parts.live.ref.version) as counted:
        loaded = await _loaded(parts, model, version)
        if loaded is not None:
            counted.version = loaded.version
        kind, within_s = _parameters(asked.parameters)
        manifest = (loaded or parts.live.current).manifest
        for wanted in asked.outputs:
            _check_output(wanted, manifest)
        sent = images(asked.inputs, parts.options)
        check_listed(len(sent) * sum(_listed(wanted, manifest) for wanted in asked.outputs), parts.options)
        answer, decode_s = await _in_time(ask(parts, sent, kind, 1, loaded), within_s)
        began = time.perf_counter()
        outputs = asked.outputs or tuple(map(oip.Wanted, DEFAULT_OUTPUTS))
        response = oip.Response(
            model=model,
            version=str(answer.loaded.version),
            outputs=_outputs(parts, answer, outputs),
            id=asked.id,
            parameters={"answer": answer.kind, "live_version": str(parts.live.ref.version)},
        )
        counted.answered(answer, decode_s, time.perf_counter() - began)
    return response


def images(inputs: Sequence[Tensor], options: ServingOptions) -> Images:
    """What the one input holds: N×H×W×3, or files. BadInput or TooLarge if it is none that we know."""
    if len(inputs) != 1 or inputs[0].name not in (IMAGES, IMAGE_BYTES):
        given = ", ".join(tensor.name[:40] for tensor in inputs[:5]) or "none"
        raise BadInput(
            f"send one input, {IMAGES} (UINT8, N,H,W,3) or {IMAGE_BYTES} (BYTES, N: image files); not {given!r}"
        )
    (tensor,) = inputs
    if tensor.name == IMAGE_BYTES:
        if tensor.datatype != BYTES or len(tensor.shape) not in (1, 2) or not tensor.data:
            raise BadInput(
                f"{IMAGE_BYTES} should be BYTES of shape [N], N from 1 on; not {tensor.datatype} {list(tensor.shape)}"
            )
        if len(tensor.data) > options.max_images:
            raise TooLarge(f"{len(tensor.data):,} images; send at most {options.max_images} in one query")
        return [Encoded("", _file(element)) for element in cast(Strings, tensor.data)]
    if tensor.datatype != "UINT8" or len(tensor.shape) != 4:
        raise BadInput(f"{IMAGES} should be UINT8 of shape [N,H,W,3]; not {tensor.datatype} {list(tensor.shape)}")
    return body.pixels(cast(Array, tensor.data), tensor.shape, options)


def _file(element: bytes | str) -> bytes:
    """An image file; in JSON, which holds no bytes, it is base64."""
    if isinstance(element, bytes):
        return element
    try:
        return base64.b64decode(element, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"an image file in JSON should be base64: {error}; or send it raw, after the JSON") from error


async def _loaded(parts: Parts, model: str, version: str) -> Loaded | None:
    """The version that has to answer; None: whichever is live. NotPrepared if it is not held."""
    parts.repository.check(model)
    if version in ("", "live"):
        return None
    held = parts.live.held
    number = natural(version, 2**31 - 1)
    if number not in held:
        number = await parts.repository.number(model, version)
    if number not in held:
        raise NotPrepared(
            f"version {number} is not loaded; loaded: {', '.join(map(str, sorted(held)))}. Load it first: "
            f"POST /v2/repository/models/{model}/versions/{number}/load"
        )
    return held[number]


def _parameters(given: Mapping[str, Any]) -> tuple[AnswerKind | None, float | None]:
    """Which answer is asked for, and in how many seconds."""
    for name in sorted(given):
        if name not in PARAMETERS:
            raise BadInput(f"there is no parameter {name[:80]!r}; there are {', '.join(PARAMETERS)}")
    kind, timeout = given.get("answer"), given.get("timeout", 0)
    if kind is not None and kind not in get_args(AnswerKind):
        raise BadInput(f"answer should be {' or '.join(get_args(AnswerKind))}, not {str(kind)[:80]!r}")
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise BadInput(f"timeout should be a number of microseconds, not {str(timeout)[:80]!r}")
    return cast(AnswerKind | None, kind), timeout / 1e6 or None


async def _in_time(answering: Any, within_s: float | None) -> tuple[Answer, float]:
    if within_s is None:
        found: tuple[Answer, float] = await answering
        return found
    try:
        async with asyncio.timeout(within_s):
            return await answering  # type: ignore[no-any-return]
    except TimeoutError:
        raise TooLate(f"no answer within the {within_s:g} s of the parameter timeout; it is in microseconds") from None


# ----------------------------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """An answer, with what was sealed of it."""

    answer: Answer
    known: list[Sealed]
    names: Mapping[int, str]

    @property
    def best(self) -> list[int]:
        return [ranking[0][0] for ranking in self.answer.rankings]


# fmt: off
OUTPUTS: dict[str, Callable[[_Said], Array | Strings]] = {
    "class_id":      lambda said: np.array(said.best, np.int64),
    "label":         lambda said: [said.names[class_id] for class_id in said.best],
    "score":         lambda said: np.array([ranking[0][1] for ranking in said.answer.rankings], np.float32),
    "prediction_id": lambda said: [one.id for one in said.known],
    "audit":         lambda said: np.array([one.audit for one in said.known], np.bool_),
    "logits":        lambda said: said.answer.loaded.rows.logits(said.answer.logits),
    "probabilities": lambda said: said.answer.loaded.probabilities(said.answer.logits).astype(np.float32),
    "similarities":  lambda said: said.answer.loaded.similarities(said.answer.embedding),
    "embedding":     lambda said: said.answer.embedding,
    "unknown_score": lambda said: cast(Array, said.answer.unknown).astype(np.float32),
}
# fmt: on
COLUMNS: dict[str, Callable[[Manifest], Sequence[ClassEntry]]] = {  # of which classes they are
    "logits": rows.answered,
    "probabilities": rows.answered,
    "similarities": repository.known,
}


def _check_output(wanted: oip.Wanted, manifest: Manifest) -> None:
    _kind(wanted.name, manifest)
    if wanted.classification and wanted.name not in COLUMNS:
        raise BadInput(f"{wanted.name} has no classification; {', '.join(COLUMNS)} have")
    if wanted.classification and wanted.classification > (most := len(COLUMNS[wanted.name](manifest))):
        raise BadInput(
            f"classification {wanted.classification} of {wanted.name} is more than the {most} classes that version "
            f"{manifest.version} has there"
        )


def _listed(wanted: oip.Wanted, manifest: Manifest) -> int:
    """How many entries of an output are written one by one for each image: none of what is binary, but for texts."""
    datatype, shape = _kind(wanted.name, manifest)
    if wanted.classification:
        return wanted.classification
    return 0 if wanted.binary and datatype != BYTES else math.prod(shape[1:])


def _kind(output: str, manifest: Manifest) -> tuple[str, list[int]]:
    """Datatype and shape of an output. BadInput if the version has none of that name."""
    there = repository.outputs(manifest)
    if output not in there:
        raise BadInput(f"there is no output {output[:80]!r}; there are {', '.join(there)}")
    return there[output]


def _outputs(parts: Parts, answer: Answer, outputs: Sequence[oip.Wanted]) -> tuple[Tensor, ...]:
    manifest = answer.loaded.manifest
    said = _Said(answer, sealed(parts, answer), parts.live.names(answer.loaded))
    found = []
    for wanted in outputs:  # looked up again: another version may be live than the one that they were checked for
        (datatype, shape), values = _kind(wanted.name, manifest), OUTPUTS[wanted.name](said)
        if best := wanted.classification:
            labels = [entry.name for entry in COLUMNS[wanted.name](manifest)]
            datatype, shape, values = BYTES, [-1, min(best, len(labels))], best_of(cast(Array, values), labels, best)
        found.append(Tensor(wanted.name, datatype, (len(answer.rankings), *shape[1:]), values))
    return tuple(found)


def _all_if(binary: bool) -> set[str]:
    return set(DEFAULT_OUTPUTS) if binary else set()


# ------------------------------------------------------------------------------------------------------- compression


async def _uncompressed(parts: Parts, sent: Body, encoding: str) -> bytes:
    """The body as it was before it was compressed, if it was."""
    encoding = encoding.strip().lower()
    if encoding not in (*WINDOW, "identity"):
        raise WrongType(f"the content encoding is {encoding[:80]!r}; send gzip, deflate, or the body as it is")
    data = await sent.whole()
    if encoding == "identity":
        return data
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(parts.decoders, inflated, data, encoding, parts.options)
    sent.share.take(len(found))
    return found


def inflated(data: bytes, encoding: str, options: ServingOptions) -> bytes:
    """Compressed bytes as they were. TooLarge once they become more than they may, BadInput if they are broken."""
    most = min(options.max_body_bytes, max(HARMLESS, len(data) * options.max_compression))
    stream = zlib.decompressobj(WINDOW[encoding])
    try:
        found = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise BadInput(f"the body is not {encoding}: {error}") from error
    if len(found) > most:
        raise TooLarge(
            f"the body of {len(data):,} bytes becomes more than {most:,}; the limits are {options.max_body_bytes:,} "
            f"bytes, and {options.max_compression} times what was sent. Send it uncompressed, or fewer images"
        )
    if not stream.eof or stream.unused_data:
        raise BadInput(f"the body is not one whole {encoding} stream: it is cut off, or goes on behind its end")
    return found


def _compressed(data: bytes, accepted: str) -> tuple[bytes, str]:
    """An answer, compressed if that is welcome and worth while; and how it is."""
    welcome = {part.partition(";")[0].strip().lower() for part in accepted.split(",") if not _unwanted(part)}
    encoding = next((known for known in WINDOW if known in welcome), "")
    if not encoding or len(data) < WORTH_COMPRESSING:
        return data, ""
    stream = zlib.compressobj(1, wbits=WINDOW[encoding])
    return stream.compress(data) + stream.flush(), encoding


def _unwanted(part: str) -> bool:
    return part.partition(";")[2].replace(" ", "").rstrip("0.") == "q="
