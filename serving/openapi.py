"""The OpenAPI description of POST /v1/classify, which is a plain route, and of errors, the same everywhere."""

from typing import Any

from lifelist.serving.body import FORM_TYPE, IMAGE_TYPES, SHAPE_HEADER
from lifelist.serving.classify import LARGEST_TOP_K, PATH
from lifelist.serving.options import ServingOptions

Json = dict[str, Any]

ERRORS = {
    "400": "the body, a parameter or an image cannot be used",
    "405": "another method than POST",
    "408": "the body did not arrive in time",
    "413": "over a limit",
    "415": "a content type that is not read",
    "503": "too much to do at the moment, or no version; Retry-After says when to try again",
}


def complete(schema: Json, options: ServingOptions) -> Json:
    """The description of the operator's routes, with the classifier's added, and errors as they really are."""
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for generated in ("HTTPValidationError", "ValidationError"):  # FastAPI's; ours are the one below
        schemas.pop(generated, None)
    schemas["Error"] = _object({"error": {"type": "string"}})
    schemas["Classified"] = _classified()
    for operations in schema["paths"].values():
        for operation in operations.values():
            if operation["responses"].pop("422", None) is not None:
                operation["responses"]["400"] = _error("what was sent cannot be used")
    schema["paths"] = {PATH: {"post": _classify(options)}} | schema["paths"]
    return schema


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
        }
        | {status: _error(what) for status, what in ERRORS.items()},
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
