"""The OpenAPI description of queries, which are plain routes, and of the errors of every route."""

from typing import Any

from lifelist.serving import oip, tensors
from lifelist.serving.body import FORM_TYPE, IMAGE_TYPES, SHAPE_HEADER
from lifelist.serving.classify import LARGEST_TOP_K, PATH
from lifelist.serving.options import ServingOptions

Json = dict[str, Any]

INFER = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")

ERRORS = {
    "400": "what was sent cannot be used",
    "404": "a version, class or increment that does not exist",
    "405": "another method than POST",
    "408": "the body did not arrive in time",
    "409": "it cannot be done in the state that things are in",
    "413": "over a limit",
    "415": "a content type that is not read",
    "501": "a part of the protocol that this server does not have",
    "504": "the time that the request gave has passed",
    "503": "not now: too much to do, no replica, or no version; Retry-After says when to try again",
}

# fmt: off
ANYWHERE = "400 503"
BESIDE = {  # route → what it answers beside those
    f"POST {PATH}":                           "405 408 413 415",
    **dict.fromkeys((f"POST {path}" for path in INFER), "404 405 408 409 413 415 501 504"),
    "GET /v2/models/{model}":                          "404",
    "GET /v2/models/{model}/config":                   "404",
    "GET /v2/models/{model}/ready":                    "404 409",
    "GET /v2/models/{model}/stats":                    "404",
    "GET /v2/models/{model}/versions/{version}":        "404",
    "GET /v2/models/{model}/versions/{version}/config": "404",
    "GET /v2/models/{model}/versions/{version}/ready":  "404 409",
    "GET /v2/models/{model}/versions/{version}/stats":  "404",
    "POST /v2/repository/index":                       "413",
    "POST /v2/repository/models/{name}/load":          "404 409 413",
    "POST /v2/repository/models/{name}/unload":        "404 409 413",
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
    schemas["InferRequest"], schemas["InferResponse"] = _infer_request(), _infer_response()
    queries = {PATH: {"post": _classify(options)}} | {path: {"post": _infer(path)} for path in INFER}
    schema["paths"] = queries | schema["paths"]
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
