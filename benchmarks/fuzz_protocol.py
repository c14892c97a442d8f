"""The Open Inference Protocol as nobody should speak it: over HTTP in JSON and with binary tensors, and over gRPC.

Generators as in fuzz_inputs.py. A call over gRPC carries bytes, which are a message of its method, or nearly one.
"""

import base64
import gzip
import json
import string
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from lifelist.benchmarks.fuzz_inputs import NUMBERS, WORDS, Random, Request, mutated, odd, photographs

MODEL = "lifelist"
SIDE = 16
OUTPUTS = ("class_id", "label", "score", "prediction_id", "logits", "probabilities", "similarities", "embedding")
DATATYPES = ("UINT8", "BYTES", "BOOL", "INT8", "INT64", "UINT64", "FP16", "FP32", "FP64", "BF16", "uint8", "")
VERSIONS = ("", "1", "2", "live", "previous", "candidate", "0", "-1", "01", "1.0", "9" * 30, "%2e%2e", "ß")
PARAMETERS: tuple[tuple[str, Any], ...] = (
    ("answer", "linear"), ("answer", "nearest_mean"), ("answer", 1), ("timeout", 1), ("timeout", 10**9),
    ("timeout", -1), ("timeout", 2**63), ("priority", 1), ("binary_data_output", True), ("binary_data_output", 1),
    ("sequence_id", 1), ("shared_memory_region", "x"), ("shared_memory_byte_size", 1), ("binary_data_size", 3),
    ("", ""),
)  # fmt: skip
WORD_AND_MANY = ["x" * 200_000, *[""] * 20_000]  # 260 kB, and 16 GB if all are made as long as the longest
OF_OUTPUTS = ("classification", 2), ("classification", 2**31), ("binary_data", False), ("binary_data", True)
TEXTS = ("", "\0", "\r\n", "x" * 3000, "ß\u202e𝔘", "😀" * 500, '"', "../../etc/passwd", "lifelist/versions/1", "%00")

DESCRIPTORS = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"], health_pb2.DESCRIPTOR.services_by_name["Health"]
METHODS: tuple[MethodDescriptor, ...] = tuple(method for service in DESCRIPTORS for method in service.methods)
QUERIES = ("ModelInfer", "ModelStreamInfer")


@dataclass(frozen=True, slots=True)
class Call:
    """One call over gRPC: the method's path, the messages as they are sent, and what goes with them."""

    path: str
    messages: Sequence[bytes]
    metadata: Sequence[tuple[str, str | bytes]] = ()
    compressed: bool = False
    streams: tuple[bool, bool] = (False, False)  # whether the client sends, and the server answers, many


# --------------------------------------------------------------------------------------------------------- over HTTP


def infer(random: Random) -> Request:
    """A query in JSON, sound but for wrong types, wrong fields, broken text."""
    content = _query(random)
    for row in content["inputs"]:
        row["data"] = _listed(random, row)
    text = _text(random, content)
    return _sent(random, _infer_path(random), [], text)


def binary(random: Random) -> Request:
    """A query with binary tensors, whose sizes are often not those of what is sent."""
    content, raw = _query(random), []
    for row in content["inputs"]:
        raw.append(_raw(random, row))
        size = len(raw[-1]) if random.random() < 0.8 else random.choice((*NUMBERS, "1", None, 1.5))
        row["parameters"] = {"binary_data_size": size} | row.get("parameters", {})
        if random.random() < 0.05:
            row["data"] = [1]
    head = _text(random, content)
    if random.random() < 0.1:
        head, raw = b"", [mutated(random, random.choice(photographs()))]
    length = str(len(head) if random.random() < 0.85 else random.choice((*NUMBERS, "x", "", "0x10", " 1", "1, 1")))
    tail = b"".join(raw)
    tail = mutated(random, tail, 3) if random.random() < 0.2 else tail
    return _sent(random, _infer_path(random), [(b"Inference-Header-Content-Length", length.encode())], head + tail)


def repository(random: Random) -> Request:
    """Metadata, statistics and the repository of versions, of models and versions that often are not there."""
    model = random.choice((MODEL, MODEL, MODEL, "x", "%00", "ß", "a" * 300, "..", ""))
    version = random.choice(VERSIONS)
    place = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
    name = f"{model}/versions/{version}" if version and random.random() < 0.7 else model
    method, path = random.choice(
        (("GET", "/v2"), ("GET", "/v2/health/ready"), ("GET", "/v2/models/stats"), ("GET", place),
         ("GET", f"{place}/config"), ("GET", f"{place}/ready"), ("GET", f"{place}/stats"),
         ("POST", "/v2/repository/index"), ("POST", f"/v2/repository/models/{name}/load"),
         ("POST", f"/v2/repository/models/{name}/unload"), ("GET", f"{place}/trace/setting"),
         ("POST", "/v2/logging"), ("GET", "/v2/systemsharedmemory/status"), ("DELETE", place))
    )  # fmt: skip
    wire = path.encode()
    if random.random() < 0.2:
        wire = b"/" + bytes(byte for byte in mutated(random, wire[1:], 2) if 33 <= byte < 127)[:3000]
    wire = bytes(byte if 33 <= byte < 127 else ord("_") for byte in wire)
    given = {name: value for name, value in [random.choice(PARAMETERS)] if random.random() < 0.3}
    given |= {"version": random.choice((1, "1", "live", None, 2**70, [1]))} if random.random() < 0.3 else {}
    given |= {random.choice(("config", "file:1/model.onnx")): "x"} if random.random() < 0.1 else {}
    body: Any = {"ready": random.random() < 0.5} if path.endswith("index") else {"parameters": given}
    text = _text(random, body) if method == "POST" and random.random() < 0.8 else b""
    return Request(method.encode(), wire, [(b"Content-Type", b"application/json")] if text else [], text)


def _infer_path(random: Random) -> bytes:
    version = _version(random)
    model = MODEL if random.random() < 0.95 else random.choice(("x", "%00", "a" * 300))
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
    return bytes(byte if 33 <= byte < 127 else ord("_") for byte in path.encode())


def _version(random: Random) -> str:
    """Mostly one that there is: what is refused at the door tries nothing behind it."""
    return random.choice(VERSIONS) if random.random() < 0.1 else random.choice(("", "live"))


def _query(random: Random) -> dict[str, Any]:
    """A request without its data: one input, and seldom none or two."""
    inputs = [_input(random) for _ in range(random.choice((1,) * 18 + (0, 2)))]
    content: dict[str, Any] = {"inputs": inputs}
    if random.random() < 0.5:
        content["outputs"] = [_output(random) for _ in range(random.randint(0, 4))]
    if random.random() < 0.25:
        content["parameters"] = dict(random.choice(PARAMETERS) for _ in range(random.randint(1, 2)))
    if random.random() < 0.3:
        content["id"] = random.choice(TEXTS)
    return content


def _input(random: Random) -> dict[str, Any]:
    count = random.choice((1, 1, 1, 2, 3, 8))
    if random.random() < 0.5:
        row: dict[str, Any] = {"name": "image_bytes", "datatype": "BYTES", "shape": [count]}
    else:
        row = {"name": "images", "datatype": "UINT8", "shape": [count, SIDE, random.choice((SIDE, 5)), 3]}
    if random.random() < 0.05:
        row["datatype"] = random.choice(DATATYPES)
    if random.random() < 0.1:
        sizes: list[Any] = [*row["shape"], 1]
        sizes[random.randrange(len(sizes))] = random.choice((*NUMBERS, "3", None, 1.5))
        row["shape"] = sizes[: random.randint(0, 5)]
    if random.random() < 0.05:
        row["parameters"] = dict([random.choice(PARAMETERS)])
    return row


def _output(random: Random) -> dict[str, Any]:
    row: dict[str, Any] = {"name": random.choice(OUTPUTS) if random.random() < 0.97 else random.choice(TEXTS)}
    if random.random() < 0.4:
        row["parameters"] = dict([random.choice(OF_OUTPUTS if random.random() < 0.8 else PARAMETERS)])
    return row


def _count(row: dict[str, Any]) -> int:
    """How many elements to send for a shape, which may say anything: as many as it says, if these are few."""
    sizes = [size for size in row["shape"] if isinstance(size, int) and 0 < size < 400]
    return min(20_000, int(np.prod(sizes, dtype=np.int64)))


def _files(random: Random, count: int) -> list[bytes]:
    files = [random.choice(photographs()) for _ in range(min(count, 8))]
    return [mutated(random, file) if random.random() < 0.1 else file for file in files]


def _listed(random: Random, row: dict[str, Any]) -> Any:
    """The data of an input as JSON has it."""
    if row["datatype"] == "BYTES":
        data: list[Any] = [base64.b64encode(file).decode() for file in _files(random, _count(row))]
    else:
        data = list(random.randbytes(_count(row)))
    if data and random.random() < 0.1:
        data[random.randrange(len(data))] = random.choice((256, -1, 1.5, None, "x", [], 2**70, True, "=", "a"))
    return data if random.random() < 0.95 else random.choice((None, {}, "AAAA", [data], [[1], 2], WORD_AND_MANY))


def _raw(random: Random, row: dict[str, Any]) -> bytes:
    """The data of an input raw."""
    if row["datatype"] != "BYTES":
        return random.randbytes(max(0, _count(row) + random.choice((0,) * 8 + (1, -1))))
    files = _files(random, _count(row))
    sizes = [len(file) if random.random() < 0.9 else random.choice((0, 2**31, 2**32 - 1)) for file in files]
    return b"".join(size.to_bytes(4, "little") + file for size, file in zip(sizes, files, strict=True))


def _text(random: Random, content: Any) -> bytes:
    content = odd(random, content) if random.random() < 0.15 else content
    text = json.dumps(content, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
    return mutated(random, text, 3) if random.random() < 0.15 else text


def _sent(random: Random, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> Request:
    """The request, now and then compressed, and now and then said to be what it is not."""
    if random.random() < 0.3:
        encoding, compress = random.choice(((b"gzip", partial(gzip.compress, mtime=0)), (b"deflate", zlib.compress)))
        body = compress(body, 1) if random.random() < 0.9 else body
        body = mutated(random, body, 2) if random.random() < 0.3 else body
        encoding = encoding if random.random() < 0.9 else random.choice((b"br", b"GZIP", b"gzip, gzip", b"x" * 200))
        headers = [*headers, (b"Content-Encoding", encoding)]
    if random.random() < 0.2:
        accepted = random.choice((b"gzip", b"deflate;q=0", b"gzip;q=0, *", b"x" * 500, b";;,,"))
        headers = [*headers, (b"Accept-Encoding", accepted)]
    kind = random.choice((b"application/json", b"application/octet-stream", b"", b"text/html"))
    return Request(b"POST", path, [*headers, (b"Content-Type", kind)], body)


# --------------------------------------------------------------------------------------------------------- over gRPC


def message(random: Random) -> Call:
    """A sound message of any method with odd values in it, or with bits, bytes and pieces of it altered."""
    method = random.choice((*METHODS, *[method for method in METHODS if method.name in QUERIES] * 15))
    sent = []
    for _ in range(random.randint(0, 4) if method.client_streaming else 1):
        sound = _sound(random, method)
        if random.random() < 0.5:
            _make_odd(random, sound)
        data = sound.SerializeToString()
        sent.append(mutated(random, data, 4) if random.random() < 0.5 else data)
    return _call(random, method, sent)


def noise(random: Random) -> Call:
    """Bytes that are hardly a message, and methods that hardly are."""
    method = random.choice(METHODS)
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: random.randbytes(random.choice((0, 1, 2, 10, 300, 20_000))),
        lambda: bytes([random.randrange(256)]) * random.choice((1, 20, 3000)),
        lambda: random.choice((*WORDS, *photographs())),
        lambda: _sound(random, random.choice(METHODS)).SerializeToString(),  # of another method
        lambda: b"\x2a\x02" * random.choice((1, 100, 5000)),  # inputs that begin, and begin, and begin
        lambda: b"\x0b" * random.choice((1, 99, 101, 5000)),  # groups in groups
    )
    messages = [random.choice(makers)() for _ in range(random.randint(0, 4) if method.client_streaming else 1)]
    call = _call(random, method, messages)
    if random.random() < 0.9:
        return call
    path = "/" + bytes(byte for byte in mutated(random, call.path[1:].encode(), 2) if byte in _IN_A_PATH)[:500].decode()
    return Call(path, messages[:1] or [b""]) if path not in answers() else call


def _call(random: Random, method: MethodDescriptor, messages: Sequence[bytes]) -> Call:
    pairs: list[tuple[str, str | bytes]] = [
        ("x-api-key", "x"), ("authorization", random.choice(("Bearer", "Basic eDp5"))), ("request_id", "a" * 3000),
        ("multiplexed_model_id", random.choice(("a", "", "%"))), ("application", "operator"), ("session_id", "x"),
        ("x-trace-bin", random.randbytes(300)), ("traceparent", "00-x-y-z"), ("serve-x", "~" * 2000),
    ]  # fmt: skip
    metadata = random.sample(pairs, random.randint(1, 3)) if random.random() < 0.15 else []
    return Call(
        path=f"/{method.containing_service.full_name}/{method.name}",
        messages=messages,
        metadata=metadata,
        compressed=random.random() < 0.15,
        streams=(method.client_streaming, method.server_streaming),
    )


def _sound(random: Random, method: MethodDescriptor) -> Message:
    """What a correct client sends to a method."""
    made: Any = GetMessageClass(method.input_type)()
    names = {field.name for field in method.input_type.fields}
    if method.name in QUERIES:
        _infer_message(random, made)
        return made
    for name in names & {"name", "model_name"}:
        setattr(made, name, MODEL)
    for name in names & {"version", "model_version"}:
        setattr(made, name, random.choice(VERSIONS))
    if method.name.startswith("RepositoryModel") and random.random() < 0.5:
        made.parameters["version"].string_param = random.choice(VERSIONS)
    return made


def _infer_message(random: Random, made: Any) -> None:
    """A ModelInferRequest: the query as over HTTP, its elements raw, or in the field for their type."""
    made.model_name, made.model_version = MODEL, _version(random)
    raw = random.random() < 0.6
    content = _query(random)
    made.id = content.get("id", "")
    _fill(made.parameters, content.get("parameters", {}))
    for row in content["inputs"]:
        sizes = [size for size in row["shape"] if isinstance(size, int) and -(2**63) <= size < 2**63]
        tensor = made.inputs.add(name=row["name"], datatype=row["datatype"], shape=sizes)
        _fill(tensor.parameters, row.get("parameters", {}))
        if raw:
            made.raw_input_contents.append(_raw(random, row))
        elif row["datatype"] == "BYTES":
            tensor.contents.bytes_contents.extend(_files(random, _count(row)))
        else:
            tensor.contents.uint_contents.extend(random.randbytes(_count(row)))
    for row in content.get("outputs", ()):
        _fill(made.outputs.add(name=row["name"]).parameters, row.get("parameters", {}))


def _fill(parameters: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        kinds = {bool: "bool_param", str: "string_param"}
        if type(value) in kinds:
            setattr(parameters[name], kinds[type(value)], value)
        elif 0 <= value < 2**63:
            parameters[name].int64_param = value
        else:
            parameters[name].double_param = float(value)


def _make_odd(random: Random, message: Message) -> None:
    """Put something else in one to three of the fields, however deep."""
    for _ in range(random.randint(1, 3) if message.DESCRIPTOR.fields else 0):
        place: Any = message
        while True:
            field = random.choice(place.DESCRIPTOR.fields)
            if field.message_type is None or field.message_type.GetOptions().map_entry:
                break
            found = getattr(place, field.name)
            if not field.is_repeated:
                place = found
            elif found and random.random() < 0.8:
                place = random.choice(found)
            else:
                found.add()
                break
        if field.message_type is None:
            _set_odd(random, place, field)
        elif field.message_type.GetOptions().map_entry and field.message_type.fields_by_name["value"].message_type:
            _fill_odd(random, getattr(place, field.name))


def _fill_odd(random: Random, parameters: Any) -> None:
    """A parameter without a value, or with one of a kind that it should not have."""
    parameter: Any = parameters[random.choice((*TEXTS, *[name for name, _ in PARAMETERS]))]
    if random.random() < 0.8:
        _set_odd(random, parameter, random.choice([f for f in parameter.DESCRIPTOR.fields if not f.message_type]))


def _set_odd(random: Random, place: Any, field: Any) -> None:
    value = _odd_value(random, field)
    if not field.is_repeated:
        setattr(place, field.name, value)
    elif random.random() < 0.3:
        place.ClearField(field.name)
    else:
        getattr(place, field.name).extend([value] * random.choice((1, 1, 2, 1000)))


def _odd_value(random: Random, field: Any) -> Any:
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return random.choice((0.0, -1.0, float("nan"), float("inf"), 1e300))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.choice(WORDS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return random.choice((*TEXTS, *DATATYPES, *OUTPUTS, *VERSIONS))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return random.choice((0, 1, 99))
    low, high = _RANGES[field.cpp_type]
    return random.choice([number for number in NUMBERS if low <= number < high])


_IN_A_PATH = (string.ascii_letters + string.digits + "/._-~%=?&").encode()  # others break HTTP/2 itself
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64),
}

GENERATORS: dict[str, Callable[[Random], Request]] = {"infer": infer, "binary": binary, "repository": repository}
CALLS: dict[str, Callable[[Random], Call]] = {"message": message, "noise": noise}


@cache
def answers() -> dict[str, type[Message]]:
    """Of each method, what it answers."""
    return {f"/{m.containing_service.full_name}/{m.name}": GetMessageClass(m.output_type) for m in METHODS}
