"""What a graph must be before it is run: one self-contained ONNX file of standard operators, with our ends."""

from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError

from lifelist.exporter.errors import Corrupt

INPUT, LOGITS, EMBEDDING = "images", "logits", "embedding"
_STANDARD = ("", "ai.onnx")  # two names of the domain that every runtime has

_Kind = tuple[int, tuple[int | None, ...]]  # element type; shape, None where any size will do


def inspect(data: bytes, *, size: int, classes: int, dim: int, name: str = "model.onnx") -> onnx.ModelProto:
    """The graph in `data`, if it is one that we run; else Corrupt, which says what it has that it should not.

    images uint8 N×size×size×3 → logits float32 N×classes, embedding float32 N×dim, for any N. No external data (a path
    that the runtime would follow), no operator of another domain (code that the runtime would load), no functions, no
    graphs inside nodes: nothing but what was looked at here is executed.
    """
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise Corrupt(f"{name} is no ONNX file: {error}") from error
    if problems := [*_problems(model), *_shape_problems(model.graph, size, classes, dim)]:
        raise Corrupt(f"{name} is refused: {'; '.join(problems)}")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise Corrupt(f"{name} is not valid ONNX: {error}") from error
    return model


def _problems(model: onnx.ModelProto) -> Iterator[str]:
    graph = model.graph
    if other := sorted({entry.domain for entry in model.opset_import} - set(_STANDARD)):
        yield f"it imports operators of {', '.join(other)}; only the standard domain is allowed"
    if other := sorted({f"{node.domain}::{node.op_type}" for node in graph.node if node.domain not in _STANDARD}):
        yield f"it uses the custom operators {', '.join(other)}"
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        yield "it has functions, training information or sparse tensors; only plain nodes and tensors are allowed"
    attributes = [(node, attribute) for node in graph.node for attribute in node.attribute]
    held = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    if inside := sorted({n.op_type for n, a in attributes if a.type in held or a.HasField("g") or a.graphs}):
        yield f"its operators {', '.join(inside)} hold graphs of their own"
    if any(
        a.HasField("sparse_tensor") or a.sparse_tensors or a.HasField("tp") or a.ref_attr_name for _, a in attributes
    ):
        yield "a node has a sparse tensor, a type or a reference as attribute"
    tensors = [
        *graph.initializer,
        *(t for _, a in attributes for t in (*([a.t] if a.HasField("t") else []), *a.tensors)),
    ]
    if outside := [t.name for t in tensors if t.external_data or t.data_location == onnx.TensorProto.EXTERNAL]:
        yield f"it keeps {outside[0]!r} and {len(outside) - 1} other tensors in other files; a model is one file"


def _shape_problems(graph: onnx.GraphProto, size: int, classes: int, dim: int) -> Iterator[str]:
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    wanted_in: dict[str, _Kind] = {INPUT: (uint8, (None, size, size, 3))}
    wanted_out: dict[str, _Kind] = {LOGITS: (float32, (None, classes)), EMBEDDING: (float32, (None, dim))}
    initial = {tensor.name for tensor in graph.initializer}
    for what, values, wanted in (("inputs", graph.input, wanted_in), ("outputs", graph.output, wanted_out)):
        found = {value.name: _kind(value) for value in values if value.name not in initial}
        if found != wanted or len(values) != len(wanted):
            yield f"its {what} are {_told(found)}; the manifest asks for {_told(wanted)}"


def _kind(value: onnx.ValueInfoProto) -> _Kind:
    tensor = value.type.tensor_type
    sides = [side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim]
    return tensor.elem_type, tuple(sides)


def _told(values: dict[str, _Kind]) -> str:
    kinds = onnx.TensorProto.DataType
    shown = (
        f"{n} {kinds.Name(t).lower()} {'×'.join(str(s or 'N') for s in sides)}" for n, (t, sides) in values.items()
    )
    return ", ".join(shown) or "none"
