"""The OpenAPI description of POST /v1/classify, which is a plain route, and of the errors of every route."""

from typing import Any

from lifelist.serving.body import FORM_TYPE, IMAGE_TYPES, SHAPE_HEADER
from lifelist.serving.classify import LARGEST_TOP_K, PATH
from lifelist.serving.options import ServingOptions

Json = dict[str, Any]

ERRORS = {
    "400": "what was sent cannot be used",
    "404": "a version, class or increment that does not exist",
    "405": "another method than POST",
    "408": "the body did not arrive in time",
    "409": "it cannot be done in the state that things are in",
    "413": "over a limit",
    "415": "a content type that is not read",
    "503": "not now: too much to do, no replica, or no version; Retry-After says when to try again",
}

# fmt: off
ANYWHERE = "400 503"
BESIDE = {  # route → what it answers beside those
    f"POST {PATH}":                           "405 408 413 415",
    "GET /v1/classes/{class_id}":             "404",
    "PATCH /v1/classes/{class_id}":           "404 409 413 415",
    "GET /v1/versions/{version}":             "404",
    "POST /v1/versions/{version}:promote":    "404 409 413 415",
    "POST /v1/rollback":                      "404 409",
    "POST /v1/examples":                      "409 413 415",
    "POST /v1/increments":                    "404 409 413 415",
    "GET /v1/increments/{increment}":         "404",
    "GET /v1/increments/{increment}/events":  "404",
    "POST /v1/increments/{increment}:cancel": "404 409",
    "POST /v1/feedback":                      "404 413 415",
}
# fmt: on


def complete(schema: Json, options: ServingOptions) -> Json:
    """The description of the operator's routes, with the classifier's added, and errors as they really are."""
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for generated in ("HTTPValidationError", "ValidationError"):  # FastAPI's; ours are the one below
        schemas.pop(generated, None)
    schemas["Error"] = _object({"error": {"type": "string"}})
    schemas["Classified"] = _classified()
    schema["paths"] = {PATH: {"post": _classify(options)}} | schema["paths"]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)  # FastAPI's; ours is 400
            operation["responses"] |= _refusals(f"{method.upper()} {path}")
    return schema


def _refusals(route: str) -> Json:
    return {status: _error(ERRORS[status]) for status in sorted(f"{ANYWHERE} {BESIDE.get(route, '')}".split())}


def _classify(options: ServingOptions) -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {"type": "object", "properties": {"images": {"type": "array", "items": binary["schema"]}}}
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
            _parameter("query", "shape", {"type": "string", "example": "2,32,32,3"}, "of a tensor: N,H,W,3"),
            _parameter("header", SHAPE_HEADER.title(), {"type": "string"}, "the same, as a header"),
        ],
        "requestBody": {
            "required": True,
            "description": f"An image, a form of 1 to {options.max_images} image files, or a tensor of uint8.",
            "content": dict.fromkeys((*IMAGE_TYPES, "application/octet-stream"), binary)
            | {FORM_TYPE: {"schema": form}},
        },
        "responses": {
            "200": {
                "description": "An answer",
                "headers": {"X-Lifelist-Version": {"schema": {"type": "integer"}}},
                "content": {"application/json": {"schema": _reference("Classified")}},
            }
        },
    }


def _classified() -> Json:
    scored = _object({"id": {"type": "integer"}, "name": {"type": "string"}, "score": {"type": "number"}})
    image = _object({"prediction_id": {"type": "string"}, "classes": {"type": "array", "items": scored}})
    phases = ("decode_seconds", "queue_seconds", "model_seconds", "total_seconds")
    return _object(
        {
            "version": {"type": "integer"},
            "answer": {"type": "string", "enum": ["linear", "nearest_mean"]},
            "images": {"type": "array", "items": image},
            "timing": _object({phase: {"type": "number"} for phase in phases}),
        }
    )


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _number(default: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": LARGEST_TOP_K, "default": default}


def _parameter(place: str, name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": place, "required": False, "schema": schema, "description": description}


def _error(what: str) -> Json:
    return {"description": what, "content": {"application/json": {"schema": _reference("Error")}}}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
