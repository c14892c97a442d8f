"""What there is to know about a server: its classes and versions, its health, its metrics, its documentation."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, cast

import anyio
import swagger_ui_bundle
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lifelist.client.answers import (
    Alive,
    Classes,
    KnownClass,
    NotReady,
    Ready,
    ReplicaStatus,
    Version,
    VersionRow,
    Versions,
)
from lifelist.exporter.errors import BadInput, LifelistError, Missing, Unavailable
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Ref, Registry
from lifelist.serving import openapi
from lifelist.serving.errors import HANDLERS
from lifelist.serving.metrics import Merged
from lifelist.serving.numbers import natural
from lifelist.serving.options import ServingOptions
from lifelist.serving.replicas import Replicas
from lifelist.serving.repository import Repository

ASSETS = {  # of the documentation page; nothing of it comes from the internet
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Lifelist</title>
<link rel="stylesheet" href="docs/swagger-ui.css"><link rel="icon" href="docs/favicon-32x32.png"></head>
<body><div id="ui"></div><script src="docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "openapi.json", dom_id: "#ui", deepLinking: true})</script></body>
</html>
"""

routes = APIRouter()


class Catalog:
    """What the routes read. `nonce` tells this server from any other; `collectors` holds this process's own metrics."""

    def __init__(self, registry: Registry, replicas: Replicas, options: ServingOptions, nonce: str) -> None:
        self.registry, self.replicas, self.options, self.nonce = registry, replicas, options, nonce
        self.repository = Repository(registry, replicas, options)
        self.collectors = CollectorRegistry()
        self.reporting = Gauge(
            "lifelist_replicas_reporting", "Replicas whose metrics are on this page.", registry=self.collectors
        )

    def live(self) -> tuple[Ref, Manifest]:
        """What is live. Unavailable if nothing is."""
        ref = self.registry.ref("live")
        if ref is None:
            raise Unavailable("no version is live; make one: lifelist base DATA")
        return ref, self.registry.manifest(ref.version)


def app(catalog: Catalog) -> FastAPI:
    """An application with these routes, to which others may be added; each error of any of them is JSON."""
    made = FastAPI(
        title="Lifelist",
        description="An image classifier that learns new classes while it serves.",
        version=installed_version("lifelist"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        dependencies=[Depends(known_parameters)],
        exception_handlers=HANDLERS,
    )
    made.add_middleware(Heads)
    made.state.catalog = catalog
    made.include_router(routes)
    return made


class Heads:
    """ASGI middleware: HEAD is answered wherever GET is, by the same head and no body (RFC 9110 §9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def head_alone(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})
                answering.cancel()  # a stream of events would be told to nobody

        with anyio.CancelScope() as answering:
            await self.app({**scope, "method": "GET"}, receive, head_alone)


async def known_parameters(request: Request) -> None:
    """BadInput for a query parameter that the route does not declare, or that is given twice."""
    route = request.scope["route"].dependant
    known = [parameter.alias for part in (route, *route.dependencies) for parameter in part.query_params]
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else f"{request.method} {request.url.path[:80]} has none"
            raise BadInput(f"there is no parameter {name[:80]!r}; {there}")
        if given.count(name) > 1:
            raise BadInput(f"the parameter {name} is given twice; once is enough")


def the_catalog(request: Request) -> Catalog:
    """What the routes read here."""
    found: Catalog = request.app.state.catalog
    return found


With = Annotated[Catalog, Depends(the_catalog)]
Number = Annotated[str, openapi.NUMBER]


class _BeforeColon(StringConvertor):
    """The part of a path that a number is in: what follows a colon is another route, as in /v1/versions/7:promote."""

    regex = "[^/:]+"


register_url_convertor("number", _BeforeColon())


@routes.get("/v1/classes", tags=["catalog"])
def classes(catalog: With) -> Classes:
    """The classes that the live version knows, in order of arrival; retired and merged ones say so.

    `former`: of which it has neither a row nor a mean any more.
    """
    _, manifest = catalog.live()
    known, former = (sorted(found, key=lambda entry: entry.id) for found in (manifest.classes, manifest.former))
    return {
        "version": manifest.version,
        "classes": [cast(KnownClass, asdict(entry)) for entry in known],
        "former": [cast(KnownClass, asdict(entry)) for entry in former],
    }


@routes.get("/v1/versions", tags=["catalog"])
def versions(catalog: With) -> Versions:
    """All versions, oldest first, and which of them is live and which was before."""
    live, previous = catalog.registry.ref("live"), catalog.registry.ref("previous")
    rows: list[VersionRow] = []
    for number in catalog.registry.versions():
        manifest = catalog.registry.manifest(number)
        rows.append(
            {
                "version": number,
                "created_at": manifest.created_at,
                "kind": manifest.kind,
                "parent": manifest.parent,
                "method": manifest.method,
                "classes": len(manifest.answerable),
                "passed": manifest.passed,
            }
        )
    return {
        "live": None if live is None else live.version,
        "previous": None if previous is None else previous.version,
        "versions": rows,
    }


@routes.get("/v1/versions/{version:number}", tags=["catalog"])
def version(catalog: With, version: Number) -> Version:
    """All that a version says of itself."""
    if not (number := natural(version, 2**31 - 1)):
        raise Missing(f"no version has number {version[:40]!r}; they are numbered from 1")
    return cast(Version, asdict(catalog.registry.manifest(number)))


@routes.get("/v1/health/live", tags=["health"])
async def live(catalog: With) -> Alive:
    """Whether the server runs at all. `server` is different at each start."""
    return {"live": True, "server": catalog.nonce}


@routes.get("/v1/health/ready", tags=["health"], response_model=Ready, responses={503: {"model": NotReady}})
async def ready(catalog: With) -> Ready | JSONResponse:
    """Whether queries are answered: 200 as soon as one replica does, 503 until then."""
    try:
        ref, _ = await run_in_threadpool(catalog.live)
        replicas = await catalog.replicas.status()
        if not replicas:
            raise Unavailable("no replica answers")
    except LifelistError as error:
        return JSONResponse({"ready": False, "error": str(error)}, 503, {"Retry-After": "1"})
    return {
        "ready": True,
        "version": ref.version,
        "provider": replicas[0].provider,
        "server": catalog.nonce,
        "replicas": [cast(ReplicaStatus, asdict(one)) for one in sorted(replicas, key=lambda found: found.replica)],
    }


@routes.get("/metrics", tags=["health"], response_class=Response, responses=openapi.METRICS)
async def metrics(catalog: With) -> Response:
    """Prometheus text: the counts of every replica, told apart by the label `replica`."""
    try:
        snapshots = await catalog.replicas.metrics()
    except Unavailable:
        snapshots = {}  # the page says so: lifelist_replicas_reporting 0
    catalog.reporting.set(len(snapshots))
    together = CollectorRegistry()
    together.register(Merged(snapshots))
    text = await run_in_threadpool(lambda: generate_latest(together) + generate_latest(catalog.collectors))
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@routes.get("/docs", include_in_schema=False)
async def documentation() -> HTMLResponse:
    """The documentation of all routes, to read and to try."""
    return HTMLResponse(PAGE)


@routes.get("/docs/{name}", include_in_schema=False)
async def asset(name: str) -> FileResponse:
    """A file of the documentation page."""
    if name not in ASSETS:
        raise Missing(f"there is no /docs/{name[:80]}; see /docs")
    return FileResponse(Path(swagger_ui_bundle.swagger_ui_path) / name, media_type=ASSETS[name])


@routes.get("/openapi.json", include_in_schema=False)
async def schema(request: Request, catalog: With) -> Mapping[str, Any]:
    """All routes, those of the other deployment included."""
    application: FastAPI = request.app
    if application.openapi_schema is None:
        made = get_openapi(
            title=application.title,
            version=application.version,
            description=application.description,
            openapi_version="3.0.3",  # what the documentation page reads
            routes=application.routes,
        )
        application.openapi_schema = openapi.complete(made, catalog.options)
    return application.openapi_schema
