"""The Open Inference Protocol v2 as bytes: requests read and answers written, in JSON with or without binary tensors.

A body is JSON, or JSON and after it the raw tensors; the header Inference-Header-Content-Length says where the JSON
ends. Raw is little-endian without padding; an element of BYTES is its length (uint32) and its bytes. Nothing is
allocated by what a request promises, only by what it has brought. No HTTP here; serving/infer.py answers.
"""

import json
import math
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lifelist.exporter.errors import BadInput, TooLarge, Unsupported
from lifelist.exporter.fold import Floats
from lifelist.serving.numbers import natural

HEADER = "Inference-Header-Content-Length"
BYTES = "BYTES"
NUMBERS = {  # datatype → how numpy writes it
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}  # numpy's kind of a datatype → those of JSON that it takes
DEEPEST = 100  # brackets in brackets
MOST_DIMENSIONS = 16
MOST_ELEMENTS = 2**40

Json = dict[str, Any]
Array = npt.NDArray[Any]
Strings = list[bytes] | list[str]  # str: as it stood in JSON, or is to stand there


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may bring, at most, beside the limit of its body."""

    json: int  # bytes: what JSON becomes in memory is up to twenty times as large
    strings: int  # elements of a tensor of BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named tensor; `data` holds its elements row by row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array | Strings


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
    parameters: Mapping[str, Any] = field(default_factory=dict)


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
    content = fields("the request", parsed(body[:length]), "id", "parameters", "inputs", "outputs")
    parameters = _parameters("the request", content)
    binary = _flag("binary_data_output", parameters.pop("binary_data_output", False))
    inputs = _inputs(content, memoryview(body)[length:], limits.strings)
    identity = content.get("id", "")
    if not isinstance(identity, str):
        raise BadInput(f"id should be a string, not {identity!r:.40}")
    outputs = tuple(_wanted(row, binary) for row in _rows(content, "outputs"))
    return checked(Request(inputs, outputs, identity, parameters, binary))


def checked(request: Request) -> Request:
    """The same request. BadInput if a name is in it twice."""
    named: tuple[tuple[str, Sequence[Tensor | Wanted]], ...] = ("inputs", request.inputs), ("outputs", request.outputs)
    for what, rows in named:
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            raise BadInput(f"{what} should have different names; they are {', '.join(names)!r:.80}")
    return request


def check_parameters(what: str, parameters: Json, known: str = "binary_data_size") -> None:
    """BadInput if any are left, Unsupported if they speak of shared memory."""
    for name in parameters:
        if name.startswith("shared_memory_"):
            raise Unsupported(f"there is no shared memory here ({name!r:.40}); send the tensor in the body")
        raise BadInput(f"{what} has no parameter {name!r:.40}; it has {known}")


def write(response: Response, binary: Collection[str]) -> tuple[bytes, int | None]:
    """The body of an answer, with the outputs named in `binary` raw; how much of it is JSON, None if all is."""
    rows, raw = [], []
    for tensor in response.outputs:
        row: Json = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.name in binary:
            raw.append(packed(tensor))
            row["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            row["data"] = _listed(tensor.data)
        rows.append(row)
    content: Json = {"model_name": response.model, "model_version": response.version}
    content |= {"id": response.id} if response.id else {}
    content |= {"parameters": dict(response.parameters)} if response.parameters else {}
    head = json.dumps(content | {"outputs": rows}, separators=(",", ":")).encode()
    return (b"".join([head, *raw]), len(head)) if raw else (head, None)


def packed(tensor: Tensor) -> bytes:
    """A tensor's elements, raw."""
    if isinstance(tensor.data, np.ndarray):
        return tensor.data.astype(NUMBERS[tensor.datatype], copy=False).tobytes()
    encoded = [element.encode() if isinstance(element, str) else element for element in tensor.data]
    return b"".join(part for element in encoded for part in (struct.pack("<I", len(element)), element))


def unpacked(name: str, datatype: str, shape: Sequence[int], raw: memoryview, most_strings: int) -> Tensor:
    """The tensor that raw elements are. BadInput if they are not as many as its shape says."""
    count = elements(name, shape)
    if datatype == BYTES:
        return Tensor(name, datatype, tuple(shape), _strings(name, raw, count, most_strings))
    size = count * np.dtype(numbers(name, datatype)).itemsize
    if size != len(raw):
        raise BadInput(f"input {name!r:.40} of {datatype} {list(shape)} has {size:,} bytes; {len(raw):,} were sent")
    return Tensor(name, datatype, tuple(shape), np.frombuffer(raw, NUMBERS[datatype]))


def numbers(name: str, datatype: Any) -> str:
    """How numpy writes a datatype of numbers. BadInput if there is none of that name."""
    if not isinstance(datatype, str) or datatype not in NUMBERS:
        raise BadInput(
            f"input {name!r:.40} is of datatype {datatype!r:.40}; there are {', '.join(NUMBERS)} and {BYTES}"
        )
    return NUMBERS[datatype]


def elements(name: str, shape: Any) -> int:
    """How many elements a tensor of a shape has. BadInput if it is no shape."""
    whole = isinstance(shape, Sequence) and not isinstance(shape, str) and len(shape) <= MOST_DIMENSIONS
    if not whole or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise BadInput(
            f"the shape of {name!r:.40} should be at most {MOST_DIMENSIONS} whole numbers from 0 on, not {shape!r:.80}"
        )
    if (count := math.prod(shape)) > MOST_ELEMENTS:
        raise TooLarge(f"{name!r:.40} of shape {list(shape)} has {count:,} elements, more than any body can")
    return count


def best_of(values: Floats, labels: Sequence[str], count: int) -> Strings:
    """The classification extension: for each row of values the `count` highest, "value:column:label", best first."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(values, order, axis=1)
    return [
        f"{value:.6f}:{column}:{labels[column]}"
        for columns, row in zip(order.tolist(), best.tolist(), strict=True)
        for column, value in zip(columns, row, strict=True)
    ]


def parsed(data: bytes) -> Any:
    """JSON. BadInput if it is none, or nests too deep."""
    if (found := depth(data)) > DEEPEST:
        raise BadInput(f"the JSON nests {found} deep; the limit is {DEEPEST}")
    try:
        return json.loads(data, parse_constant=_no_number)
    except ValueError as error:  # not UTF-8, no JSON, a number of thousands of digits
        raise BadInput(f"the body is not JSON: {error}") from error


def depth(data: bytes) -> int:
    """How many brackets are open at once, at most; those in strings do not count. Found without building anything."""
    characters = np.frombuffer(data.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    outside = np.cumsum(characters == ord('"'), dtype=np.uint8) % 2 == 0  # of strings; it wraps at an even number
    opening, closing = ((characters == ord(a)) | (characters == ord(b)) for a, b in ("[{", "]}"))
    steps = opening.astype(np.int8) - closing
    return int(np.cumsum(steps[outside & (steps != 0)], dtype=np.int32).max(initial=0))


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def fields(what: str, value: Any, *names: str) -> Json:
    """A JSON object with no other fields than these. BadInput if it is another."""
    if not isinstance(value, dict):
        raise BadInput(f"{what} should be a JSON object, not {value!r:.40}")
    for name in value:
        if name not in names:
            raise BadInput(f"{what} has no field {name!r:.40}; it has {', '.join(names)}")
    return value


def _rows(content: Json, name: str) -> list[Any]:
    rows = content.get(name) or []
    if not isinstance(rows, list):
        raise BadInput(f"{name} should be a list, not {rows!r:.40}")
    return rows


def _parameters(what: str, content: Json) -> Json:
    found = content.get("parameters") or {}
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
        name, datatype, shape = row.get("name"), row.get("datatype"), row.get("shape")
        if not isinstance(name, str):
            raise BadInput(f"the name of an input should be a string, not {name!r:.40}")
        if datatype != BYTES:
            numbers(name, datatype)
        count = elements(name, shape)
        parameters = _parameters(f"input {name!r:.40}", row)
        size = parameters.pop("binary_data_size", None)
        check_parameters(f"input {name!r:.40}", parameters)
        if (size is None) == ("data" not in row):
            raise BadInput(f"input {name!r:.40} should have data, or binary_data_size and its bytes after the JSON")
        if size is None:
            found.append(
                Tensor(name, datatype, tuple(shape), _values(name, datatype, count, row["data"], most_strings))
            )
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - place:
            raise BadInput(
                f"binary_data_size of {name!r:.40} is {size!r:.40}; {len(raw) - place:,} bytes are left after the JSON"
            )
        found.append(unpacked(name, datatype, shape, raw[place : place + size], most_strings))
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


def wanted(name: str, parameters: Json, binary: bool) -> Wanted:
    """An output that is asked for, from its parameters. BadInput if one is wrong, or there is none of that name."""
    binary = _flag("binary_data", parameters.pop("binary_data", binary))
    best = parameters.pop("classification", 0)
    if type(best) is not int or not 0 <= best < 2**31:
        raise BadInput(f"the parameter classification should be a number from 0 on, not {best!r:.40}")
    check_parameters(f"output {name!r:.40}", parameters, "binary_data and classification")
    return Wanted(name, best, binary)


def _values(name: str, datatype: str, count: int, data: Any, most_strings: int) -> Array | Strings:
    """The elements in JSON, nested or flat."""
    if not isinstance(data, list):
        raise BadInput(f"the data of {name!r:.40} should be a list, not {data!r:.40}")
    if datatype == BYTES:
        _check_count(name, count, most_strings)
        strings = list(_flat(data, count))
        if len(strings) != count or not all(isinstance(element, str) for element in strings):
            raise BadInput(f"the data of {name!r:.40} should be {count:,} strings, as its shape says")
        return strings
    if datatype == "FP16":
        raise BadInput(f"input {name!r:.40} is FP16, which has no form in JSON; send it raw, with binary_data_size")
    return array(name, datatype, count, data)


def array(name: str, datatype: str, count: int, data: Any) -> Array:
    """Numbers in lists, nested or flat, as an array of a datatype. BadInput if they are others, or not that many."""
    wanted = np.dtype(NUMBERS[datatype])
    try:
        found = np.array(data)
    except ValueError as error:
        raise BadInput(f"the data of {name!r:.40} are no tensor: its rows differ in length") from error
    if found.size != count:
        raise BadInput(f"the data of {name!r:.40} has {found.size:,} elements; its shape says {count:,}")
    if count and found.dtype.kind not in KINDS[wanted.kind]:
        raise BadInput(f"the data of {name!r:.40} are no {datatype}")
    if count and wanted.kind in "iu":
        low, high = found.min(), found.max()
        limits = np.iinfo(wanted)
        if low < limits.min or high > limits.max:
            raise BadInput(
                f"the data of {name!r:.40} run from {low} to {high}; {datatype} holds {limits.min} … {limits.max}"
            )
    return found.ravel().astype(wanted)


def _flat(data: list[Any], most: int) -> Iterator[Any]:
    """The leaves of nested lists, one more than `most` at the most."""
    left, stack = most + 1, [iter(data)]
    while stack and left:
        found = next(stack[-1], stack)
        if found is stack:
            stack.pop()
        elif isinstance(found, list):
            stack.append(iter(found))
        else:
            left -= 1
            yield found


def _strings(name: str, raw: memoryview, count: int, most: int) -> list[bytes]:
    _check_count(name, count, most)
    found, place = [], 0
    while place < len(raw):
        if len(found) == count or place + 4 > len(raw):
            break
        (size,) = struct.unpack_from("<I", raw, place)
        if place + 4 + size > len(raw):
            break
        found.append(bytes(raw[place + 4 : place + 4 + size]))
        place += 4 + size
    if len(found) != count or place != len(raw):
        raise BadInput(
            f"input {name!r:.40} should be {count:,} elements, each its length (4 bytes, little-endian) and its bytes; "
            f"of {len(raw):,} bytes {place:,} are {len(found):,} such elements"
        )
    return found


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise TooLarge(f"input {name!r:.40} has {count:,} elements; send at most {most:,} in one request")


def _listed(data: Array | Strings) -> list[Any]:
    if isinstance(data, np.ndarray):
        listed: list[Any] = data.ravel().tolist()
        return listed
    return [element if isinstance(element, str) else element.decode() for element in data]
