"""The page at /dashboard: its files, which are part of this package, and what it asks beside the other routes."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from lifelist.client.answers import Caller, Exemplars
from lifelist.deploy import thumbnails
from lifelist.deploy.desk import With
from lifelist.exporter.errors import BadKey, Missing
from lifelist.serving import openapi
from lifelist.serving.auth import presented
from lifelist.serving.catalog import Number
from lifelist.serving.keys import ROLES, Guard
from lifelist.serving.numbers import natural

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
PAGE = "index.html"
# Nothing but our own files runs or is loaded; `blob:` is for thumbnails, which are fetched with a key.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked again each time, and answered 304: a page never runs with parts of another
}
THUMBNAILS_FOR_S = 3600  # seconds that a browser may show them without asking: an image may be deleted
LARGEST_ID = 2**31 - 1

routes = APIRouter()


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page."""

    content: bytes
    kind: str
    tag: str


@cache
def assets() -> dict[str, Asset]:
    """All files of the page, by name."""
    found = {}
    for file in (files("lifelist.deploy") / "page").iterdir():
        content = file.read_bytes()
        kind = KINDS[file.name.rpartition(".")[2]]
        found[file.name] = Asset(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def _answer(name: str, if_none_match: str | None) -> Response:
    if (asset := assets().get(name)) is None:
        raise Missing(f"there is no /dashboard/{name[:80]}; see /dashboard")
    headers = HEADERS | {"ETag": asset.tag}
    if if_none_match == asset.tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.kind)


@routes.get("/dashboard", include_in_schema=False)
async def page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """The page."""
    return _answer(PAGE, if_none_match)


@routes.get("/dashboard/{name}", include_in_schema=False)
async def asset(name: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """A file of it."""
    return _answer(name, if_none_match)


@routes.get("/v1/caller", tags=["health"])
def caller(request: Request) -> Caller:
    """Whose key was sent and what it may do: everything where no key is needed, nothing without one that is."""
    guard: Guard = request.app.state.guard
    try:
        key = guard.check(presented(request.scope["headers"]), ROLES)
    except BadKey as error:
        return {"name": None, "roles": [], "problem": str(error)}
    if key is None:
        return {"name": None, "roles": list(ROLES), "problem": None}
    return {"name": key.name, "roles": list(key.roles), "problem": None}


@routes.get("/v1/versions/{version:number}/exemplars", tags=["catalog"])
def exemplar_counts(workshop: With, version: Number) -> Exemplars:
    """How many exemplars a version keeps of each class that it keeps any of."""
    number = _version(version)
    counts = {class_id: len(ids) for class_id, ids in thumbnails.chosen(workshop.registry, number).items() if ids}
    return {"version": number, "classes": [{"id": class_id, "images": n} for class_id, n in sorted(counts.items())]}


def _version(text: str) -> int:
    if not (number := natural(text, LARGEST_ID)):
        raise Missing(f"no version has number {text[:40]!r}; they are numbered from 1")
    return number


@routes.get(
    "/v1/versions/{version:number}/exemplars/{class_id:number}",
    tags=["catalog"],
    response_class=Response,
    responses=openapi.PICTURE,
)
def exemplars(
    workshop: With,
    version: Number,
    class_id: Number,
    most: Annotated[int, Query(ge=1, le=thumbnails.MOST)] = 5,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The best exemplars that a version keeps of a class, side by side in one WebP picture, as the model sees them."""
    number = _version(version)
    if (class_ := natural(class_id, LARGEST_ID)) is None:
        raise Missing(f"no class has id {class_id[:40]!r}; ids are numbers, see /v1/classes")
    manifest = workshop.registry.manifest(number)
    chosen = thumbnails.chosen(workshop.registry, number).get(class_, ())[:most]
    tag = f'"{hashlib.sha256("".join(chosen).encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": f"private, max-age={THUMBNAILS_FOR_S}"}
    if chosen and if_none_match == tag:
        return Response(status_code=304, headers=headers)
    if (picture := thumbnails.strip(workshop, chosen, manifest.preprocess)) is None:
        raise Missing(
            f"version {number} keeps no exemplar of class {class_} (any more); see /v1/versions/{number}/exemplars"
        )
    return Response(picture, media_type="image/webp", headers=headers)
