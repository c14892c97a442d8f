"""The Open Inference Protocol v2 as bytes: requests read and answers written, in JSON with or without binary tensors.

A body is JSON, or JSON and after it the raw tensors; the header Inference-Header-Content-Length says where the JSON
ends. No HTTP here, and no images: serving/infer.py answers.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lifelist.exporter.errors import BadInput, TooLarge, Unsupported
from lifelist.serving.arrival import check_depth
from lifelist.serving.numbers import natural
from lifelist.serving.tensors import BYTES, Declared, Tensor, listed, packed

HEADER = "Inference-Header-Content-Length"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may bring, at most, beside the limit of its body."""

    json: int  # bytes: what JSON becomes in memory is up to twenty times as large
    depth: int  # brackets of JSON in one another
    strings: int  # elements of a tensor of BYTES


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that a request asks for."""

    name: str
    classification: int = 0  # the best so many, as BYTES; 0: the numbers themselves
    binary: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a client asks."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Wanted, ...] = ()  # none: the server's choice
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    binary: bool = False  # how outputs are written that are not named


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """What it is answered."""

    model: str
    version: str
    outputs: tuple[Tensor, ...]
    id: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


def read(body: bytes, header: str | None, limits: Limits, raw_input: str) -> Request:
    """The request in a body; BadInput, TooLarge or Unsupported if there is none in it.

    header: how many bytes are JSON, as the HTTP header says; None: all; 0: none, and the body is one element of the
    input `raw_input`.
    """
    length = len(body) if header is None else natural(header, len(body))
    if length is None:
        raise BadInput(f"{HEADER} should be a number from 0 to the body's {len(body):,} bytes, not {header!r:.40}")
    if header is not None and length == 0:
        return Request((Tensor(raw_input, BYTES, (1,), [body]),), binary=True)
    if length > limits.json:
        raise TooLarge(
            f"{length:,} bytes of JSON; the limit is {limits.json:,}. Send tensors raw, after the JSON, with {HEADER}"
        )
    check_depth(head := body[:length], limits.depth)
    content = fields("the request", parsed(head), "id", "parameters", "inputs", "outputs")
    parameters = _parameters("the request", content)
    binary = _flag("binary_data_output", parameters.pop("binary_data_output", False))
    inputs = _inputs(content, memoryview(body)[length:], limits.strings)
    identity = content.get("id", "")
    if not isinstance(identity, str):
        raise BadInput(f"id should be a string, not {identity!r:.40}")
    outputs = tuple(_wanted(row, binary) for row in _rows(content, "outputs"))
    return checked(Request(inputs, outputs, identity, parameters, binary))


def write(response: Response, binary: Collection[str]) -> tuple[bytes, int | None]:
    """The body of an answer, with the outputs named in `binary` raw; how much of it is JSON, None if all is."""
    rows, raw = [], []
    for tensor in response.outputs:
        row: Json = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.name in binary:
            raw.append(packed(tensor))
            row["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            row["data"] = listed(tensor)
        rows.append(row)
    content: Json = {"model_name": response.model, "model_version": response.version}
    content |= {"id": response.id} if response.id else {}
    content |= {"parameters": dict(response.parameters)} if response.parameters else {}
    head = json.dumps(content | {"outputs": rows}, separators=(",", ":")).encode()
    return (b"".join([head, *raw]), len(head)) if raw else (head, None)


def checked(request: Request) -> Request:
    """The same request. BadInput if a name is in it twice."""
    for what, names in (
        ("inputs", [tensor.name for tensor in request.inputs]),
        ("outputs", [wanted.name for wanted in request.outputs]),
    ):
        if len(set(names)) < len(names):
            raise BadInput(f"{what} should have different names; they are {', '.join(names)!r:.80}")
    return request


def wanted(name: str, parameters: Json, binary: bool) -> Wanted:
    """An output that is asked for, from its parameters; BadInput if one of those is wrong. binary: unless they say."""
    binary = _flag("binary_data", parameters.pop("binary_data", binary))
    best = parameters.pop("classification", 0)
    if type(best) is not int or not 0 <= best < 2**31:
        raise BadInput(f"the parameter classification should be a number from 0 on, not {best!r:.40}")
    check_parameters(f"output {name!r:.40}", parameters, "binary_data and classification")
    return Wanted(name, best, binary)


def check_parameters(what: str, parameters: Json, known: str = "binary_data_size") -> None:
    """BadInput if any are left, Unsupported if they speak of shared memory."""
    for name in sorted(parameters):
        if name.startswith("shared_memory_"):
            raise Unsupported(f"there is no shared memory here ({name!r:.40}); send the tensor in the body")
        raise BadInput(f"{what} has no parameter {name!r:.40}; it has {known}")


def parsed(data: bytes) -> Any:
    """JSON. BadInput if it is none."""
    try:
        return json.loads(data, parse_constant=_no_number)
    except ValueError as error:  # not UTF-8, no JSON, a number of thousands of digits
        raise BadInput(f"the body is not JSON: {error}") from error


def fields(what: str, value: Any, *names: str) -> Json:
    """A JSON object with no other fields than these. BadInput if it is another."""
    if not isinstance(value, dict):
        raise BadInput(f"{what} should be a JSON object, not {value!r:.40}")
    for name in value:
        if name not in names:
            raise BadInput(f"{what} has no field {name!r:.40}; it has {', '.join(names)}")
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def _rows(content: Json, name: str) -> list[Any]:
    rows = content.get(name)
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise BadInput(f"{name} should be a list, not {rows!r:.40}")
    return rows


def _parameters(what: str, content: Json) -> Json:
    found = content.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadInput(f"the parameters of {what} should be a JSON object, not {found!r:.40}")
    return dict(found)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"the parameter {name} should be true or false, not {value!r:.40}")
    return value


def _inputs(content: Json, raw: memoryview, most_strings: int) -> tuple[Tensor, ...]:
    """The tensors: those in the JSON, and those behind it, which have to fill the rest of the body."""
    found, place = [], 0
    for row in _rows(content, "inputs"):
        row = fields("an input", row, "name", "shape", "datatype", "parameters", "data")
        declared = Declared.of(row.get("name"), row.get("datatype"), row.get("shape"), most_strings)
        name = f"input {declared.name!r:.40}"
        parameters = _parameters(name, row)
        size = parameters.pop("binary_data_size", None)
        check_parameters(name, parameters)
        if (size is None) == ("data" not in row):
            raise BadInput(f"{name} should have data, or binary_data_size and its bytes after the JSON")
        if size is None:
            found.append(declared.listed(row["data"]))
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - place:
            raise BadInput(
                f"binary_data_size of {name} is {size!r:.40}; {len(raw) - place:,} bytes are left after the JSON"
            )
        found.append(declared.raw(raw[place : place + size]))
        place += size
    if place != len(raw):
        raise BadInput(f"after the JSON come {len(raw):,} bytes; the inputs' binary_data_size add up to {place:,}")
    return tuple(found)


def _wanted(row: Any, binary: bool) -> Wanted:
    row = fields("an output", row, "name", "parameters")
    name = row.get("name")
    if not isinstance(name, str):
        raise BadInput(f"the name of an output should be a string, not {name!r:.40}")
    return wanted(name, _parameters(f"output {name!r:.40}", row), binary)
