"""The Open Inference Protocol over HTTP, but for queries: health, metadata, statistics, the repository of versions.

Queries go to the replicas themselves (serving/infer.py). Whatever the protocol knows and this server does not have
(shared memory, tracing, settings of a log) is answered 501. Statuses other than 200 are failures to its clients.
"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from lifelist.exporter.errors import BadInput, Unsupported
from lifelist.serving import oip
from lifelist.serving.catalog import With

Json = dict[str, Any]

routes = APIRouter(tags=["open inference protocol"])

ABSENT = {  # of the protocol's extensions
    "/v2/logging": "settings of a log",
    "/v2/trace/setting": "tracing",
    "/v2/models/{model}/trace/setting": "tracing",
    "/v2/systemsharedmemory/{rest:path}": "shared memory",
    "/v2/cudasharedmemory/{rest:path}": "shared memory",
}


PARAMETERS = {"parameters": {"type": "object", "properties": {"version": {}}}}


def _body(properties: Json) -> Json:
    """A body that may be left out, for the documentation: the routes read it by themselves."""
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


@routes.get("/v2")
async def server(catalog: With) -> Json:
    """What this server is, and which extensions of the protocol it has."""
    return catalog.repository.server()


@routes.get("/v2/health/live")
async def live() -> Json:
    """Whether the server runs at all."""
    return {"live": True}


@routes.get("/v2/health/ready")
async def ready(catalog: With) -> JSONResponse:
    """Whether queries are answered."""
    if await catalog.repository.server_ready():
        return JSONResponse({"ready": True})
    return JSONResponse({"ready": False, "error": "no replica answers"}, 503, {"Retry-After": "1"})


@routes.get("/v2/models/stats")
async def statistics_of_all(catalog: With) -> Json:
    """What all replicas counted, for each version that they hold or have answered by."""
    return await catalog.repository.statistics()


@routes.get("/v2/models/{model}")
async def metadata(catalog: With, model: str) -> Json:
    """Inputs and outputs, and the versions that can be asked, of the live version."""
    return await metadata_of_version(catalog, model, "")


@routes.get("/v2/models/{model}/versions/{version}")
async def metadata_of_version(catalog: With, model: str, version: str) -> Json:
    """The same of a version: a number, `live`, `previous` or `candidate`."""
    return await catalog.repository.metadata(model, version)


@routes.get("/v2/models/{model}/config")
async def config(catalog: With, model: str) -> Json:
    """The same as a model configuration, with the class ids that the columns of outputs are of."""
    return await config_of_version(catalog, model, "")


@routes.get("/v2/models/{model}/versions/{version}/config")
async def config_of_version(catalog: With, model: str, version: str) -> Json:
    """The same of a version: a number, `live`, `previous` or `candidate`."""
    return await catalog.repository.config(model, version)


@routes.get("/v2/models/{model}/ready")
async def model_ready(catalog: With, model: str) -> Json:
    """200 if every replica can answer by the live version."""
    return await model_ready_of_version(catalog, model, "")


@routes.get("/v2/models/{model}/versions/{version}/ready")
async def model_ready_of_version(catalog: With, model: str, version: str) -> Json:
    """The same of a version: a number, `live`, `previous` or `candidate`."""
    await catalog.repository.ready(model, version)
    return {"name": model, "ready": True}


@routes.get("/v2/models/{model}/stats")
async def statistics(catalog: With, model: str) -> Json:
    """What all replicas counted, for each version that they hold or have answered by."""
    return await statistics_of_version(catalog, model, "")


@routes.get("/v2/models/{model}/versions/{version}/stats")
async def statistics_of_version(catalog: With, model: str, version: str) -> Json:
    """The same of a version: a number, `live`, `previous` or `candidate`."""
    return await catalog.repository.statistics(model, version)


@routes.post("/v2/repository/index", openapi_extra=_body({"ready": {"type": "boolean"}}))
async def index(catalog: With, request: Request) -> list[Json]:
    """All versions: READY if every replica holds it. `{"ready": true}`: only those."""
    asked = await _content(request, "ready")
    only_ready = asked.get("ready", False)
    if not isinstance(only_ready, bool):
        raise BadInput(f"ready should be true or false, not {only_ready!r:.40}")
    return await catalog.repository.index(only_ready)


@routes.post("/v2/repository/models/{name:path}/load", openapi_extra=_body(PARAMETERS))
async def load(catalog: With, request: Request, name: str) -> Json:
    """Have every replica hold a version: `lifelist/versions/3`, or the parameter `version`. It does not become live."""
    await catalog.repository.load(name, await _parameters(request))
    return {}


@routes.post("/v2/repository/models/{name:path}/unload", openapi_extra=_body(PARAMETERS))
async def unload(catalog: With, request: Request, name: str) -> Json:
    """Let go of a version that was loaded."""
    await catalog.repository.unload(name, await _parameters(request))
    return {}


async def absent(request: Request) -> None:
    """501."""
    what = next(what for path, what in ABSENT.items() if request.scope["route"].path == path)
    raise Unsupported(f"this server has no {what}; see /docs for what it has")


for path in ABSENT:
    routes.add_api_route(path, absent, methods=["GET", "POST"], include_in_schema=False)


async def _parameters(request: Request) -> Json:
    """Those of a load or an unload; the version is a number, or a name in a string."""
    found = (await _content(request, "parameters")).get("parameters", {})
    if not isinstance(found, dict):
        raise BadInput(f"parameters should be a JSON object, not {found!r:.40}")
    return found


async def _content(request: Request, *names: str) -> Json:
    """The JSON of a request, of which SmallBodies (deploy/uploads.py) saw that it is neither too long nor too deep.

    Clients send none at all, and no content type.
    """
    body = await request.body()
    return oip.fields("the request", oip.parsed(body), *names) if body.strip() else {}
