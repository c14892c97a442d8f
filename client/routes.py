"""Every route that a client uses, once: the request, and how its answer is read. Both clients send these."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

import httpx

from lifelist.client import images
from lifelist.client.answers import (
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
from lifelist.client.images import Image, OnSent
from lifelist.client.wire import Request, T, json_object
from lifelist.exporter.errors import BadInput

UPLOAD_S = 600  # seconds that an upload may take at each step: a model embeds its images before it is answered


def _asking(method: str, path: str, kind: type[T], *, repeatable: bool = False, **arguments: Any) -> Request[T]:
    """A request whose answer is JSON of that kind."""

    def read(answer: httpx.Response) -> T:
        return cast(T, json_object(answer))

    return Request(method=method, path=path, read=read, arguments=arguments, repeatable=repeatable)


def _get(path: str, kind: type[T]) -> Request[T]:
    return _asking("GET", path, kind, repeatable=True)


def classify(
    some: Sequence[Image], top_k: int | None, answer: str | None, unknown_at: float | None
) -> Request[Classified]:
    """The classes of these images, in one query."""
    asked = {"top_k": top_k, "answer": answer, "unknown_at": unknown_at}
    params = {name: value for name, value in asked.items() if value is not None}
    return _asking("POST", "/v1/classify", Classified, repeatable=True, params=params, **images.body(some))


def named(found: Classified) -> list[Named]:
    """Each image's answer, with what the query's answer says of them all."""
    return [cast(Named, {"version": found["version"], "answer": found["answer"], **one}) for one in found["images"]]


def classes() -> Request[Classes]:
    """The classes that the live version knows."""
    return _get("/v1/classes", Classes)


def versions() -> Request[Versions]:
    """All versions."""
    return _get("/v1/versions", Versions)


def version(number: int) -> Request[Version]:
    """One version."""
    return _get(f"/v1/versions/{number}", Version)


def live() -> Request[Alive]:
    """Whether the server runs."""
    return _get("/v1/health/live", Alive)


def ready() -> Request[Ready]:
    """Whether queries are answered; asked once, since the answer is about now."""
    return _asking("GET", "/v1/health/ready", Ready)


def metrics() -> Request[str]:
    """Prometheus text."""
    return Request(method="GET", path="/metrics", read=lambda answer: answer.text, repeatable=True)


def add_examples(name: str, some: Sequence[Image], on_sent: OnSent | None) -> Request[Added]:
    """Examples of a class, in one upload. Sent twice they are taken once: the server knows them by content."""
    form = {"data": {"class": name}, "files": images.parts(some, on_sent)}
    return _asking("POST", "/v1/examples", Added, repeatable=True, timeout=UPLOAD_S, **form)


def together(answers: Sequence[Added]) -> Added:
    """The answers to several uploads of one class, as if there had been one. BadInput if there was none."""
    if not answers:
        raise BadInput("there is no image to add; give at least one")
    found = answers[-1].copy()
    found["examples"] = [example for one in answers for example in one["examples"]]
    found["accepted"] = sum(one["accepted"] for one in answers)
    found["warnings"] = list(dict.fromkeys(warning for one in answers for warning in one["warnings"]))
    return found


def start_increment(classes: Sequence[str | int] | None, method: str | None, key: str | None) -> Request[Increment]:
    """An increment is started, once however often this is sent: it always has an idempotency key."""
    asked = {"classes": None if classes is None else list(classes), "method": method}
    headers = {"Idempotency-Key": uuid.uuid4().hex if key is None else key}
    return _asking("POST", "/v1/increments", Increment, repeatable=True, json=asked, headers=headers)


def increments() -> Request[list[Increment]]:
    """All increments."""

    def read(answer: httpx.Response) -> list[Increment]:
        return cast(list[Increment], json_object(answer)["increments"])

    return Request(method="GET", path="/v1/increments", read=read, repeatable=True)


def increment(number: int) -> Request[Increment]:
    """One increment."""
    return _get(f"/v1/increments/{number}", Increment)


def cancel(number: int) -> Request[Increment]:
    """An increment is asked to end; twice is the same as once."""
    return _asking("POST", f"/v1/increments/{number}:cancel", Increment, repeatable=True)


def promote(number: int, force: bool) -> Request[Moved]:
    """A version is made live."""
    return _asking("POST", f"/v1/versions/{number}:promote", Moved, json={"force": force})


def rollback() -> Request[Moved]:
    """The previous version is made live; twice is back where it was, so it is never sent again by itself."""
    return _asking("POST", "/v1/rollback", Moved)


def class_(class_id: int) -> Request[ClassDetail]:
    """All that there is to say of a class."""
    return _asking("GET", f"/v1/classes/{class_id}", ClassDetail)


def change_class(class_id: int, said: Mapping[str, Any]) -> Request[ClassDetail]:
    """Something else is said of a class; said twice it is said once, unless of an expected version."""
    again = "expected_version" not in said
    return _asking("PATCH", f"/v1/classes/{class_id}", ClassDetail, repeatable=again, json=dict(said))


def quality(asked: Mapping[str, str | int | None]) -> Request[QualityOf]:
    """How right the answers were."""
    params = {name: value for name, value in asked.items() if value is not None}
    return _asking("GET", "/v1/quality", QualityOf, repeatable=True, params=params)


def confusions(asked: Mapping[str, str | int | None]) -> Request[Confusions]:
    """Which classes are taken for which others."""
    params = {name: value for name, value in asked.items() if value is not None}
    return _asking("GET", "/v1/quality/confusions", Confusions, repeatable=True, params=params)


def bias(asked: Mapping[str, str | int | None]) -> Request[BiasOf]:
    """How often new classes are answered."""
    params = {name: value for name, value in asked.items() if value is not None}
    return _asking("GET", "/v1/quality/bias", BiasOf, repeatable=True, params=params)


def drift() -> Request[DriftTests]:
    """The latest result of each test."""
    return _get("/v1/drift", DriftTests)


def alarms() -> Request[AlarmList]:
    """What is wrong."""
    return _get("/v1/alarms", AlarmList)


def notices(after: int, limit: int) -> Request[Notices]:
    """What happened, the latest first."""
    return _asking("GET", "/v1/notices", Notices, repeatable=True, params={"after": after, "limit": limit})


def feedback(prediction_id: str, truth: str | int) -> Request[Judged]:
    """What an image really was; the last label of a prediction counts."""
    said = {"prediction_id": prediction_id, "class": truth}
    return _asking("POST", "/v1/feedback", Judged, repeatable=True, json=said)


def reviews(limit: int, why: str | None) -> Request[Reviews]:
    """The images that would help most if a person labelled them."""
    params = {"limit": limit} | ({} if why is None else {"why": why})
    return _asking("GET", "/v1/review", Reviews, repeatable=True, params=params)


def review_image(prediction_id: str) -> Request[bytes]:
    """A PNG."""
    path = f"/v1/review/{prediction_id}/image"
    return Request(method="GET", path=path, read=lambda answer: answer.content, repeatable=True)


def review(prediction_id: str, truth: str | int | None, example: bool) -> Request[Reviewed]:
    """What an image shows, or that nobody can tell. Sent twice, the second is a conflict."""
    said = {"skip": True} if truth is None else {"class": truth, "example": example}
    return _asking("POST", f"/v1/review/{prediction_id}", Reviewed, json=said)


def triggers() -> Request[Triggers]:
    """What would start an increment."""
    return _get("/v1/triggers", Triggers)


def webhooks(limit: int) -> Request[Webhooks]:
    """Webhooks, and how they were told."""
    return _asking("GET", "/v1/webhooks", Webhooks, repeatable=True, params={"limit": limit})


def test_webhooks() -> Request[WebhooksTested]:
    """A test event to each webhook."""
    return _asking("POST", "/v1/webhooks:test", WebhooksTested, timeout=UPLOAD_S)
