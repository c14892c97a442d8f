"""POST /v1/classify: the hot path, from bytes to an answer that names its version."""

import asyncio
import functools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, get_args

import numpy as np
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lifelist.exporter.errors import BadImage, BadInput, LifelistError, TooLarge, Unavailable
from lifelist.exporter.manifest import AnswerKind, Preprocess
from lifelist.exporter.preprocess import ImageLimits, Pixels, fit, sized
from lifelist.exporter.session import Loaded
from lifelist.serving import prediction
from lifelist.serving.auth import CALLER, Door, Guarded
from lifelist.serving.batcher import Batcher
from lifelist.serving.body import Encoded, Images, Intake
from lifelist.serving.errors import HANDLERS, as_json
from lifelist.serving.keys import PROBE
from lifelist.serving.live import Answer, Live, Query
from lifelist.serving.metrics import Measured, Metrics
from lifelist.serving.numbers import natural, share
from lifelist.serving.observed import Observed
from lifelist.serving.options import LARGEST_TOP_K, ServingOptions
from lifelist.serving.repository import Repository
from lifelist.serving.statistics import Statistics

PATH = "/v1/classify"
PARAMETERS = ("top_k", "answer", "shape", "unknown_at")
LITTLE = ImageLimits(max_bytes=2**13, max_pixels=2**14)  # decoded in some 40 µs; by a thread, in 150
LOT_BYTES = 2**15  # of images of one request, which are decoded by a thread one after the other
MOVED = f"{PATH}/v2/"  # where HAProxy puts other queries, since Ray Serve lets in nothing beside the prefix


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes of a replica work with; made by serving/app.py."""

    options: ServingOptions
    live: Live
    batcher: Batcher[Query, Answer]
    intake: Intake
    decoders: Executor
    metrics: Metrics
    statistics: Statistics
    observed: Observed
    repository: Repository
    key: bytes  # seals prediction ids
    door: Door
    traffic: bool = True  # False: what is asked is a probe

    def of_probes(self) -> "Parts":
        """The same with other books, which nobody reads: what probes are answered is no traffic."""
        return replace(
            self,
            options=self.options.model_copy(update={"audit_rate": 0.0}),
            metrics=Metrics(CollectorRegistry()),
            statistics=Statistics(),
            observed=Observed(most=0),
            traffic=False,
        )


def app(parts: Parts, beside: Sequence[Route] = ()) -> ASGIApp:
    """The application of one replica: this route and others, JSON for whatever goes wrong, and everything counted."""
    classify = Classify(parts)
    routes = [Route(PATH, classify, methods=["POST"]), *beside]
    inner = Starlette(routes=routes, exception_handlers=HANDLERS)
    inner.router.redirect_slashes = False  # a path that does not exist is a 404, not a detour
    inner.state.parts = parts
    return _WholePath(Measured(Guarded(_Short(classify, inner), parts.door), parts.metrics))


def is_query(path: str) -> bool:
    """Whether a path, as HAProxy sends it, is of a route of this application."""
    return path == PATH or path.startswith(MOVED)


class _WholePath:
    """The paths as clients sent them. Ray Serve gives the route prefix as a root path, and the routes are written with
    it; HAProxy puts the prefix before those that have another (deploy/haproxy.py).
    """

    def __init__(self, inner: ASGIApp) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if (scope.get("raw_path") or path.encode()).startswith(MOVED.encode()):  # raw: others spell it otherwise
            path = path.removeprefix(PATH)
        await self.inner({**scope, "root_path": "", "path": path}, receive, send)


class _Short:
    """Queries for `classify` go there at once; what the others are, and what is none, a router finds out."""

    def __init__(self, classify: "Classify", inner: ASGIApp) -> None:
        self.classify, self.inner = classify, inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST"
        await (self.classify if ours else self.inner)(scope, receive, send)


class Classify:
    """The classes of each image, best first. One version answers the whole request, and the answer names it."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.probing = parts, parts.of_probes()
        self.asked = functools.lru_cache(64)(self._asked)  # clients ask the same again and again

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answered(request)
        except LifelistError as error:
            response = as_json(request, error)
        except Exception as error:
            await as_json(request, error)(scope, receive, send)
            raise  # for the server's log
        await response(scope, receive, send)

    async def _answered(self, request: Request) -> Response:
        began = time.perf_counter()
        parts = self.probing if request.scope.get(CALLER) == PROBE else self.parts
        asked = self.asked(request.scope["query_string"])
        with parts.statistics.query(parts.live.ref.version) as counted:
            with parts.intake.admitted(request) as body:
                sent = await body.images(asked.shape)
                answer, decode_s = await ask(parts, sent, asked.answer, asked.top_k)
            answered = time.perf_counter()
            timing = {
                "decode_seconds": decode_s,
                "queue_seconds": answer.queue_s,
                "model_seconds": answer.model_s,
                "total_seconds": answered - began,
            }
            response = JSONResponse(
                _content(answer, parts, timing, asked.unknown_at),
                headers={"X-Lifelist-Version": str(answer.loaded.version)},
            )
            counted.answered(answer, decode_s, time.perf_counter() - answered)
        return response

    def _asked(self, query: bytes) -> "_Asked":
        return _asked(QueryParams(query).multi_items(), self.parts.options)


async def ask(
    parts: Parts, sent: Images, answer: AnswerKind | None, top_k: int, pinned: Loaded | None = None
) -> tuple[Answer, float]:
    """What a version says to images, and the seconds that it took to decode them. Unavailable if time runs out,
    TooLarge if the answer would list too much.

    pinned: the version that has to answer; None: the one that is live.
    """
    loaded, arrived = pinned or parts.live.current, time.perf_counter()
    if len(sent) * top_k > parts.options.max_listed:
        check_listed(len(sent) * min(top_k, len(loaded.manifest.answerable)), parts.options)
    try:
        async with asyncio.timeout(parts.options.answer_timeout_s):
            pixels, sides = await _pixels(parts, sent, loaded.manifest.preprocess)
            queued = time.perf_counter()
            query = Query(pixels, sides, loaded, answer, top_k, queued, pinned is not None, parts.traffic)
            return await parts.batcher.submit(query, len(pixels)), queued - arrived
    except TimeoutError:
        raise Unavailable(f"no answer within {parts.options.answer_timeout_s:g} s; try again later") from None


def check_listed(count: int, options: ServingOptions) -> None:
    """TooLarge if an answer would list more than it may: entries are written one by one, and all others wait."""
    if count > options.max_listed:
        raise TooLarge(
            f"the answer would list {count:,} classes or numbers, of all images together; the limit is "
            f"{options.max_listed:,}. Send fewer images, or ask for fewer classes of each"
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    top_k: int
    answer: AnswerKind | None
    shape: str | None
    unknown_at: float


def _asked(query: Sequence[tuple[str, str]], options: ServingOptions) -> _Asked:
    """What the query string asks for. BadInput names what it may hold."""
    given: dict[str, str] = {}
    for name, value in query:
        if name not in PARAMETERS:
            raise BadInput(f"there is no parameter {name[:80]!r}; there are {', '.join(PARAMETERS)}")
        if name in given:
            raise BadInput(f"the parameter {name} is given twice; once is enough")
        given[name] = value
    asked = given.get("top_k", str(options.top_k))
    if not (top_k := natural(asked, LARGEST_TOP_K)):
        raise BadInput(f"top_k should be a number from 1 to {LARGEST_TOP_K}, not {asked[:80]!r}")
    answer = given.get("answer")
    if answer is not None and answer not in get_args(AnswerKind):
        raise BadInput(f"answer should be {' or '.join(get_args(AnswerKind))}, not {answer[:80]!r}")
    unknown_at = share(given["unknown_at"]) if "unknown_at" in given else options.unknown_at
    if unknown_at is None:
        raise BadInput(f"unknown_at should be a share from 0 to 1, such as 0.05, not {given['unknown_at'][:80]!r}")
    return _Asked(top_k, cast(AnswerKind | None, answer), given.get("shape"), unknown_at)


_Decoded = tuple[Pixels, int] | LifelistError  # what the model sees, and the shorter side; or what is wrong with it


async def _pixels(parts: Parts, sent: Images, preprocess: Preprocess) -> tuple[Pixels, Sequence[int]]:
    """What the model sees of each image, N×S×S×3, and its shorter side as it came.

    The event loop is left to others meanwhile, unless there is but one, and little.
    """
    side = preprocess.size
    if isinstance(sent, np.ndarray) and sent.shape[1:3] == (side, side) and preprocess.resize_to == side:
        return sent, (side,) * len(sent)  # a tensor as the model sees it
    single = partial(_decoded, preprocess=preprocess, limits=parts.options.image_limits)
    at_once = _little(sent[0], preprocess, parts.options.image_limits) if len(sent) == 1 else None
    if at_once is not None:
        found = [at_once]
    else:
        loop = asyncio.get_running_loop()
        running = (loop.run_in_executor(parts.decoders, list, map(single, lot)) for lot in _lots(sent))
        found = [image for lot in await asyncio.gather(*running) for image in lot]
    if broken := [(place, error) for place, error in enumerate(found) if isinstance(error, LifelistError)]:
        raise _refusal(sent, broken)
    pixels, sides = zip(*(image for image in found if not isinstance(image, LifelistError)), strict=True)
    return np.stack(pixels) if len(pixels) > 1 else pixels[0][None], sides


def _little(image: Encoded | Pixels, preprocess: Preprocess, limits: ImageLimits) -> _Decoded | None:
    """The image, decoded at once if it is a file that takes less time than a thread takes to wake up; else None."""
    if not isinstance(image, Encoded) or len(image.data) > LITTLE.max_bytes or preprocess.size**2 > LITTLE.max_pixels:
        return None
    least = ImageLimits(min(LITTLE.max_bytes, limits.max_bytes), min(LITTLE.max_pixels, limits.max_pixels))
    found = _decoded(image, preprocess, least)
    return None if isinstance(found, TooLarge) else found


def _lots(sent: Images) -> Iterator[list[Encoded | Pixels]]:
    """Images in their order, so many together that decoding them is worth a thread's waking up."""
    lot, size = list[Encoded | Pixels](), 0
    for image in sent:
        lot.append(image)
        size += len(image.data) if isinstance(image, Encoded) else image.nbytes
        if size >= LOT_BYTES:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


def _decoded(image: Encoded | Pixels, preprocess: Preprocess, limits: ImageLimits) -> _Decoded:
    try:
        if isinstance(image, Encoded):
            return sized(image.data, preprocess, limits)
        return fit(image, preprocess), min(image.shape[:2])
    except LifelistError as error:  # returned, so that all of a request's broken images are named at once
        return error


def _refusal(sent: Images, broken: Sequence[tuple[int, LifelistError]]) -> LifelistError:
    """Which of the images cannot be used, and why."""
    said = [
        str(error) if len(sent) == 1 else f"image {k + 1} of {len(sent)}{_named(sent[k])}: {error}"
        for k, error in broken
    ]
    kind = TooLarge if all(isinstance(error, TooLarge) for _, error in broken) else BadImage
    return kind("; ".join(said[:5]) + (f"; and {len(said) - 5} more" if len(said) > 5 else ""))


def _named(image: Any) -> str:
    return f" ({image.name[:80]!r})" if isinstance(image, Encoded) and image.name else ""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What an image's answer is known by."""

    id: str  # feedback refers to it
    audit: bool  # whether it was drawn for the audit


def sealed(parts: Parts, answer: Answer) -> list[Sealed]:
    """For each image its id. Each is counted, by the class that it was taken for, and may be watched."""
    now, rate, found = time.time(), parts.options.audit_rate, []
    for ranking in answer.rankings:
        best = ranking[0][0]
        audit = random.random() < rate
        parts.metrics.answered(best, answer.kind, audit)
        made = prediction.Prediction(answer.loaded.version, best, answer.kind, now, 1 / rate if audit else 0.0)
        found.append(Sealed(prediction.seal(parts.key, made), audit))
    parts.observed.note(answer, [one.id for one in found])
    return found


def _content(answer: Answer, parts: Parts, timing: Mapping[str, float], unknown_at: float) -> dict[str, Any]:
    """The answer as JSON."""
    names = parts.live.names(answer.loaded)
    unknown = [None] * len(answer.rankings) if answer.unknown is None else answer.unknown.round(6).tolist()
    images = []
    for ranking, known, score in zip(answer.rankings, sealed(parts, answer), unknown, strict=True):
        classes = [{"id": class_id, "name": names[class_id], "score": round(score, 6)} for class_id, score in ranking]
        image = {"prediction_id": known.id, "audit": known.audit, "classes": classes, "unknown_score": score}
        if unknown_at:
            image["unknown"] = is_unknown = None if score is None else score > 1 - unknown_at
            if is_unknown:
                parts.metrics.unknown.inc()
        images.append(image)
    return {
        "version": answer.loaded.version,
        "answer": answer.kind,
        "images": images,
        "timing": {name: round(seconds, 6) for name, seconds in timing.items()},
    }
