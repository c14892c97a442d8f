"""Versions for measuring speed: real networks of untrained weights, whose last layer names each image of a fixed set.

How fast a network answers does not depend on what it has learned; but that each answer is right can be checked only if
the answers differ. So class k is what the network's features of image k say.
"""

import io
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from lifelist.exporter import answering, graph, index, session
from lifelist.exporter.fold import unit
from lifelist.exporter.manifest import ClassEntry, Int8, Manifest, Preprocess
from lifelist.exporter.preprocess import Pixels, decode
from lifelist.exporter.quantise import quantise
from lifelist.exporter.registry import Registry
from lifelist.training.network import build

IMAGES = 32  # and as many classes
STRENGTH = 20.0  # of the logit of the right class


@dataclass(frozen=True, slots=True)
class Model:
    """A version in a registry of its own, and images whose answers are known: image k is of class k."""

    name: str
    registry: str
    version: int  # that is live
    pixels: Pixels  # IMAGES×S×S×3, as the network sees them
    files: tuple[bytes, ...]  # the same images as they are sent


def resnet32(folder: Path) -> Model:
    """For 32×32 pixels; the images are PNG of that size."""
    shown = [photo(k, 32, 32) for k in range(IMAGES)]
    return _published(folder, "resnet32", Preprocess(32, 32, (0.5,) * 3, (0.25,) * 3), [_file(i, "png") for i in shown])


def resnet18(folder: Path) -> Model:
    """For 224×224 pixels, cut from 256; the images are JPEG of 500×375."""
    shown = [photo(k, 500, 375) for k in range(IMAGES)]
    preprocess = Preprocess(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return _published(folder, "resnet18", preprocess, [_file(i, "jpeg", quality=90) for i in shown])


def photo(number: int, width: int, height: int) -> Image.Image:
    """A part of one of two photographs; each number another part."""
    whole = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[number % 2]))
    lot = np.random.default_rng(number)
    share = lot.uniform(0.4, 0.9)
    w, h = int(whole.width * share), int(whole.height * share)
    left, top = int(lot.integers(0, whole.width - w + 1)), int(lot.integers(0, whole.height - h + 1))
    return whole.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + w, top + h))


def _file(image: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _published(folder: Path, name: str, preprocess: Preprocess, files: list[bytes]) -> Model:
    registry = Registry(str(folder / name))
    pixels = np.stack([decode(data, preprocess) for data in files])
    if (ref := registry.ref("live")) is None:
        ref = registry.promote(_publish(name, registry, pixels, preprocess).version, None)
    return Model(name, registry.url, ref.version, pixels, tuple(files))


def publish(model: Model, classes: int, first_id: int, int8: bool) -> Manifest:
    """One more version of a model, that names the first `classes` images, by ids from `first_id` on; with a graph in 8
    bits, or without.

    All versions of a model have the same network, so one of them is as quick as another.
    """
    registry = Registry(model.registry)
    preprocess = registry.manifest(model.version).preprocess
    return _publish(model.name, registry, model.pixels, preprocess, classes, first_id, int8)


def _publish(
    name: str,
    registry: Registry,
    pixels: Pixels,
    preprocess: Preprocess,
    classes: int = IMAGES,
    first_id: int = 0,
    int8: bool = True,
) -> Manifest:
    torch.manual_seed(0)
    network = build(name, classes=IMAGES, image_size=preprocess.size).backbone.eval()
    features = _features(network, pixels, preprocess)
    centre = features.mean(axis=0)
    rows = STRENGTH * np.linalg.pinv(features - centre).T  # row k: image k gets it whole, the others share it negative
    weight, bias = rows.astype(np.float32)[:classes], (-rows @ centre).astype(np.float32)[:classes]
    fp32 = graph.export(network, weight=weight, bias=bias, preprocess=preprocess)
    entries = tuple(ClassEntry(first_id + k, f"picture {first_id + k}", "trained", 0) for k in range(classes))
    files = {
        session.MODEL: fp32,
        answering.MEANS: index.build([entry.id for entry in entries], unit(features[:classes])),
    }
    draft = Manifest(
        version=0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kind="increment",
        parent=None,
        method="untrained",
        network=name,
        embedding_dim=features.shape[1],
        default_answer="linear",
        preprocess=preprocess,
        classes=entries,
    )
    if int8:
        draft = replace(draft, int8=Int8(True, 0, 1.0, 1.0, {}, "untrained: made to measure speed"))
        files[session.INT8] = quantise(fp32, pixels)
    return registry.publish(draft, files)


def _features(network: torch.nn.Module, pixels: Pixels, preprocess: Preprocess) -> np.ndarray:
    seen = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    seen = (seen - torch.tensor(preprocess.mean).view(1, 3, 1, 1)) / torch.tensor(preprocess.std).view(1, 3, 1, 1)
    with torch.no_grad():
        found: np.ndarray = network(seen).double().numpy()
    return found
