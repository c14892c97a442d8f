"""The OpenAPI description: queries, which are plain routes, the errors of every route, and what is no JSON.

What FastAPI derives from the operator's routes is brought to OpenAPI 3.0, which the documentation page reads.
"""

from typing import Any

from pydantic import ConfigDict, TypeAdapter, WithJsonSchema

from lifelist.client.answers import Classified
from lifelist.serving import oip, tensors
from lifelist.serving.auth import ACCESS, ANYONE
from lifelist.serving.body import FORM_TYPE, IMAGE_TYPES, SHAPE_HEADER
from lifelist.serving.classify import PATH
from lifelist.serving.infer import WINDOW
from lifelist.serving.options import LARGEST_TOP_K, ServingOptions

Json = dict[str, Any]
Responses = dict[int | str, Json]  # by status, as FastAPI takes them

INFER = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")

ERRORS = {
    "400": "what was sent cannot be used",
    "401": "no API key, or one that is not known",
    "403": "an API key that may do other things",
    "404": "a version, class or increment that does not exist",
    "408": "the body did not arrive in time, or the answer not within the header x-request-timeout-seconds",
    "409": "it cannot be done in the state that things are in",
    "413": "over a limit",
    "415": "a content type that is not read",
    "429": "one caller wants more than its share; Retry-After says when to try again",
    "501": "a part of the protocol that this server does not have",
    "503": "not now: too much to do, no replica, or no version; Retry-After says when to try again",
    "504": "the time that the request gave has passed",
}

SCHEMES = {  # either will do, and neither is needed by a server without API keys
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

SHAPE = {"type": "string", "pattern": "^ *[0-9]{1,9} *(, *[0-9]{1,9} *){2,3}$", "example": "2,32,32,3"}
ENCODING = {"type": "string", "enum": [*WINDOW, "identity"], "default": "identity"}
PREDICTION_ID = "AQAAAAEAAAAAAAAAAQABog_X17CP_W3nzCtLoEkSPDCgfwSu0QuFzzj5"
ANSWER = {  # the documentation's
    "version": 1,
    "answer": "linear",
    "images": [
        {
            "prediction_id": PREDICTION_ID,
            "audit": False,
            "classes": [{"id": 1, "name": "gull", "score": 0.986398}, {"id": 2, "name": "swift", "score": 0.006801}],
            "unknown_score": 0.41725,
        }
    ],
    "timing": {
        "decode_seconds": 0.004788,
        "queue_seconds": 0.001384,
        "model_seconds": 0.000414,
        "total_seconds": 0.006813,
    },
}

# fmt: off
ANYWHERE = "400 408 413 503"
BESIDE = {  # route → what it answers beside those
    f"POST {PATH}":                           "415",
    **dict.fromkeys((f"POST {path}" for path in INFER), "404 409 415 501 504"),
    "GET /v2/models/{model}":                          "404",
    "GET /v2/models/{model}/config":                   "404",
    "GET /v2/models/{model}/ready":                    "404 409",
    "GET /v2/models/{model}/stats":                    "404",
    "GET /v2/models/{model}/versions/{version}":        "404",
    "GET /v2/models/{model}/versions/{version}/config": "404",
    "GET /v2/models/{model}/versions/{version}/ready":  "404 409",
    "GET /v2/models/{model}/versions/{version}/stats":  "404",
    "POST /v2/repository/models/{name}/load":          "404 409",
    "POST /v2/repository/models/{name}/unload":        "404 409",
    "GET /v1/classes/{class_id}":             "404",
    "PATCH /v1/classes/{class_id}":           "404 409 415",
    "GET /v1/versions/{version}":             "404",
    "GET /v1/versions/{version}/exemplars":   "404",
    "GET /v1/versions/{version}/exemplars/{class_id}":  "404",
    "GET /v1/quality/confusions":             "404",
    "GET /v1/quality/bias":                   "404",
    "POST /v1/versions/{version}:promote":    "404 409 415",
    "POST /v1/rollback":                      "404 409",
    "POST /v1/examples":                      "409 415",
    "POST /v1/increments":                    "404 409 415",
    "GET /v1/increments/{increment}":         "404",
    "GET /v1/increments/{increment}/events":  "404",
    "POST /v1/increments/{increment}:cancel": "404 409",
    "POST /v1/feedback":                      "404 415",
    "GET /v1/review/{prediction_id}/image":   "404 409",
    "POST /v1/review/{prediction_id}":        "404 409 415",
    "POST /v1/webhooks:test":                 "409",
}
# fmt: on


# What is said of texts that a route reads itself, so that its refusals are in our words.
NUMBER = WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 2**31 - 1, "example": 1})
EVENT_ID = WithJsonSchema({"type": "string", "pattern": "^ *[0-9]* *$", "example": "7"})


def like(example: Json) -> ConfigDict:
    """What a body is described with, for its model_config."""
    return ConfigDict(json_schema_extra={"example": example})


def header(kind: str, description: str) -> Json:
    """A header that a response always has."""
    return {"required": True, "description": description, "schema": {"type": kind}}


HEADERS_OF = {  # status → headers of such an answer
    "401": {"WWW-Authenticate": header("string", "Bearer")},
    "429": {"Retry-After": header("integer", "seconds")},
    "503": {"Retry-After": header("integer", "seconds")},
}
NO_CONTROLS: Json = {"pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]*$"}  # described so; the route says it in a sentence
LOCATION: Responses = {202: {"headers": {"Location": header("string", "where the increment is")}}}
EVENTS: Responses = {
    200: {
        "description": "Events, until the increment ends: `id`, a rising number; `event`, the kind; `data`, JSON",
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "object",  # of each event
                    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
                    "required": ["id", "event", "data"],
                },
                "example": 'id: 7\nevent: state\ndata: {"at": "2026-11-25T12:00:00Z", "state": "train"}\n\n',
            }
        },
    }
}
PICTURE: Responses = {
    200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "the picture with the ETag of If-None-Match is still that"},
}
PNG: Responses = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "The image"}
}
METRICS: Responses = {
    200: {
        "content": {
            "text/plain": {
                "schema": {"type": "string"},
                "example": 'lifelist_requests_total{code="200",replica="one"} 12.0\n',
            }
        }
    }
}


def complete(schema: Json, options: ServingOptions) -> Json:
    """The description of the operator's routes, with the classifier's added, and errors as they really are."""
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for generated in ("HTTPValidationError", "ValidationError"):  # FastAPI's; ours are the one below
        schemas.pop(generated, None)
    schemas["Error"] = _object({"error": {"type": "string"}})
    classified = TypeAdapter(Classified).json_schema(ref_template="#/components/schemas/{model}")
    schemas |= classified.pop("$defs") | {"Classified": classified}
    schema["components"]["securitySchemes"] = SCHEMES
    schemas["InferRequest"], schemas["InferResponse"] = _infer_request(), _infer_response()
    queries = {PATH: {"post": _classify(options)}} | {path: {"post": _infer(path)} for path in INFER}
    schema["paths"] = queries | schema["paths"]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            given = operation["responses"]
            given.pop("422", None)  # FastAPI's; ours is 400
            route = f"{method.upper()} {path}"
            keyed = ACCESS.get(route) != ANYONE
            refusals = _refusals(f"{BESIDE.get(route, '')} {'401 403 429' if keyed else ''}")
            operation["security"] = [{}, *({scheme: []} for scheme in SCHEMES)] if keyed else []
            operation["responses"] = given | {s: told | _content_of(given.get(s)) for s, told in refusals.items()}
            for parameter in operation.get("parameters", []):  # one that is null is one that is not sent
                parameter["schema"] = _not_null(parameter["schema"])
    found: Json = _of_3_0(schema)
    return found


def _refusals(beside: str) -> Json:
    return {status: _error(status) for status in sorted(f"{ANYWHERE} {beside}".split())}


def _content_of(response: Json | None) -> Json:
    """What a route says itself of the content of a refusal."""
    return {"content": response["content"]} if response and "content" in response else {}


def _not_null(schema: Json) -> Json:
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    return {k: v for k, v in schema.items() if k != "anyOf"} | kinds[0] if len(kinds) == 1 else schema


def _of_3_0(value: Any) -> Any:
    """JSON Schema as pydantic writes it, in the words of OpenAPI 3.0: null is `nullable`, a constant an enum of one."""
    if isinstance(value, list):
        return [_of_3_0(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {name: _of_3_0(item) for name, item in value.items()}
    if "const" in found:
        found["enum"] = [found.pop("const")]
    kinds = found.get("anyOf", [])
    if {"type": "null"} in kinds:
        others = [kind for kind in kinds if kind != {"type": "null"}]
        del found["anyOf"]
        plain = len(others) == 1 and "$ref" not in others[0]
        found |= others[0] if plain else {"allOf" if len(others) == 1 else "anyOf": others}
        found["nullable"] = True
    return found


def _classify(options: ServingOptions) -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    images = {"type": "array", "items": binary["schema"], "minItems": 1, "maxItems": options.max_images}
    form = {"schema": {"type": "object", "properties": {"images": images}, "required": ["images"]}}
    return {
        "tags": ["queries"],
        "operationId": "classify",
        "summary": "The classes of each image, best first",
        "description": (
            "One version answers the whole request, and the answer names it. Scores are probabilities over the trained "
            "classes (linear), or cosine similarities to the class means (nearest_mean). An unknown score is the share "
            "of known images that look more known."
        ),
        "parameters": [
            _parameter("query", "top_k", _number(options.top_k), "classes for each image; at most those there are"),
            _parameter(
                "query", "answer", {"type": "string", "enum": ["linear", "nearest_mean"]}, "else as the version does"
            ),
            _parameter("query", "unknown_at", _share(options), "known images that may be called unknown; 0: none is"),
            _parameter("query", "shape", SHAPE, "of a tensor: N,H,W,3"),
            _parameter("header", SHAPE_HEADER.title(), SHAPE, "the same, as a header"),
        ],
        "requestBody": {
            "required": True,
            "description": f"An image, a form of 1 to {options.max_images} image files, or a tensor of uint8.",
            "content": dict.fromkeys((*IMAGE_TYPES, "application/octet-stream"), binary) | {FORM_TYPE: form},
        },
        "responses": {
            "200": {
                "description": "An answer",
                "headers": {"X-Lifelist-Version": header("integer", "the version that answered")},
                "content": {"application/json": {"schema": _reference("Classified"), "example": ANSWER}},
            }
        },
    }


def _infer(path: str) -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    json_ = {"schema": _reference("InferRequest")}
    where = [name for name in ("model", "version") if f"{{{name}}}" in path]
    length = _parameter("header", oip.HEADER, {"type": "integer", "minimum": 0}, "bytes of JSON; none: all are")
    return {
        "tags": ["open inference protocol"],
        "operationId": "infer" if len(where) == 1 else "infer_by_version",
        "summary": "The same as /v1/classify, in the words of the Open Inference Protocol",
        "description": "JSON, and behind it the tensors that are sent raw. The content type is not looked at.",
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in where),
            length,
            _parameter("header", "Content-Encoding", ENCODING, "of the whole body, as it is sent"),
        ],
        "requestBody": {"required": True, "content": {"application/json": json_, "application/octet-stream": binary}},
        "responses": {
            "200": {
                "description": "An answer",
                "headers": {
                    "X-Lifelist-Version": {"schema": {"type": "integer"}},
                    oip.HEADER: {"schema": {"type": "integer"}, "description": "if tensors follow the JSON"},
                },
                "content": {
                    "application/json": {"schema": _reference("InferResponse")},
                    "application/octet-stream": binary,
                },
            }
        },
    }


def _tensor(more: Json) -> Json:
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    datatypes = {"type": "string", "enum": [*tensors.NUMBERS, tensors.BYTES]}
    named = _object({"name": {"type": "string"}, "datatype": datatypes, "shape": shape})
    return named | {"properties": named["properties"] | {"data": {"type": "array", "items": {}}} | more}


def _infer_request() -> Json:
    size = {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}}
    of_output = {"binary_data": {"type": "boolean"}, "classification": {"type": "integer", "minimum": 0}}
    of_request = {
        "answer": {"type": "string", "enum": ["linear", "nearest_mean"]},
        "timeout": {"type": "integer", "minimum": 0, "description": "microseconds"},
        "priority": {"type": "integer", "description": "without effect"},
        "binary_data_output": {"type": "boolean"},
    }
    output = _object({"name": {"type": "string"}})
    output["properties"] |= {"parameters": {"type": "object", "properties": of_output}}
    found = _object({"inputs": {"type": "array", "items": _tensor({"parameters": size})}})
    found["properties"] |= {
        "id": {"type": "string"},
        "parameters": {"type": "object", "properties": of_request},
        "outputs": {"type": "array", "items": output},
    }
    return found


def _infer_response() -> Json:
    size = {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}}
    said = {name: {"type": "string"} for name in ("answer", "live_version")}
    found = _object(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "parameters": _object(said),
            "outputs": {"type": "array", "items": _tensor({"parameters": size})},
        }
    )
    found["properties"]["id"] = {"type": "string"}
    return found


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _number(default: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": LARGEST_TOP_K, "default": default}


def _share(options: ServingOptions) -> Json:
    return {"type": "number", "minimum": 0, "maximum": 1, "default": options.unknown_at}


def _parameter(place: str, name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": place, "required": False, "schema": schema, "description": description}


def _error(status: str) -> Json:
    content = {"application/json": {"schema": _reference("Error")}}
    headers = {"headers": HEADERS_OF[status]} if status in HEADERS_OF else {}
    return {"description": ERRORS[status], **headers, "content": content}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
