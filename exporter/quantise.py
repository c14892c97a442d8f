"""From the fp32 graph to one in 8 bits, and whether it answers as well: on the images that judge a candidate.

Static, quantise-dequantise (QDQ) form, weights per output channel: what ONNX Runtime runs in its integer kernels. The
ends stay fp32: normalisation, and the last layer with its rebalancing, whose logits are the answer.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from lifelist.exporter.errors import Failed
from lifelist.exporter.inspection import INPUT
from lifelist.exporter.manifest import Int8
from lifelist.exporter.preprocess import Pixels

BATCH = 32  # images
QUANTISED = ("Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool")  # what runs in integers

Ids = npt.NDArray[np.int64]


def quantise(model: bytes, images: Pixels) -> bytes:
    """The graph with the arithmetic between its ends in 8 bits, as one ONNX file; the same inputs and outputs.

    model: as graph.export makes them. images: N×S×S×3 uint8, N ≥ 1, on which the ranges of activations are measured
    (the least and the most that was seen). Failed if the graph has no convolution to quantise, or cannot be quantised.
    """
    if not len(images):
        raise ValueError("ranges are measured on images; give at least one")
    graph = onnx.load_model_from_string(model)
    add_pre_process_metadata(graph)  # nothing is left to simplify, as its tool would else advise
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                graph,
                out,
                _Batches(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=QUANTISED,
                nodes_to_exclude=_before_first_convolution(graph.graph),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # its tool raises whatever it meets
            raise Failed(f"the graph cannot be quantised: {type(error).__name__}: {error}") from error
        made = onnx.load_model(out)
    _tidy(made)
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def verdict(
    truth: Ids, answered: Mapping[str, tuple[Ids, Ids]], names: Mapping[int, str], *, loss: float, class_loss: float
) -> Int8:
    """Whether 8 bits may answer in place of fp32: no kind of answer may lose more than the bounds, on the same images.

    truth: N class ids. answered: by kind of answer, (by fp32, by int8), N class ids each. loss: the share of all images
    that int8 may lose. class_loss: of a single class; one image of a class is never too many, as its share says little.
    """
    figures: dict[str, Any] = {}
    problems = []
    for kind, (fp32, int8) in answered.items():
        lost = (fp32 == truth).astype(int) - (int8 == truth)
        by_class = {int(k): lost[truth == k] for k in np.unique(truth)}
        worst = max(by_class, key=lambda k: by_class[k].mean(), default=None)
        share = float(by_class[worst].mean()) if worst is not None else 0.0
        figures[kind] = {
            "fp32": float((fp32 == truth).mean()) if len(truth) else None,
            "int8": float((int8 == truth).mean()) if len(truth) else None,
            "agreement": float((fp32 == int8).mean()) if len(truth) else None,
            "worst_class": None if worst is None else names.get(worst, str(worst)),
            "worst_class_loss": share,
        }
        if len(truth) and lost.mean() > loss:
            problems.append(f"{kind} loses {lost.mean():.3f} of accuracy, and {loss:g} is allowed")
        too_many = [k for k, of in by_class.items() if of.sum() > 1 and of.mean() > class_loss]
        if too_many:
            told = ", ".join(f"{names.get(k, k)!r} {by_class[k].mean():.3f}" for k in too_many[:5])
            problems.append(f"{kind} loses more than {class_loss:g} of a class: {told}")
    if not len(truth):
        problems.append("there is no gate image to compare on")
    message = "; ".join(problems) or f"int8 answers as well as fp32 on {len(truth)} gate images"
    return Int8(not problems, len(truth), loss, class_loss, figures, message)


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # it has no types
    """The images as the quantiser asks for them."""

    def __init__(self, images: Pixels) -> None:
        self._feeds: Iterator[dict[str, Pixels]] = (
            {INPUT: np.ascontiguousarray(images[start : start + BATCH])} for start in range(0, len(images), BATCH)
        )

    def get_next(self) -> dict[str, Pixels] | None:
        return next(self._feeds, None)


def _before_first_convolution(graph: onnx.GraphProto) -> Sequence[str]:
    """The nodes that normalise: those from the input to the first convolution. Failed if there is none."""
    names: list[str] = []
    for node in graph.node:
        if node.op_type == "Conv":
            return names
        names.append(node.name)
    raise Failed("the graph has no convolution, so 8 bits would bring nothing")


def _tidy(model: onnx.ModelProto) -> None:
    """Without what was declared and is not used, and without notes of the tool."""
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    del model.graph.value_info[:]
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
