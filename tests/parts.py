"""Real parts that tests share: images, a small network, and small versions that are published in milliseconds.

`from parts import tiny_version` works in every test. The network is exported to ONNX once in a run (some two seconds);
after that a version is a few numpy rows in a copy of that graph.
"""

import functools
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image

from lifelist.exporter import index
from lifelist.exporter.fold import unit
from lifelist.exporter.manifest import Check, ClassEntry, FileEntry, Manifest, Preprocess
from lifelist.exporter.registry import Registry
from lifelist.serving.keys import Guard

SIZE, DIM = 16, 8  # pixels, embedding dimensions of the tiny network
PREPROCESS = Preprocess(size=SIZE, resize_to=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
BIRDS = ("heron", "gull", "swift", "wren", "robin", "crane", "stork", "eagle")

OPEN = Guard(Path("no/keys.json"), anonymous=True)  # of a replica that everybody may call


def images(n: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """n×size×size×3 uint8: smooth random pictures, all different."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in coarse])


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file of `kind` (PNG, JPEG, WEBP …) with these pixels."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


png = encoded


def tiny_network(seed: int = 0) -> Any:
    """A real convolutional network: B×3×16×16 float to features B×8, batch-norms and their statistics included."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, DIM, 3, 2, 1), nn.BatchNorm2d(DIM), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return network.eval()


@functools.cache
def _exported() -> bytes:
    from lifelist.exporter.graph import export

    weight, bias = np.eye(DIM, dtype=np.float32), np.ones(DIM, np.float32)  # logits that are the features, plus 1
    return export(tiny_network(), weight=weight, bias=bias, preprocess=PREPROCESS)


def tiny_model(weight: np.ndarray, bias: np.ndarray) -> bytes:
    """The tiny network's graph with this last layer (C×8, C): what graph.export would give, in a millisecond."""
    model = onnx.load_model_from_string(_exported())
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in (("weight", weight), ("bias", bias)):
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(weight)
    return model.SerializeToString(deterministic=True)


def tiny_version(
    registry: Registry,
    classes: Sequence[str] = BIRDS[:3],
    *,
    enrolled: Sequence[str] = (),
    first_id: int = 0,
    increments: Sequence[int] = (),
    parent: int | None = None,
    live: bool = False,
    passed: bool = True,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    exemplars: Mapping[int, Sequence[str]] | None = None,
) -> Manifest:
    """Publish a small, real version whose answers are right for `tiny_images`: its manifest, numbered; up to 8 classes.

    classes: names of the trained ones, with ids from `first_id`; then the `enrolled` ones. increments: for each trained
    class the increment that brought it (none: all 0). live: also move `live` to it. passed: what its gate says.
    seed: another last layer, so another model.onnx. changes: other fields of the manifest. exemplars: images, by class.
    """
    random = np.random.default_rng(seed)
    brought = [*(increments or [0] * len(classes)), *[max(increments, default=0) + 1] * len(enrolled)]
    states = ["trained"] * len(classes) + ["enrolled"] * len(enrolled)
    entries = tuple(
        ClassEntry(first_id + k, name, state, increment)
        for k, (name, state, increment) in enumerate(zip([*classes, *enrolled], states, brought, strict=True))
    )
    towards = _towards() * random.uniform(0.99, 1.01, (len(BIRDS), 1))
    means, weight = unit(towards[: len(entries)]), (5 * towards[: len(classes)]).astype(np.float32)
    kept = {"exemplars": {str(e.id): list((exemplars or {}).get(e.id, [])) for e in entries}, "holdout": {}}
    files = {
        "model.onnx": tiny_model(weight, np.zeros(len(classes), np.float32)),
        "class_means.faiss": index.build([e.id for e in entries], means),
        "checkpoint.safetensors": _checkpoint(weight),
        "exemplars.json": json.dumps(kept).encode(),
    }
    fields: dict[str, Any] = {
        "version": 0,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": "enrolment" if enrolled else "increment",
        "parent": parent,
        "method": "bic",
        "network": "tiny",
        "embedding_dim": DIM,
        "default_answer": "nearest_mean" if enrolled else "linear",
        "preprocess": PREPROCESS,
        "classes": entries,
        "gate": (Check("classes", passed, None, None, "as asked" if passed else "a class is missing"),),
        "results": {"linear": {"all": 0.9, "old": 0.9, "new": None, "per_class": {}}},
        "exemplars_sha256": FileEntry.of("exemplars.json", files["exemplars.json"]).sha256,
    }
    manifest = registry.publish(Manifest(**(fields | dict(changes or {}))), files)
    if live:
        now = registry.ref("live")
        registry.promote(manifest.version, now.generation if now else None)
    return manifest


@functools.cache
def _towards() -> np.ndarray:
    """8×8: row k times the feature of image k of `tiny_images` is 1, and times that of each other image 0."""
    from lifelist.exporter.session import open_session

    session, _ = open_session(_exported(), provider="cpu")
    features = session.run(["logits"], {"images": tiny_images()})[0] - 1
    return np.linalg.inv(features.astype(np.float64)).T


def tiny_images(count: int = len(BIRDS)) -> np.ndarray:
    """One image for each of the first classes of a tiny version, count×16×16×3: image k is of the k-th class."""
    return images(len(BIRDS), seed=1)[:count]


def _checkpoint(weight: np.ndarray) -> bytes:
    import safetensors.numpy

    return safetensors.numpy.save({"head.weight": weight, "head.bias": np.zeros(len(weight), np.float32)})


def blob_path(registry: Registry, manifest: Manifest, name: str) -> Path:
    """Where a local registry keeps a file of a version."""
    digest = manifest.file(name).sha256
    return Path(registry.url) / "blobs" / "sha256" / digest[:2] / digest


def flip_one_bit(path: Path, place: int = -1) -> None:
    """Alter one bit of a file, in its middle unless told where."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place < 0 else place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
