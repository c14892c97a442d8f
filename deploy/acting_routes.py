"""What follows from watching, over HTTP: images to label, what would start an increment, webhooks."""

import time
from typing import Annotated, Any, Literal, cast

import sqlalchemy as sa
from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from starlette.concurrency import run_in_threadpool

from lifelist.client.answers import (
    DeliveryRow,
    Reviewed,
    ReviewedExample,
    ReviewImage,
    Reviews,
    Triggers,
    Webhooks,
    WebhooksTested,
)
from lifelist.deploy import enrol, examples, triggers
from lifelist.deploy.desk import AtDesk, Desk, With
from lifelist.deploy.labelling import label
from lifelist.deploy.naming import Names, class_name, names
from lifelist.deploy.watch import queue
from lifelist.exporter.errors import BadInput, Conflict, Missing
from lifelist.monitoring import feedback, tables, times, webhooks
from lifelist.monitoring.review import Kept
from lifelist.serving import openapi

routes = APIRouter()

LARGEST = 2**31 - 1

ClassRef = Annotated[StrictStr, Field(min_length=1, max_length=100)] | Annotated[StrictInt, Field(ge=0, le=LARGEST)]
PredictionId = Annotated[str, Path(max_length=400)]


class Verdict(BaseModel):
    """What an image that was kept for review shows: a class, by name or id; or `skip`, if nobody can tell."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"class": "gull", "example": False}})

    truth: ClassRef | None = Field(default=None, alias="class")
    example: StrictBool = Field(default=False, description="make the image an example of that class, too")
    skip: StrictBool = False


# ------------------------------------------------------------------------------------------------------------- review


@routes.get("/v1/review", tags=["review"])
def review(
    desk: AtDesk,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    why: Literal["unknown", "disagree", "margin"] | None = None,
) -> Reviews:
    """The images that would help most if a person labelled them, those of most use first."""
    workshop = desk.workshop
    kept, called = queue(workshop.settings, workshop), names(workshop, workshop.live)
    return {
        "keeps_images": workshop.settings.review.keep_images,
        "most": workshop.settings.review.images,
        **kept.counts(),  # type: ignore[typeddict-item]
        "images": [_described(one, called) for one in kept.waiting(limit, why)],
    }


@routes.get("/v1/review/{prediction_id}/image", tags=["review"], response_class=Response, responses=openapi.PNG)
def review_image(desk: AtDesk, prediction_id: PredictionId) -> Response:
    """An image that is kept for review, as the model saw it."""
    data = queue(desk.workshop.settings, desk.workshop).image(prediction_id)
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'"}
    return Response(data, media_type="image/png", headers=headers)


@routes.post("/v1/review/{prediction_id}", tags=["review"])
async def judge(desk: AtDesk, prediction_id: PredictionId, body: Verdict) -> Reviewed:
    """Say what an image shows: feedback for its answer, and an example of the class if wanted; or skip it.

    The image is deleted then; as an example, it is kept as examples are.
    """
    if body.skip == (body.truth is not None):
        raise BadInput("send class, its name or id; or skip: true, if nobody can tell")
    if body.skip and body.example:
        raise BadInput("an image that is skipped is no example of any class; send its class")
    if not body.example:
        return await run_in_threadpool(_judged, desk, prediction_id, body)
    async with desk.turn:  # as all who add examples
        return await run_in_threadpool(_judged, desk, prediction_id, body)


def _judged(desk: Desk, prediction_id: str, body: Verdict) -> Reviewed:
    workshop = desk.workshop
    kept = queue(workshop.settings, workshop)
    found = kept.one(prediction_id)
    at = time.time()
    if body.truth is None:
        kept.judged(prediction_id, "skipped", None, at)
        return {"prediction_id": prediction_id, "state": "skipped", "judged": None, "example": None}
    example = _example(desk, kept.images.get(found.sha256), body.truth) if body.example else None
    judged = label(desk, prediction_id, body.truth, feedback.REVIEW)
    kept.judged(prediction_id, "labelled", judged["truth"]["id"], at)
    return {"prediction_id": prediction_id, "state": "labelled", "judged": judged, "example": example}


def _example(desk: Desk, data: bytes, truth: str | int) -> ReviewedExample:
    """Make an image an example of a class, which may be a new one if it is named. Conflict if it cannot be one."""
    workshop = desk.workshop
    called = names(workshop, workshop.live)
    try:
        name = called.meant(truth).name
    except Missing:
        if not isinstance(truth, str):
            raise
        name = class_name(truth)
    (result,) = examples.add(workshop, name, [("review.png", data)])
    if result.status == "refused":
        raise Conflict(f"the image cannot be an example of class {name!r}: {result.reason}; send example: false")
    enrol.enrol(workshop)
    return {"sha256": result.sha256, "status": result.status, "role": result.role}


def _described(one: Kept, called: Names) -> ReviewImage:
    def named(class_id: int) -> dict[str, Any]:
        known = called.known(class_id)
        return {"id": known.id, "name": known.name}

    def is_known(class_id: int) -> bool:
        return class_id in called.said or class_id in called.registered

    suggested = [(class_id, probability) for class_id, probability in one.suggestions if is_known(class_id)]
    described = {
        "prediction_id": one.prediction_id,
        "at": one.at,
        "version": one.version,
        "answer": one.answer,
        "predicted": named(one.predicted)
        if is_known(one.predicted)
        else {"id": one.predicted, "name": str(one.predicted)},
        "why": list(one.why),
        "use": round(one.use, 6),
        "margin": None if one.margin is None else round(one.margin, 6),
        "unknown_score": None if one.unknown is None else round(one.unknown, 6),
        "suggestions": [named(class_id) | {"probability": probability} for class_id, probability in suggested],
        "image": f"/v1/review/{one.prediction_id}/image",
    }
    return cast(ReviewImage, described)


# ----------------------------------------------------------------------------------------------------------- triggers


@routes.get("/v1/triggers", tags=["triggers"])
def triggers_of(workshop: With) -> Triggers:
    """What would start an increment now, and what would have in the last week: a dry run; nothing is started."""
    return triggers.shown(workshop, workshop.settings.triggers, time.time())


# ----------------------------------------------------------------------------------------------------------- webhooks


@routes.get("/v1/webhooks", tags=["webhooks"])
def hooks(workshop: With, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> Webhooks:
    """The webhooks in the settings, how far each has been told, and the latest attempts, the latest first."""
    c, n = tables.webhooks.c, tables.notices.c
    found = []
    with workshop.store.reading() as connection:
        for hook in workshop.settings.webhooks:
            row = connection.execute(sa.select(tables.webhooks).where(c.url == hook.url)).first()
            those = [n.kind.in_(hook.kinds)] if hook.kinds else []
            waits = sa.select(sa.func.count()).where(n.id > (row.position if row else LARGEST), *those)
            found.append(
                {
                    "url": hook.shown,
                    "kinds": list(hook.kinds),
                    "waiting": int(connection.execute(waits).scalar_one()),
                    "failed_attempts": row.attempts if row else 0,
                    "next_at": times.text(row.next_at) if row and row.attempts else None,
                }
            )
    return cast(Webhooks, {"webhooks": found, "deliveries": [_row(one) for one in webhooks.log(workshop.store, limit)]})


@routes.post("/v1/webhooks:test", tags=["webhooks"])
def test_hooks(workshop: With) -> WebhooksTested:
    """Send a test event to each webhook in the settings, once: what came back."""
    settings = workshop.settings
    if not settings.webhooks:
        raise Conflict("there is no webhook in the settings; see webhooks in docs/settings.md")
    return {"deliveries": [_row(one) for one in webhooks.test(settings.webhooks, settings.url)]}


def _row(one: webhooks.Delivery) -> DeliveryRow:
    return cast(DeliveryRow, {name: getattr(one, name) for name in webhooks.Delivery.__slots__})
