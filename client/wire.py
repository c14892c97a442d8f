"""What the two clients share: a request and the reader of its answer, when it is sent again, and events as they come.

Nothing here waits or touches a socket: the clients send what they are given, and sleep as long as they are told.
"""

import email.utils
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar, cast

import httpx

from lifelist.client.answers import Json, Progress
from lifelist.client.errors import Failed, RequestFailed, Unavailable, of_status
from lifelist.exporter.errors import BadInput

T = TypeVar("T")
Found = httpx.Response | httpx.RequestError  # what came of sending a request

LATER = (429, 503)  # statuses that say: not now
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
BROKEN = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
RECONNECT_S = 0.5  # between connections to a stream of events
SILENCE_S = 45  # on a stream of events; the server sends a comment every ten seconds when nothing happens


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    arguments: Mapping[str, Any] = field(default_factory=dict)  # httpx's: params, headers, json, files, …
    repeatable: bool = False  # sent twice it does what it does once


def options(
    url: str, timeout_s: float, api_key: str | None, environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """The arguments of an httpx client. The key is LIFELIST_API_KEY's, unless given; BadInput if it can be none, or
    if the URL is no server's.
    """
    _check(url)
    key = environment.get("LIFELIST_API_KEY") if api_key is None else api_key
    if key and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise BadInput("the API key has a space at an end, or a character that no key has; is it whole, and alone?")
    return {
        "base_url": url.rstrip("/"),
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": timeout_s,
        "trust_env": False,  # a proxy for the internet, set in the environment, must not get requests to this machine
    }


def _check(url: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadInput(f"{url!r} is no URL ({error}); name the server as http://host:port") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadInput(f"{url!r} is no URL of a server; name it as http://host:port")


class Call(Generic[T]):
    """One request on its way to a server: sent again while that can help, until `patience_s` are over."""

    def __init__(self, request: Request[T], url: str, patience_s: float) -> None:
        self.request, self.url = request, url
        self.id = uuid.uuid4().hex
        self.deadline = time.monotonic() + patience_s
        self.tries = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """What httpx's `request` is called with."""
        given = self.request.arguments
        headers = {"X-Request-ID": self.id, **given.get("headers", {})}
        return {"method": self.request.method, "url": self.request.path, **given, "headers": headers}

    def pause(self, found: Found) -> float | None:
        """Seconds to wait before the request is sent again; None if it will not be.

        An answer of 429 or 503 and a broken connection are worth another try if the request is repeatable; one that
        never left is, whatever it asks. Pauses double and are spread at random, so that many clients do not come back
        at once; Retry-After is their least.
        """
        again = isinstance(found, BROKEN) if isinstance(found, Exception) else found.status_code in LATER
        if not again or not (self.request.repeatable or isinstance(found, NEVER_SENT)):
            return None
        backoff = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self.tries)
        self.tries += 1
        pause = retry_after(found) + backoff * random.uniform(0.5, 1)
        return pause if time.monotonic() + pause < self.deadline else None

    def result(self, found: Found) -> T:
        """What the answer says. RequestFailed, of the kind that fits, if there is none or it is an error."""
        if isinstance(found, httpx.RequestError):
            raise self.unanswered(found) from found
        if not found.is_success:
            raise self.refused(found)
        try:
            return self.request.read(found)
        except (ValueError, KeyError, TypeError) as error:
            raise self._is_it_lifelist(found) from error

    def unanswered(self, error: httpx.RequestError) -> RequestFailed:
        """That nobody answered, in a sentence."""
        if isinstance(error, httpx.ConnectError):
            said = (
                f"no server answers at {self.url}. Start one with `lifelist serve`, or name it: --port, --serving.host"
            )
        elif isinstance(error, httpx.TimeoutException):
            said = f"{self.url} did not answer in time"
        elif isinstance(error, BROKEN):
            said = f"{self.url} broke the connection off: {error or type(error).__name__}"
        else:
            return Failed(f"{self.url}: {error or type(error).__name__}", None, self.id)
        return Unavailable(said, None, self.id)

    def refused(self, answer: httpx.Response) -> RequestFailed:
        """The server's error, in its own words."""
        try:
            message = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            return self._is_it_lifelist(answer)
        return of_status(answer.status_code)(str(message), answer.status_code, self._known_as(answer))

    def _is_it_lifelist(self, answer: httpx.Response) -> Failed:
        asked = f"{self.request.method} {self.request.path}"
        said = f"{self.url} answered {asked} with {answer.status_code} {answer.text[:80]!r}: is it a Lifelist server?"
        return Failed(said, answer.status_code, self._known_as(answer))

    def _known_as(self, answer: httpx.Response) -> str:
        return str(answer.headers.get("x-request-id", self.id))


def retry_after(found: Found) -> float:
    """Seconds that the answer asks to wait, by a number or a date; 0 if it does not say."""
    said = "" if isinstance(found, Exception) else found.headers.get("retry-after", "").strip()
    if said.isascii() and said.isdecimal():
        return float(said)
    try:
        date = email.utils.parsedate_to_datetime(said)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def json_object(answer: httpx.Response) -> Json:
    """The answer's JSON. ValueError if it is none, or no object."""
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


# --------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Event:
    """One event of an increment. kind: state, epoch, warning, method, step-failed, cancel-requested, ended …"""

    id: int
    kind: str
    data: Json

    @property
    def progress(self) -> Progress | None:
        """How far training is, if this is the end of an epoch."""
        names = Progress.__annotations__
        return cast(Progress, {name: self.data[name] for name in names}) if self.kind == "epoch" else None


class Lines:
    """Server-sent events out of the lines of a stream."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}

    def event(self, line: str) -> Event | None:
        """The event that this line completes, if it does."""
        name, _, value = line.partition(":")
        if name:
            self.fields[name] = value.removeprefix(" ")
        elif not line and "data" in self.fields:
            fields, self.fields = self.fields, {}
            return Event(int(fields["id"]), fields.get("event", "message"), json.loads(fields["data"]))
        return None


class Watch:
    """An increment that is followed: where a broken connection goes on, and for how long one is looked for."""

    def __init__(self, number: int, after: int, url: str, patience_s: float) -> None:
        self.path, self.after, self.url, self.patience_s = f"/v1/increments/{number}/events", after, url, patience_s
        self.progressed()

    def call(self) -> Call[None]:
        """The request of the next connection."""
        headers = {"Last-Event-ID": str(self.after), "Accept": "text/event-stream"}
        arguments = {"headers": headers, "timeout": SILENCE_S}
        return Call(Request(method="GET", path=self.path, read=lambda _: None, arguments=arguments), self.url, 0)

    def seen(self, event: Event) -> None:
        """Go on after this one."""
        self.after = event.id
        self.progressed()

    def progressed(self) -> None:
        """A connection works: patience begins anew."""
        self.deadline = time.monotonic() + self.patience_s

    def over(self) -> bool:
        """Whether patience has ended."""
        return time.monotonic() > self.deadline
