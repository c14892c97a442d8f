"""From error to status: one table, and one way to say it, {"error": "…"}, on every route."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Match

from lifelist.exporter.errors import (
    BadInput,
    BadKey,
    Conflict,
    Corrupt,
    Failed,
    Forbidden,
    LifelistError,
    Missing,
    Overloaded,
    Refused,
    TooLarge,
    TooLate,
    TooOften,
    TooSlow,
    Unavailable,
    Unsupported,
    WrongType,
)

# fmt: off
STATUS: dict[type[Exception], int] = {  # the nearest class that an error is of decides
    BadInput:    400,
    TooSlow:     408,
    TooLarge:    413,
    WrongType:   415,
    BadKey:      401,
    Forbidden:   403,
    Missing:     404,
    Conflict:    409,
    Refused:     409,
    Unsupported: 501,
    TooLate:     504,
    TooOften:    429,
    Unavailable: 503,
    Corrupt:     503,
    Failed:      500,
}
# fmt: on

INTERNAL = "internal error; the server's log has it under request id {request_id}"
LEFT = "the client closed its sending side before the answer"
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
PLACES = ("body", "query", "path", "header")  # how FastAPI begins a location
ALTERNATIVE = "constrained-"  # how pydantic begins its name for a type of several, as the last part of a location


def as_json(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that raised `error`. An error that is not ours says no more than where to look."""
    status = status_of(error)
    if isinstance(error, LifelistError):
        message = str(error)
    else:
        message = INTERNAL.format(request_id=request.headers.get("x-request-id", "unknown"))
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if status == 408:
        headers["Connection"] = "close"  # else whoever sends so slowly would hold it on
    if status in (429, 503):
        headers["Retry-After"] = str(error.retry_after_s if isinstance(error, Overloaded) else 1)
    return JSONResponse({"error": message}, status, headers)


def status_of(error: Exception) -> int:
    """The status of an answer to a request that raised `error`."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def http_as_json(request: Request, error: Exception) -> JSONResponse:
    """What the router refuses by itself: 404, 405 and the like."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if isinstance(error.__cause__, ClientDisconnect):  # while the body was read
        message = LEFT
    elif isinstance(error.__cause__, UnicodeDecodeError):  # of which FastAPI says only that the body cannot be parsed
        if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
            return as_json(request, WrongType(f"the content encoding is {encoding[:80]!r}; send the JSON as it is"))
        message = "the body is not JSON: it is not UTF-8"
    elif error.status_code == 404 and error.detail in ("Not Found", ""):
        message = f"there is no {path} here; see /docs"
    elif error.status_code == 405:
        allowed = ", ".join(_methods(request))
        message = f"{request.method} does not go with {path}; allowed: {allowed}"
        return JSONResponse({"error": message}, 405, {"Allow": allowed})
    else:
        message = str(error.detail)
    return JSONResponse({"error": message}, error.status_code, dict(error.headers or {}))


def _methods(request: Request) -> list[str]:
    """Those that go with the path. The router itself names only what the first route of that path takes."""
    scopes = {method: {**request.scope, "method": "GET" if method == "HEAD" else method} for method in METHODS}
    return [m for m in METHODS if any(route.matches(scopes[m])[0] is Match.FULL for route in request.app.routes)]


def invalid_as_json(request: Request, error: Exception) -> JSONResponse:
    """What FastAPI's validation refuses, in one sentence for each field; 415 if the body is not said to be JSON."""
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if any(isinstance(problem.get("input"), bytes) for problem in problems):  # handed on as it came, unread
        given = request.headers.get("content-type", "")[:80]
        said = f"not {given}" if given else "the request has none"
        return as_json(request, WrongType(f"send Content-Type: application/json; {said}"))
    return JSONResponse({"error": "; ".join(_sentence(list(same)) for _, same in groupby(problems, _where))}, 400)


HANDLERS: dict[Any, Any] = {
    LifelistError: as_json,
    HTTPException: http_as_json,
    RequestValidationError: invalid_as_json,
    Exception: as_json,
}


def _where(problem: Any) -> str:
    """The field. Where a value may be of several types, pydantic has a problem for each, and they are of one field."""
    first, *parts = (str(part) for part in problem["loc"])
    parts = parts if first in PLACES else [first, *parts]
    if parts and parts[-1].startswith(ALTERNATIVE):
        parts.pop()
    return ".".join(parts) or "the body"


def _sentence(problems: Sequence[Any]) -> str:
    """What is wrong with one field: a value that may be of several types has a problem with each of them."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}"
    wanted = [first["msg"].removeprefix("Value error, ")]
    wanted += [problem["msg"].removeprefix("Input should ") for problem in problems[1:]]
    given = "" if first["type"] == "missing" else f", not {str(first['input'])[:80]!r}"
    return f"{_where(first)}: {' or '.join(wanted)}{given}"
