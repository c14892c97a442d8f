"""Small pictures of the images that are kept."""

import functools
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from lifelist.deploy import examples
from lifelist.deploy.workshop import Workshop, memory
from lifelist.exporter.errors import Missing
from lifelist.exporter.manifest import Preprocess
from lifelist.exporter.preprocess import decode
from lifelist.exporter.registry import Registry

LARGEST = 96  # pixels in each direction of a thumbnail; a smaller image is left as it is
SIDE = 64  # of one in a strip
MOST = 12  # in a strip


def shown(seen: Preprocess, largest: int = LARGEST) -> Preprocess:
    """What makes the part of an image that the model sees, in at most so many pixels in each direction."""
    side = min(seen.size, largest)
    return examples.decoding(side, max(side, round(seen.resize_to * side / seen.size)))


@functools.lru_cache(maxsize=4)
def chosen(registry: Registry, version: int) -> Mapping[int, Sequence[str]]:
    """The exemplars of a version by class, the best first. Versions never change, so they are read once."""
    found = memory(registry, registry.manifest(version))["exemplars"]
    return {int(class_id): ids for class_id, ids in found.items()}


def strip(workshop: Workshop, digests: Sequence[str], seen: Preprocess) -> bytes | None:
    """Images side by side as a WebP file; those that were deleted since are left out. None if no image is left."""
    pictures = []
    for digest in digests:
        try:
            pictures.append(decode(workshop.images.get(digest), shown(seen, SIDE)))
        except Missing:
            continue
    if not pictures:
        return None
    out = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(out, "WEBP", lossless=seen.size < SIDE, quality=85)
    return out.getvalue()
