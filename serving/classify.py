"""POST /v1/classify: the hot path, from bytes to an answer that names its version."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, get_args

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lifelist.exporter.errors import BadImage, BadInput, LifelistError, TooLarge, Unavailable
from lifelist.exporter.manifest import AnswerKind, Preprocess
from lifelist.exporter.preprocess import ImageLimits, Pixels, decode, fit
from lifelist.serving import prediction
from lifelist.serving.auth import Guarded
from lifelist.serving.batcher import Batcher
from lifelist.serving.body import Encoded, Images, Intake
from lifelist.serving.errors import HANDLERS
from lifelist.serving.keys import Guard
from lifelist.serving.live import Answer, Live, Query
from lifelist.serving.metrics import Measured, Metrics
from lifelist.serving.numbers import natural
from lifelist.serving.options import ServingOptions

PATH = "/v1/classify"
PARAMETERS = ("top_k", "answer", "shape")
LARGEST_TOP_K = 10_000


@dataclass(frozen=True, slots=True)
class Parts:
    """What the route works with; made by serving/app.py."""

    options: ServingOptions
    live: Live
    batcher: Batcher[Query, Answer]
    intake: Intake
    decoders: Executor
    metrics: Metrics
    key: bytes  # seals prediction ids
    guard: Guard


def app(parts: Parts) -> ASGIApp:
    """The application of one replica: this route, JSON for whatever goes wrong, and everything counted."""
    routes = [Route(PATH, classify, methods=["POST"])]
    inner = Starlette(routes=routes, exception_handlers=HANDLERS)
    inner.router.redirect_slashes = False  # a path that does not exist is a 404, not a detour
    inner.state.parts = parts
    rate = parts.options.requests_per_second / parts.options.replicas
    guarded = Guarded(_WholePath(inner), parts.guard, rate)
    return Measured(guarded, parts.metrics)


class _WholePath:
    """Ray Serve gives the route prefix as a root path; the route above is written with it."""

    def __init__(self, inner: ASGIApp) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.inner({**scope, "root_path": ""}, receive, send)


async def classify(request: Request) -> JSONResponse:
    """The classes of each image, best first. One version answers the whole request, and the answer names it."""
    began = time.perf_counter()
    parts: Parts = request.app.state.parts
    asked = _asked(request.query_params.multi_items(), parts.options)
    with parts.intake.admitted(request) as body:
        sent = await body.images(asked.shape)
        loaded = parts.live.current
        arrived = time.perf_counter()
        try:
            async with asyncio.timeout(parts.options.answer_timeout_s):
                pixels = await _pixels(parts, sent, loaded.manifest.preprocess)
                queued = time.perf_counter()
                query = Query(pixels, loaded, asked.answer, asked.top_k, queued)
                answer = await parts.batcher.submit(query, len(pixels))
        except TimeoutError:
            raise Unavailable(f"no answer within {parts.options.answer_timeout_s:g} s; try again later") from None
    timing = {
        "decode_seconds": queued - arrived,
        "queue_seconds": answer.queue_s,
        "model_seconds": answer.model_s,
        "total_seconds": time.perf_counter() - began,
    }
    content = _content(answer, parts, timing)
    return JSONResponse(content, headers={"X-Lifelist-Version": str(answer.loaded.version)})


@dataclass(frozen=True, slots=True)
class _Asked:
    top_k: int
    answer: AnswerKind | None
    shape: str | None


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
    return _Asked(top_k, cast(AnswerKind | None, answer), given.get("shape"))


async def _pixels(parts: Parts, sent: Images, preprocess: Preprocess) -> Pixels:
    """What the model sees of each image, N×S×S×3; off the event loop, which stays free for others."""
    side = preprocess.size
    if isinstance(sent, np.ndarray) and sent.shape[1:3] == (side, side) and preprocess.resize_to == side:
        return sent  # a tensor as the model sees it
    loop = asyncio.get_running_loop()
    limits = parts.options.image_limits
    single = partial(_decoded, preprocess=preprocess, limits=limits)
    found = await asyncio.gather(*(loop.run_in_executor(parts.decoders, single, image) for image in sent))
    if broken := [(place, error) for place, error in enumerate(found) if isinstance(error, LifelistError)]:
        raise _refusal(sent, broken)
    return np.stack([image for image in found if not isinstance(image, LifelistError)])


def _decoded(image: Encoded | Pixels, preprocess: Preprocess, limits: ImageLimits) -> Pixels | LifelistError:
    try:
        return decode(image.data, preprocess, limits) if isinstance(image, Encoded) else fit(image, preprocess)
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


def _content(answer: Answer, parts: Parts, timing: Mapping[str, float]) -> dict[str, Any]:
    """The answer as JSON; each image is counted, and gets an id that feedback can refer to."""
    loaded, now = answer.loaded, time.time()
    names = parts.live.names(loaded)
    images = []
    for ranking in answer.rankings:
        best = ranking[0][0]
        parts.metrics.answered(best, answer.kind)
        sealed = prediction.seal(parts.key, prediction.Prediction(loaded.version, best, answer.kind, now))
        classes = [{"id": class_id, "name": names[class_id], "score": round(score, 6)} for class_id, score in ranking]
        images.append({"prediction_id": sealed, "classes": classes})
    return {
        "version": loaded.version,
        "answer": answer.kind,
        "images": images,
        "timing": {name: round(seconds, 6) for name, seconds in timing.items()},
    }
