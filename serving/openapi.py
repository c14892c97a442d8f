"""The OpenAPI description: POST /v1/classify, which is a plain route, the errors of every route, and what is no JSON.

What FastAPI derives from the operator's routes is brought to OpenAPI 3.0, which the documentation page reads.
"""

from typing import Any

from pydantic import ConfigDict, TypeAdapter, WithJsonSchema

from lifelist.client.answers import Classified
from lifelist.serving.body import FORM_TYPE, IMAGE_TYPES, SHAPE_HEADER
from lifelist.serving.classify import LARGEST_TOP_K, PATH
from lifelist.serving.options import ServingOptions

Json = dict[str, Any]
Responses = dict[int | str, Json]  # by status, as FastAPI takes them

ERRORS = {
    "400": "what was sent cannot be used",
    "404": "a version, class or increment that does not exist",
    "408": "the body did not arrive in time, or the answer not within the header x-request-timeout-seconds",
    "409": "it cannot be done in the state that things are in",
    "413": "over a limit",
    "415": "a content type that is not read",
    "503": "not now: too much to do, no replica, or no version; Retry-After says when to try again",
}

SHAPE = {"type": "string", "pattern": "^ *[0-9]{1,9} *(, *[0-9]{1,9} *){2,3}$", "example": "2,32,32,3"}
PREDICTION_ID = "AQAAAAEAAAAAAAAAAQABog_X17CP_W3nzCtLoEkSPDCgfwSu0QuFzzj5"
ANSWER = {  # the documentation's
    "version": 1,
    "answer": "linear",
    "images": [
        {
            "prediction_id": PREDICTION_ID,
            "classes": [{"id": 1, "name": "gull", "score": 0.986398}, {"id": 2, "name": "swift", "score": 0.006801}],
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
    "GET /v1/versions/{version}":             "404",
    "POST /v1/versions/{version}:promote":    "404 409 415",
    "POST /v1/rollback":                      "404 409",
    "POST /v1/examples":                      "409 415",
    "POST /v1/increments":                    "404 409 415",
    "GET /v1/increments/{increment}":         "404",
    "GET /v1/increments/{increment}/events":  "404",
    "POST /v1/increments/{increment}:cancel": "404 409",
    "POST /v1/feedback":                      "404 415",
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
    schema["paths"] = {PATH: {"post": _classify(options)}} | schema["paths"]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            given = operation["responses"]
            given.pop("422", None)  # FastAPI's; ours is 400
            refusals = _refusals(f"{method.upper()} {path}")
            operation["responses"] = given | {s: told | _content_of(given.get(s)) for s, told in refusals.items()}
            for parameter in operation.get("parameters", []):  # one that is null is one that is not sent
                parameter["schema"] = _not_null(parameter["schema"])
    found: Json = _of_3_0(schema)
    return found


def _refusals(route: str) -> Json:
    return {status: _error(status) for status in sorted(f"{ANYWHERE} {BESIDE.get(route, '')}".split())}


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
            "classes (linear), or cosine similarities to the class means (nearest_mean)."
        ),
        "parameters": [
            _parameter("query", "top_k", _number(options.top_k), "classes for each image; at most those there are"),
            _parameter(
                "query", "answer", {"type": "string", "enum": ["linear", "nearest_mean"]}, "else as the version does"
            ),
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


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _number(default: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": LARGEST_TOP_K, "default": default}


def _parameter(place: str, name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": place, "required": False, "schema": schema, "description": description}


def _error(status: str) -> Json:
    headers = {"headers": {"Retry-After": header("integer", "seconds")}} if status == "503" else {}
    content = {"application/json": {"schema": _reference("Error")}}
    return {"description": ERRORS[status], **headers, "content": content}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
