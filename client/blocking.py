"""The client that waits for each answer. lifelist/client/asynchronous.py has the same methods, to be awaited."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from lifelist.client import routes, wire
from lifelist.client.answers import (
    ENDED,
    Added,
    AlarmList,
    Alive,
    BiasOf,
    ClassDetail,
    Classes,
    Classified,
    Confusions,
    DriftTests,
    Increment,
    Judged,
    Moved,
    Named,
    Notices,
    QualityOf,
    Ready,
    Reviewed,
    Reviews,
    Triggers,
    Version,
    Versions,
    Webhooks,
    WebhooksTested,
)
from lifelist.client.errors import Unavailable
from lifelist.client.images import QUERY_BYTES, UPLOAD_BYTES, Images, OnSent, batches, each, labelled, unfolded
from lifelist.client.wire import Call, Event, Found, Lines, Request, T, Watch


class Client:
    """A connection to one server. Use it in a `with` statement, from as many threads as you like.

    url         of the server
    api_key     unless given, that of LIFELIST_API_KEY in the environment; none is needed on loopback
    timeout_s   for the server to answer, or to go on answering
    patience_s  in which a request is sent again after 429, 503 or a broken connection, if sending it twice does what
                sending it once does; 0: never
    transport   how httpx reaches the server, if not directly: httpx.HTTPTransport(proxy=…, verify=…)

    Every failure is a `lifelist.client.errors.RequestFailed`, with the server's sentence, the status and the request's
    id; BadInput, too, for what can be seen to be wrong before it is sent.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60,
        patience_s: float = 30,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url, self.patience_s = url.rstrip("/"), patience_s
        self._http = httpx.Client(transport=transport, **wire.options(url, timeout_s, api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ------------------------------------------------------------------------------------------------ queries

    def classify(
        self,
        images: Images,
        top_k: int | None = None,
        answer: str | None = None,
        *,
        unknown_at: float | None = None,
    ) -> Classified:
        """The classes of each image, best first; one query, and one version answers it.

        images: one or many of: a path, bytes, (name, bytes), uint8 pixels H×W×3, a PIL image; or pixels N×H×W×3.
        answer: "linear" or "nearest_mean"; unless given, what the live version says.
        unknown_at: share of known images that may be called unknown, so that those of no known class are.
        """
        return self._send(routes.classify(list(each(images)), top_k, answer, unknown_at))

    def classify_many(
        self,
        images: Images,
        top_k: int | None = None,
        answer: str | None = None,
        *,
        unknown_at: float | None = None,
        batch: int = 64,
        batch_bytes: int = QUERY_BYTES,
    ) -> Iterator[Named]:
        """The classes of any number of images, in order, each with the version that answered.

        At most `batch` images, and about `batch_bytes`, go in one query.
        """
        for some in batches(images, batch, batch_bytes):
            yield from routes.named(self._send(routes.classify(some, top_k, answer, unknown_at)))

    def classes(self) -> Classes:
        """Every class that the live version knows."""
        return self._send(routes.classes())

    def versions(self) -> Versions:
        """Every version, and which is live."""
        return self._send(routes.versions())

    def version(self, number: int) -> Version:
        """What a version says of itself."""
        return self._send(routes.version(number))

    def live(self) -> Alive:
        """That the server runs; Unavailable if it does not."""
        return self._send(routes.live())

    def health(self) -> Ready:
        """What answers queries, and where; Unavailable, with the reason, if nothing does."""
        return self._send(routes.ready())

    def ready(self) -> bool:
        """Whether a server is there and has a version that answers."""
        try:
            self.health()
        except Unavailable:
            return False
        return True

    def metrics(self) -> str:
        """Prometheus text."""
        return self._send(routes.metrics())

    # ------------------------------------------------------------------------------------------------ updates

    def add_examples(
        self,
        name: str,
        images: Images,
        on_sent: OnSent | None = None,
        *,
        batch: int = 1000,
        batch_bytes: int = UPLOAD_BYTES,
    ) -> Added:
        """Give a class examples: what became of each. A path may be a folder.

        At most `batch` images, and about `batch_bytes`, go in one upload. Images that are there already are reported as
        duplicates. `on_sent(bytes)` is called as each image leaves.
        """
        found = [
            self._send(routes.add_examples(name, some, on_sent))
            for some in batches(unfolded(images), batch, batch_bytes)
        ]
        return routes.together(found)

    def add_folder(self, folder: str | Path, on_sent: OnSent | None = None) -> list[Added]:
        """Give the classes that a folder has folders of their images, or that a folder of images is named after."""
        return [self.add_examples(name, files, on_sent) for name, files in labelled([Path(folder)]).items()]

    def start_increment(
        self, classes: Sequence[str | int] | None = None, method: str | None = None, key: str | None = None
    ) -> Increment:
        """Start learning the named classes, or all that are pending; the same key starts it once."""
        return self._send(routes.start_increment(classes, method, key))

    def increments(self) -> list[Increment]:
        """Every increment, the oldest first."""
        return self._send(routes.increments())

    def increment(self, number: int) -> Increment:
        """How an increment stands."""
        return self._send(routes.increment(number))

    def cancel(self, number: int) -> Increment:
        """Ask an increment to end; it does at its next step or epoch."""
        return self._send(routes.cancel(number))

    def wait(self, number: int, on_event: Callable[[Event], object] | None = None) -> Increment:
        """The increment once it has ended, however it did; `on_event` is called with each of its events."""
        for event in self.events(number):
            if on_event is not None:
                on_event(event)
        return self.increment(number)

    def events(self, number: int, after: int = 0, patience_s: float = 120) -> Iterator[Event]:
        """The events of an increment after the given one, as they come, until it ends.

        A connection that breaks is taken up again where it broke; Unavailable when none works for `patience_s`, and at
        once if the first does not.
        """
        self.increment(number)
        watch = Watch(number, after, self.url, patience_s)
        while True:
            try:
                for event in self._stream(watch.call()):
                    watch.seen(event)
                    yield event
                if self.increment(number)["state"] in ENDED:
                    return
            except Unavailable:
                if watch.over():
                    raise
            time.sleep(wire.RECONNECT_S)

    def promote(self, number: int, force: bool = False) -> Moved:
        """Make a version live; one that the gate refused only by force."""
        return self._send(routes.promote(number, force))

    def rollback(self) -> Moved:
        """Make the previous version live again."""
        return self._send(routes.rollback())

    def class_(self, class_id: int) -> ClassDetail:
        """All that there is to say of a class, its history too."""
        return self._send(routes.class_(class_id))

    def change_class(self, class_id: int, **said: Any) -> ClassDetail:
        """Say something else of a class: name, aliases, retired, merged_into; expected_version, to be sure of live."""
        return self._send(routes.change_class(class_id, said))

    def quality(
        self,
        since: str | None = None,
        until: str | None = None,
        *,
        group: str | None = None,
        source: str | None = None,
        version: int | None = None,
    ) -> QualityOf:
        """How right the answers of a time were, each figure with its interval. since, until: RFC 3339, or "24h" ago.

        group: all, old, new, unseen or class; source: feedback, audit, probe or estimated; unless given, all but class.
        """
        asked = {"since": since, "until": until, "group": group, "source": source, "version": version}
        return self._send(routes.quality(asked))

    def confusions(
        self,
        since: str | None = None,
        until: str | None = None,
        *,
        source: str | None = None,
        version: int | None = None,
        limit: int | None = None,
    ) -> Confusions:
        """Which classes a version, live unless given, takes for which others, most images first.

        source: probe, unless given, or feedback. limit: pairs, 50 unless given.
        """
        asked = {"since": since, "until": until, "source": source, "version": version, "limit": limit}
        return self._send(routes.confusions(asked))

    def bias(self, since: str | None = None, until: str | None = None, *, version: int | None = None) -> BiasOf:
        """How often a version, live unless given, answers new classes, beside how often they are shown."""
        return self._send(routes.bias({"since": since, "until": until, "version": version}))

    def drift(self) -> DriftTests:
        """The latest result of each test for drift, of the live version."""
        return self._send(routes.drift())

    def alarms(self) -> AlarmList:
        """What is wrong now, and what was."""
        return self._send(routes.alarms())

    def notices(self, after: int = 0, limit: int = 100) -> Notices:
        """What happened, the latest first; after: only those with a larger id."""
        return self._send(routes.notices(after, limit))

    def feedback(self, prediction_id: str, truth: str | int) -> Judged:
        """Say what class the image of an earlier answer really was."""
        return self._send(routes.feedback(prediction_id, truth))

    def reviews(self, limit: int = 50, why: str | None = None) -> Reviews:
        """The images that would help most if a person labelled them; why: unknown, disagree or margin; None: any."""
        return self._send(routes.reviews(limit, why))

    def review_image(self, prediction_id: str) -> bytes:
        """The PNG of one of them, as the model saw it."""
        return self._send(routes.review_image(prediction_id))

    def review(self, prediction_id: str, truth: str | int | None, example: bool = False) -> Reviewed:
        """Say what class one of them shows; None: nobody can tell. example: make it an example of that class, too."""
        return self._send(routes.review(prediction_id, truth, example))

    def triggers(self) -> Triggers:
        """What would start an increment now, and what would have in the last week."""
        return self._send(routes.triggers())

    def webhooks(self, limit: int = 50) -> Webhooks:
        """The webhooks, how far each has been told, and the latest attempts."""
        return self._send(routes.webhooks(limit))

    def test_webhooks(self) -> WebhooksTested:
        """Send a test event to each webhook: what came back."""
        return self._send(routes.test_webhooks())

    # ------------------------------------------------------------------------------------------------ sending

    def _send(self, request: Request[T]) -> T:
        call = Call(request, self.url, self.patience_s)
        while True:
            found: Found
            try:
                found = self._http.request(**call.arguments)
            except httpx.RequestError as error:
                found = error
            if (pause := call.pause(found)) is None:
                return call.result(found)
            time.sleep(pause)

    def _stream(self, call: Call[None]) -> Iterator[Event]:
        """The events of one connection."""
        lines = Lines()
        try:
            with self._http.stream(**call.arguments) as answer:
                if not answer.is_success:
                    answer.read()
                call.result(answer)
                for line in answer.iter_lines():
                    if (event := lines.event(line)) is not None:
                        yield event
        except httpx.RequestError as error:
            raise call.unanswered(error) from error
