"""From a network to an ONNX graph: uint8 pixels in, logits and unit embedding out, nothing left to do around it.

With parity.py the only module of this package with torch in it.
"""

import copy
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from lifelist.exporter.errors import Failed
from lifelist.exporter.fold import TINY, Floats
from lifelist.exporter.inspection import EMBEDDING, INPUT, LOGITS, inspect
from lifelist.exporter.manifest import Preprocess

OPSET = 18  # the same for every version, so that all of them run wherever one does


class Answering(nn.Module):
    """What is exported: the network between normalisation and the folded last layer."""

    scale: Tensor
    shift: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, features: nn.Module, weight: Floats, bias: Floats, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = features
        mean, std = (
            torch.tensor(preprocess.mean, dtype=torch.float64),
            torch.tensor(preprocess.std, dtype=torch.float64),
        )
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).float().view(1, 3, 1, 1))
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32))
        self.register_buffer("bias", torch.tensor(bias, dtype=torch.float32))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """logits N×C and embedding N×D of images N×S×S×3 uint8. A zero feature has a zero embedding, not NaN."""
        features = self.network(images.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        logits = nn.functional.linear(features, self.weight, self.bias)
        return logits, features / length.clamp_min(TINY)


def export(network: nn.Module, *, weight: Floats, bias: Floats, preprocess: Preprocess) -> bytes:
    """One ONNX file, without external data: images uint8 N×S×S×3 → logits N×C, embedding N×D unit rows; any N.

    network: B×3×S×S float32, normalised, to features B×D; it is left as it is (a copy is exported, in eval mode, on the
    CPU). weight C×D and bias C float32: the last layer, with its rebalancing folded in (exporter/fold.py). Batch-norm
    is folded into the convolution before it, or becomes a scale and a shift where there is none. Failed if the network
    cannot be put into such a graph.
    """
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(f"a last layer has a weight C×D and a bias C; got {weight.shape} and {bias.shape}")
    model = _traced(answering(network, weight, bias, preprocess), preprocess.size)
    _replace_batch_norm(model.graph)
    _tidy(model)
    data: bytes = model.SerializeToString(deterministic=True)
    inspect(data, size=preprocess.size, classes=weight.shape[0], dim=weight.shape[1])
    return data


def answering(network: nn.Module, weight: Floats, bias: Floats, preprocess: Preprocess) -> Answering:
    """The torch side of the graph: a copy of the network on the CPU, float32 and in eval mode, with both its ends."""
    own = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format)
    return Answering(own, weight, bias, preprocess).eval()


def _traced(module: Answering, size: int) -> onnx.ModelProto:
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # two: a size of one would be taken for a constant
    with torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[LOGITS, EMBEDDING],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter has a class of its own for each of its stages
            what, why = type(module.network).__name__, str(error).strip().partition("\n")[0]
            raise Failed(f"{what} cannot be exported to ONNX, so it cannot be served: {why}") from error
    model: onnx.ModelProto = program.model_proto
    return model


def _replace_batch_norm(graph: onnx.GraphProto) -> None:
    """Batch-norms that follow no convolution (the exporter folds the others) become x·scale + shift.

    In eval mode γ·(x − μ)/√(σ² + ε) + β is that, with scale = γ/√(σ² + ε) and shift = β − μ·scale, in float64 here.
    """
    initial = {tensor.name: tensor for tensor in graph.initializer}
    sides = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        x, *parameters = node.input
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("training_mode") or not all(name in initial for name in parameters) or x not in sides:
            raise Failed(
                f"batch-norm {node.name!r} normalises by its batch, or by computed numbers; it cannot be served"
            )
        gamma, beta, mean, variance = (numpy_helper.to_array(initial[p]).astype(np.float64) for p in parameters)
        scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        for name, value in ((f"{node.name}.scale", scale), (f"{node.name}.shift", beta - mean * scale)):
            shaped = value.astype(np.float32).reshape(-1, *[1] * (sides[x] - 2))
            graph.initializer.append(numpy_helper.from_array(shaped, name))
        nodes.append(helper.make_node("Mul", [x, f"{node.name}.scale"], [f"{node.name}.scaled"], f"{node.name}.mul"))
        nodes.append(
            helper.make_node("Add", [f"{node.name}.scaled", f"{node.name}.shift"], list(node.output), node.name)
        )
    del graph.node[:]
    graph.node.extend(nodes)


def _tidy(model: onnx.ModelProto) -> None:
    """Without what nothing refers to, and without the exporter's notes, which name files of this machine."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
