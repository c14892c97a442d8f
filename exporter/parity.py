"""Whether the exported graph answers as the network does from which it came: on real images, both run in full."""

import numpy as np
import torch
from torch import nn

from lifelist.exporter.errors import Refused
from lifelist.exporter.fold import Floats
from lifelist.exporter.graph import answering
from lifelist.exporter.inspection import EMBEDDING, INPUT, LOGITS
from lifelist.exporter.manifest import Parity, Preprocess
from lifelist.exporter.preprocess import Pixels
from lifelist.exporter.session import open_session

BATCH = 64  # images


def compare(
    onnx: bytes, network: nn.Module, weight: Floats, bias: Floats, preprocess: Preprocess, images: Pixels
) -> Parity:
    """The graph in ONNX Runtime against the network in torch, both on the CPU in float32.

    onnx: as graph.export gave it for the same network, weight C×D and bias C. images: N×S×S×3 uint8, N ≥ 1, of the kind
    that will be served. ValueError without an image: nothing would be compared, and all would seem well. Refused if
    either gives NaN or an infinity: no difference can be told from those.
    """
    if not len(images):
        raise ValueError("parity needs at least one image; give some that the network was not trained on")
    session, _ = open_session(onnx, provider="cpu")
    module = answering(network, weight, bias, preprocess)
    logit_gap = embedding_gap = 0.0
    agreed = 0
    for start in range(0, len(images), BATCH):
        batch = np.ascontiguousarray(images[start : start + BATCH])
        logits, embedding = session.run([LOGITS, EMBEDDING], {INPUT: batch})
        with torch.no_grad():
            wanted_logits, wanted_embedding = (output.numpy() for output in module(torch.tensor(batch)))
        _check_finite("graph", logits, embedding)
        _check_finite("network", wanted_logits, wanted_embedding)
        logit_gap = max(logit_gap, float(np.abs(logits - wanted_logits).max()))
        embedding_gap = max(embedding_gap, float(np.abs(embedding - wanted_embedding).max()))
        agreed += int((logits.argmax(axis=1) == wanted_logits.argmax(axis=1)).sum())
    return Parity(len(images), logit_gap, agreed / len(images), embedding_gap)


def _check_finite(who: str, logits: Floats, embedding: Floats) -> None:
    """Refused unless every number is finite: max() passes over NaN, and argmax finds the same NaN on both sides."""
    for what, values in ((LOGITS, logits), (EMBEDDING, embedding)):
        if count := int((~np.isfinite(values)).any(axis=1).sum()):
            raise Refused(
                f"the {who} gives {what} that are not finite for {count} of {len(values)} images; "
                "a network that can be served gives finite numbers. Did its training diverge?",
                {"who": who, "output": what, "images_not_finite": count},
            )
