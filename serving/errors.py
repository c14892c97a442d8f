"""From error to status: one table, and one way to say it, {"error": "…"}, on every route."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from lifelist.exporter.errors import (
    BadInput,
    Conflict,
    Corrupt,
    Failed,
    LifelistError,
    Missing,
    Overloaded,
    Refused,
    TooLarge,
    TooSlow,
    Unavailable,
    WrongType,
)

# fmt: off
STATUS: dict[type[Exception], int] = {  # the nearest class that an error is of decides
    BadInput:    400,
    TooSlow:     408,
    TooLarge:    413,
    WrongType:   415,
    Missing:     404,
    Conflict:    409,
    Refused:     409,
    Unavailable: 503,
    Corrupt:     503,
    Failed:      500,
}
# fmt: on

INTERNAL = "internal error; the server's log has it under request id {request_id}"


def as_json(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that raised `error`. An error that is not ours says no more than where to look."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    if isinstance(error, LifelistError):
        message = str(error)
    else:
        message = INTERNAL.format(request_id=request.headers.get("x-request-id", "unknown"))
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(error.retry_after_s if isinstance(error, Overloaded) else 1)
    return JSONResponse({"error": message}, status, headers)


def http_as_json(request: Request, error: Exception) -> JSONResponse:
    """What the router refuses by itself: 404, 405 and the like."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404 and error.detail in ("Not Found", ""):
        message = f"there is no {path} here; see /docs"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow") or (error.headers or {}).get("allow", "")
        message = f"{request.method} does not go with {path}; allowed: {allowed}"
    else:
        message = str(error.detail)
    return JSONResponse({"error": message}, error.status_code, dict(error.headers or {}))


def invalid_as_json(request: Request, error: Exception) -> JSONResponse:
    """What FastAPI's validation refuses, in one sentence for each field."""
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"error": "; ".join(_sentence(problem) for problem in error.errors())}, 400)


HANDLERS: dict[Any, Any] = {
    LifelistError: as_json,
    HTTPException: http_as_json,
    RequestValidationError: invalid_as_json,
    Exception: as_json,
}


def _sentence(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query", "path", "header"))
    if problem["type"] == "json_invalid":
        return f"the body is not JSON: {problem.get('ctx', {}).get('error', problem['msg'])}"
    given = "" if problem["type"] == "missing" else f", not {str(problem['input'])[:80]!r}"
    return f"{where or 'the body'}: {problem['msg'].removeprefix('Value error, ')}{given}"
