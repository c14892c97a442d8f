"""The messages of the Open Inference Protocol over gRPC as what they mean, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from lifelist.exporter.errors import BadInput
from lifelist.serving import oip
from lifelist.serving.tensors import BYTES, Declared, Tensor, packed

# fmt: off
CONTENTS = {  # datatype → the field of its elements where a request does not send them raw
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}
# fmt: on


def asked(request: Any, most_strings: int) -> oip.Request:
    """A ModelInferRequest as what a client asks; BadInput, TooLarge or Unsupported if it is none."""
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadInput(f"raw_input_contents has {len(raw)} parts for {len(request.inputs)} inputs; send one for each")
    inputs = []
    for k, tensor in enumerate(request.inputs):
        oip.check_parameters(f"input {tensor.name!r:.40}", choices(tensor.parameters))
        if raw and tensor.HasField("contents"):
            raise BadInput(f"input {tensor.name!r:.40} has contents, and raw_input_contents too; send one of them")
        declared = Declared.of(tensor.name, tensor.datatype, list(tensor.shape), most_strings)
        inputs.append(declared.raw(memoryview(raw[k])) if raw else _typed(declared, tensor))
    outputs = tuple(oip.wanted(row.name, choices(row.parameters), binary=True) for row in request.outputs)
    parameters = choices(request.parameters)
    parameters.pop("binary_data_output", None)
    return oip.checked(oip.Request(tuple(inputs), outputs, request.id, parameters, binary=True))


def _typed(declared: Declared, tensor: Any) -> Tensor:
    """The tensor whose elements a message holds in a field for their datatype."""
    data: Any = list(getattr(tensor.contents, CONTENTS.get(declared.datatype, ""), ()))
    if declared.datatype != BYTES:
        return declared.listed(data)
    if len(data) != declared.count:
        raise BadInput(f"{tensor.name!r:.40} has {len(data):,} bytes_contents; its shape says {declared.count:,}")
    return Tensor(declared.name, BYTES, declared.shape, data)


def said(response: oip.Response) -> Any:
    """An answer as a ModelInferResponse."""
    made = pb.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    for name, value in response.parameters.items():
        made.parameters[name].string_param = value
    for tensor in response.outputs:
        made.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        made.raw_output_contents.append(packed(tensor))
    return made


def choices(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values; each message holds one of several kinds."""
    found = {}
    for name, value in parameters.items():
        chosen = value.WhichOneof("parameter_choice")
        found[name] = None if chosen is None else getattr(value, chosen)
    return found
