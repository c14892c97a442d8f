"""The update path over HTTP. Each route is a few lines around a function that knows no HTTP.

Blocking work never runs on the event loop: plain `def` routes run in threads, and POST /v1/examples, whose body is read
as it arrives, hands its work to one. Those take turns, so that two uploads do not enrol on top of each other.
"""

import asyncio
import logging
import unicodedata
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from typing import IO, Annotated, cast

import sqlalchemy as sa
from fastapi import APIRouter, FastAPI, Header, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from starlette.concurrency import run_in_threadpool

from lifelist.client.answers import Added, ClassDetail, Increment, Increments, Judged, Moved
from lifelist.deploy import (
    acting_routes,
    changes,
    dashboard,
    enrol,
    examples,
    quality_routes,
    rollout,
    stream,
    uploads,
    withdrawn,
)
from lifelist.deploy.desk import AtDesk, Desk, With
from lifelist.deploy.labelling import label
from lifelist.deploy.naming import Names, class_name, learned_as, names
from lifelist.deploy.progress import Progress
from lifelist.deploy.quality import Quality
from lifelist.deploy.records import Rollout
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import BadInput, Conflict, LifelistError, Missing, Unavailable
from lifelist.serving import auth, catalog, oip_routes, openapi
from lifelist.serving.auth import CALLER, Door, Guarded
from lifelist.serving.catalog import Catalog, Number
from lifelist.serving.errors import as_json
from lifelist.serving.keys import Guard
from lifelist.serving.numbers import natural

CATCH_UP_S, CATCH_UP_AT_MOST_S = 1.0, 30.0  # between looks for images to enrol; more after each failure
LARGEST_ID = 2**31 - 1  # of anything that is numbered here

log = logging.getLogger(__name__)


@asynccontextmanager
async def _catching_up(application: FastAPI) -> AsyncIterator[None]:
    """While the server runs, enrol what was accepted and not got to: by a killed server, or as no replica was up."""
    task = asyncio.create_task(_catch_up(application.state.desk))
    yield
    task.cancel()


routes = APIRouter(lifespan=_catching_up)

ClassRef = Annotated[StrictStr, Field(min_length=1, max_length=100)] | Annotated[StrictInt, Field(ge=0, le=LARGEST_ID)]
Key = Annotated[StrictStr, Field(min_length=1, max_length=200, json_schema_extra=openapi.NO_CONTROLS)]
EventId = Annotated[str, openapi.EVENT_ID]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClassChange(_Body):
    """What is to be said of a class. What is left out stays, but for an old name, which becomes an alias."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=100)] | None = None
    aliases: Annotated[list[StrictStr], Field(max_length=100)] | None = None
    retired: StrictBool | None = None
    merged_into: Annotated[StrictInt, Field(ge=0, le=LARGEST_ID)] | None = Field(default=None, description="null: none")
    expected_version: Annotated[StrictInt, Field(ge=1, le=LARGEST_ID)] | None = None


class StartIncrement(_Body):
    """What to learn: the named classes, or all that are pending."""

    model_config = openapi.like({"classes": ["wren", 7], "method": "bic"})

    classes: Annotated[list[ClassRef], Field(min_length=1, max_length=10_000)] | None = None
    method: StrictStr | None = None
    idempotency_key: Key | None = None


class Promotion(_Body):
    """Whether a version that the gate refused may go live all the same."""

    model_config = openapi.like({"force": True})

    force: bool = Field(default=False, strict=True)


class Truth(_Body):
    """What class the image of an earlier answer really was."""

    model_config = openapi.like({"prediction_id": openapi.PREDICTION_ID, "class": "gull"})

    prediction_id: StrictStr
    truth: ClassRef = Field(alias="class")


def app(workshop: Workshop, catalog_: Catalog, guard: Guard) -> FastAPI:
    """The whole application of the operator: these routes beside the catalog's."""
    made = catalog.app(catalog_)
    made.add_middleware(uploads.SmallBodies, options=workshop.settings.serving, but_for="/v1/examples")
    options = workshop.settings.serving
    door = Door(guard, options.requests_per_second, auth.names(options))
    made.add_middleware(Guarded, door=door)  # the last added is outermost: it is asked before a body is read
    shown = workshop.settings.serving.metric_classes
    made.state.desk = Desk(workshop, Quality(workshop.store, workshop.registry, catalog_.collectors, shown))
    catalog_.collectors.register(Progress(workshop.store, workshop.registry))
    made.state.guard = guard
    made.include_router(routes)
    made.include_router(quality_routes.routes)
    made.include_router(dashboard.routes)
    made.include_router(acting_routes.routes)
    made.add_exception_handler(sa.exc.OperationalError, _database_away)
    made.include_router(oip_routes.routes)
    return made


async def _database_away(request: Request, error: Exception) -> Response:
    """503 while the database is locked, or a disk is full. Queries, which need none, are answered all the same."""
    log.warning("database.away", extra={"facts": {"path": request.url.path, "reason": str(error.__cause__ or error)}})
    return as_json(
        request, Unavailable("the database cannot be used now: locked, full, or away; the server's log says which")
    )


async def _catch_up(desk: Desk) -> None:
    done, pause = None, CATCH_UP_S
    while True:
        try:
            seen = await run_in_threadpool(enrol.situation, desk.workshop)
            if seen != done:
                async with desk.turn:
                    await run_in_threadpool(enrol.enrol, desk.workshop)
            done, pause = seen, CATCH_UP_S
        except Exception as error:  # replicas that are not up yet, another swap, a database that is away: it goes on
            pause = min(2 * pause, CATCH_UP_AT_MOST_S)
            facts = {"reason": f"{type(error).__name__}: {error}", "again_in_s": pause}
            log.warning("enrolment.postponed", extra={"facts": facts}, exc_info=not isinstance(error, LifelistError))
        await asyncio.sleep(pause)


def number(text: str, what: str) -> int:
    """A number in a path. Missing if nothing here can have it."""
    if not (found := natural(text, LARGEST_ID)):
        raise Missing(f"no {what} has number {text[:40]!r}; they are numbered from 1")
    return found


# ---------------------------------------------------------------------------------------------------------- examples


@routes.post("/v1/examples", tags=["examples"], openapi_extra={"requestBody": uploads.REQUEST_BODY})
async def add_examples(request: Request, desk: AtDesk) -> Added:
    """Give a class images. It is answerable by nearest class mean before this returns."""
    separator = uploads.boundary(request.headers.get("content-type", ""))
    with ExitStack() as stack:
        stack.enter_context(desk.upload())
        file = stack.enter_context(await uploads.spool(request, desk.workshop.settings))
        desk.quotas.take(request.scope[CALLER], file.tell(), f"{desk.quotas.holds:,} bytes of examples a day")
        held = stack.pop_all()

    async def in_turn() -> Added:
        with held:
            async with desk.turn:
                return await run_in_threadpool(_add, desk.workshop, file, separator)

    # shielded: a client that leaves cancels this handler, while its images are added to the end, and in their turn
    return await asyncio.shield(asyncio.create_task(in_turn()))


def _add(workshop: Workshop, file: IO[bytes], separator: bytes) -> Added:
    name, images = uploads.labelled(file, separator)
    results = examples.add(workshop, name, images)
    enrol.enrol(workshop)
    live = workshop.live
    called = names(workshop, live)
    found = called.meant(class_name(name)).id
    known = called.known(next(iter(learned_as([found], live)), found))
    state = examples.state_of(live, known.id)
    return {
        "class": {"id": known.id, "name": known.name, "state": state},
        "examples": [{k: v for k, v in asdict(found).items() if v is not None} for found in results],  # type: ignore[misc]
        "accepted": sum(found.status == "accepted" for found in results),
        "version": live.version if live and state != "pending" else None,
        "warnings": examples.warnings(known, called),
    }


# ----------------------------------------------------------------------------------------------------------- classes


@routes.get("/v1/classes/{class_id:number}", tags=["classes"])
def class_(workshop: With, class_id: Number) -> ClassDetail:
    """All that there is to say of a class, and what was said of it before."""
    return changes.describe(workshop, _class_id(class_id))


@routes.patch("/v1/classes/{class_id:number}", tags=["classes"])
def change_class(workshop: With, class_id: Number, body: ClassChange) -> ClassDetail:
    """Rename a class, give it aliases, retire or restore it, merge it into another or un-merge it: at once."""
    given = body.model_dump(exclude_unset=True, exclude={"expected_version"})
    wanted = {name: value for name, value in given.items() if value is not None or name == "merged_into"}
    if not wanted:
        raise BadInput("there is nothing to change; send name, aliases, retired or merged_into")
    number = _class_id(class_id)
    changes.change(workshop, number, cast(changes.Wanted, wanted), body.expected_version)
    return changes.describe(workshop, number)


def _class_id(text: str) -> int:
    if (found := natural(text, LARGEST_ID)) is None:
        raise Missing(f"no class has id {text[:40]!r}; ids are numbers, see /v1/classes")
    return found


# -------------------------------------------------------------------------------------------------------- increments


@routes.post("/v1/increments", tags=["increments"], status_code=202, responses=openapi.LOCATION)
def start_increment(
    workshop: With,
    response: Response,
    body: StartIncrement | None = None,
    idempotency_key: Annotated[Key | None, Header()] = None,
) -> Increment:
    """Start to train on classes that got examples. The same idempotency key starts one, however often it is sent."""
    body = body or StartIncrement()
    if idempotency_key and body.idempotency_key and idempotency_key != body.idempotency_key:
        raise BadInput("the header Idempotency-Key and the field idempotency_key differ; send one of them")
    key = idempotency_key or body.idempotency_key
    if key and any(unicodedata.category(c) in ("Cc", "Cs") for c in key):
        raise BadInput(f"an idempotency key has no control characters; {key[:40]!r} has")
    return _accepted(workshop, rollout.start(workshop, body.classes, body.method, key), response)


@routes.get("/v1/increments", tags=["increments"])
def increments(workshop: With) -> Increments:
    """All increments, the oldest first."""
    called = names(workshop, workshop.live)
    return {"increments": [describe(workshop, found, called) for found in reversed(workshop.store.rollouts())]}


@routes.get("/v1/increments/{increment:number}", tags=["increments"])
def increment(workshop: With, increment: Number) -> Increment:
    """How an increment stands, step by step."""
    found = workshop.store.rollout(number(increment, "increment"))
    return describe(workshop, found, names(workshop, workshop.live))


@routes.get(
    "/v1/increments/{increment}/events", tags=["increments"], response_class=StreamingResponse, responses=openapi.EVENTS
)
def events(
    workshop: With, increment: Number, last_event_id: Annotated[EventId | None, Header()] = None
) -> StreamingResponse:
    """Server-sent events until the increment ends. `Last-Event-ID` goes on after that event."""
    found = workshop.store.rollout(number(increment, "increment"))
    following = stream.follow(workshop.store, found.id, stream.position(last_event_id))
    return StreamingResponse(following, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@routes.post("/v1/increments/{increment}:cancel", tags=["increments"], status_code=202, responses=openapi.LOCATION)
def cancel(workshop: With, increment: Number, response: Response) -> Increment:
    """Ask an increment to end; it does at its next step or epoch, and the live version stays."""
    return _accepted(workshop, workshop.store.request_cancel(number(increment, "increment")), response)


def _accepted(workshop: Workshop, found: Rollout, response: Response) -> Increment:
    response.headers["Location"] = f"/v1/increments/{found.id}"
    return describe(workshop, found, names(workshop, workshop.live))


def describe(workshop: Workshop, found: Rollout, called: Names) -> Increment:
    """An increment as JSON, its classes as they are called now. `progress`: the latest epoch, while it trains."""
    epoch = workshop.store.latest_event(found.id, "epoch") if found.state == "train" else None
    progress = ("phase", "epoch", "epochs", "images_per_second", "seconds_left")
    return {
        "id": found.id,
        "state": found.state,
        "method": found.row,
        "classes": [{"id": class_id, "name": called.known(class_id).name} for class_id in found.class_ids],
        "teacher": found.facts.get("teacher"),
        "version": found.version,
        "reason": found.reason,
        "created_at": found.created_at,
        "updated_at": found.updated_at,
        "progress": {name: epoch.data[name] for name in progress} if epoch else None,  # type: ignore[typeddict-item]
        "warnings": [event.data["message"] for event in workshop.store.events(found.id, kind="warning")],
        "steps": [
            {"state": s.state, "began": s.began_at, "ended": s.ended_at, "attempts": s.attempts, "facts": dict(s.facts)}
            for s in workshop.store.steps(found.id)
        ],
    }


# ---------------------------------------------------------------------------------------------------------- versions


@routes.post("/v1/versions/{version}:promote", tags=["versions"])
def promote(workshop: With, version: Number, body: Promotion | None = None) -> Moved:
    """Make a version live on every replica. One that the gate refused needs `force`."""
    manifest = workshop.registry.manifest(number(version, "version"))
    failed = [check.message for check in manifest.gate if not check.passed]
    if failed and not (body and body.force):
        raise Conflict(f"the gate refused version {version}: {'; '.join(failed)}. Send force: true to promote it still")
    return _live(workshop, manifest.version)


@routes.post("/v1/rollback", tags=["versions"])
def rollback(workshop: With) -> Moved:
    """Make the previous version live again; a second time is back where it was."""
    previous = workshop.registry.ref("previous")
    if previous is None:
        raise Conflict("there is no previous version to go back to: no other has been live")
    return _live(workshop, previous.version)


def _live(workshop: Workshop, version: int) -> Moved:
    withdrawn.make_live(workshop, version)
    live, previous = workshop.registry.ref("live"), workshop.registry.ref("previous")
    assert live is not None
    earlier = None if previous is None else previous.version
    return {"live": live.version, "previous": earlier, "generation": live.generation}


# ---------------------------------------------------------------------------------------------------------- feedback


@routes.post("/v1/feedback", tags=["feedback"])
def give_feedback(desk: AtDesk, body: Truth) -> Judged:
    """Say what an image really was: it counts for the version that answered, whatever is live now."""
    return label(desk, body.prediction_id, body.truth)
