"""What the command line and the demo say to a server, over HTTP. Every failure is one of ours, in one sentence."""

import json
import mimetypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import httpx

from lifelist.deploy.answers import ENDED, Added, ClassDetail, Classified, Increment, Json, Judged, Moved
from lifelist.deploy.settings import Settings
from lifelist.exporter.errors import (
    BadInput,
    Conflict,
    Failed,
    LifelistError,
    Missing,
    Overloaded,
    TooLarge,
    Unavailable,
)

File = Path | tuple[str, bytes]  # an image on disk, or its name and its bytes

_ERRORS: dict[int, type[LifelistError]] = {
    400: BadInput,
    404: Missing,
    405: BadInput,
    409: Conflict,
    413: TooLarge,
    415: BadInput,
    422: BadInput,
    429: Overloaded,
    503: Unavailable,
}


def url_of(settings: Settings) -> str:
    """Where a server with these settings listens, as a client beside it reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.serving.host, settings.serving.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.serving.port}"


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event of an increment."""

    id: int
    kind: str
    data: Json


class Client:
    """A connection to one server. Use it in a `with` statement, from one thread.

    Raises what the server would have raised: BadInput, Missing, Conflict …; Unavailable where nobody answers.
    """

    def __init__(self, url: str, timeout_s: float = 60) -> None:
        self.url = url.rstrip("/")
        # trust_env off: a proxy for the internet, set in the environment, must not get requests to this machine
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # ------------------------------------------------------------------------------------------------ queries

    def classify(self, images: Sequence[File], top_k: int | None = None, answer: str | None = None) -> Classified:
        """The classes of each image, best first; one version answers them all."""
        query = {"top_k": top_k, "answer": answer}
        return cast(
            Classified,
            self._json(
                "POST",
                "/v1/classify",
                params={name: value for name, value in query.items() if value is not None},
                files=[_part(image, None) for image in images],
            ),
        )

    def classes(self) -> Json:
        """Every class that the live version knows."""
        return self._json("GET", "/v1/classes")

    def versions(self) -> Json:
        """Every version, and which is live."""
        return self._json("GET", "/v1/versions")

    def version(self, number: int) -> Json:
        """What a version says of itself."""
        return self._json("GET", f"/v1/versions/{number}")

    def ready(self) -> bool:
        """Whether a server is there and has a version that answers."""
        try:
            self._json("GET", "/v1/health/ready")
        except Unavailable:
            return False
        return True

    def metrics(self) -> str:
        """Prometheus text."""
        return self._answered("GET", "/metrics").text

    # ------------------------------------------------------------------------------------------------ updates

    def add_examples(
        self, name: str, images: Sequence[File], on_sent: Callable[[int], None] | None = None, timeout_s: float = 600
    ) -> Added:
        """Give a class examples, in one request. `on_sent(bytes)` is called as each image leaves."""
        found = self._json(
            "POST",
            "/v1/examples",
            data={"class": name},
            files=[_part(image, on_sent) for image in images],
            timeout=timeout_s,
        )
        return cast(Added, found)

    def start_increment(
        self, classes: Sequence[str | int] | None = None, method: str | None = None, key: str | None = None
    ) -> Increment:
        """Start learning the named classes, or all that are pending; the same key starts it once."""
        found = self._json(
            "POST",
            "/v1/increments",
            json={"classes": None if classes is None else list(classes), "method": method},
            headers={} if key is None else {"Idempotency-Key": key},
        )
        return cast(Increment, found)

    def increments(self) -> list[Increment]:
        """Every increment, the oldest first."""
        return cast(list[Increment], self._json("GET", "/v1/increments")["increments"])

    def increment(self, number: int) -> Increment:
        """How an increment stands."""
        return cast(Increment, self._json("GET", f"/v1/increments/{number}"))

    def cancel(self, number: int) -> Increment:
        """Ask an increment to end; it does at its next step or epoch."""
        return cast(Increment, self._json("POST", f"/v1/increments/{number}:cancel"))

    def events(self, number: int, after: int = 0, patience_s: float = 120) -> Iterator[Event]:
        """The events of an increment after the given one, as they come, until it ends.

        A connection that breaks is taken up again where it broke; Unavailable when none works for `patience_s`, and at
        once if the first does not.
        """
        self.increment(number)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                for event in self._stream(number, after):
                    after = event.id
                    deadline = time.monotonic() + patience_s
                    yield event
                if self.increment(number)["state"] in ENDED:
                    return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def promote(self, number: int, force: bool = False) -> Moved:
        """Make a version live; one that the gate refused only by force."""
        return cast(Moved, self._json("POST", f"/v1/versions/{number}:promote", json={"force": force}))

    def rollback(self) -> Moved:
        """Make the previous version live again."""
        return cast(Moved, self._json("POST", "/v1/rollback"))

    def class_(self, class_id: int) -> ClassDetail:
        """All that there is to say of a class."""
        return cast(ClassDetail, self._json("GET", f"/v1/classes/{class_id}"))

    def change_class(self, class_id: int, **said: Any) -> ClassDetail:
        """Say something else of a class: name, aliases, retired, merged_into; expected_version, to be sure of live."""
        return cast(ClassDetail, self._json("PATCH", f"/v1/classes/{class_id}", json=said))

    def feedback(self, prediction_id: str, truth: str | int) -> Judged:
        """Say what class the image of an earlier answer really was."""
        return cast(Judged, self._json("POST", "/v1/feedback", json={"prediction_id": prediction_id, "class": truth}))

    # -------------------------------------------------------------------------------------------------- wires

    def _json(self, method: str, path: str, **request: Any) -> Json:
        answer = self._answered(method, path, **request)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Failed(f"{self.url} answered {method} {path} with {answer.text[:80]!r}: is it a Lifelist server?")
        return found

    def _answered(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._nobody(error) from error
        if answer.is_success:
            return answer
        raise self._error(answer)

    def _stream(self, number: int, after: int) -> Iterator[Event]:
        """The events of one connection. The server sends a comment when nothing happens, so silence is a fault."""
        headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
        try:
            with self._http.stream("GET", f"/v1/increments/{number}/events", headers=headers, timeout=45) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._error(answer)
                fields: dict[str, str] = {}
                for line in answer.iter_lines():
                    name, _, value = line.partition(":")
                    if name:
                        fields[name] = value.removeprefix(" ")
                    elif "data" in fields:
                        yield Event(int(fields["id"]), fields.get("event", "message"), json.loads(fields["data"]))
                        fields = {}
        except httpx.TransportError as error:
            raise self._nobody(error) from error

    def _nobody(self, error: httpx.TransportError) -> Unavailable:
        if isinstance(error, httpx.ConnectError):
            return Unavailable(
                f"no server answers at {self.url}. Start one with `lifelist serve`, or name it: --port, --serving.host"
            )
        if isinstance(error, httpx.TimeoutException):
            return Unavailable(f"{self.url} did not answer in time")
        return Unavailable(f"{self.url} broke the connection off: {error or type(error).__name__}")

    def _error(self, answer: httpx.Response) -> LifelistError:
        try:
            message = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            return Failed(f"{self.url} answered {answer.status_code}: {answer.text[:80]!r}. Is it a Lifelist server?")
        return _ERRORS.get(answer.status_code, Failed)(message)


class _Sending:
    """An image as httpx reads one: opened when its turn comes, so that a thousand do not need a thousand handles."""

    def __init__(self, image: File, on_sent: Callable[[int], None] | None) -> None:
        self.image, self.on_sent, self.sent = image, on_sent, False
        self.size = image.stat().st_size if isinstance(image, Path) else len(image[1])

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.sent = False
        return self.size if whence == os.SEEK_END else offset

    def read(self, _: int = -1) -> bytes:
        if self.sent:
            return b""
        self.sent = True
        data = self.image.read_bytes() if isinstance(self.image, Path) else self.image[1]
        if self.on_sent is not None:
            self.on_sent(len(data))
        return data


def _part(image: File, on_sent: Callable[[int], None] | None) -> tuple[str, tuple[str, IO[bytes], str]]:
    name = image.name if isinstance(image, Path) else image[0]
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return "images", (name, cast(IO[bytes], _Sending(image, on_sent)), kind)
