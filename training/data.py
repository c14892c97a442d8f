"""Images as uint8: read, split, normalised, and augmented a whole batch at a time."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lifelist.exporter.errors import BadInput
from lifelist.exporter.manifest import Preprocess
from lifelist.exporter.preprocess import decode
from lifelist.training.options import TrainingOptions, check
from lifelist.training.pixels import Collector, Pixels, batches
from lifelist.training.screening import Screening
from lifelist.training.sources import Encoded, class_names, counted, encoded

LOT = 16 * 2**20  # bytes of images that are held while they are decoded: as many of files, and of pixels
TRAINING, HOLDOUT, GATE = 0, 1, 2  # roles of an image, as images.safetensors stores them
Colour = tuple[float, float, float]  # of R, G, B in 0 … 1


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Decoded images, as many as the disk holds: never floats, so that a memory of exemplars costs a quarter."""

    pixels: Pixels  # N×S×S×3 uint8
    labels: Tensor  # N int64, class ids
    ids: tuple[str, ...]  # N, sha256 of each encoded file

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: Tensor) -> Self:
        """The images whose numbers (int64) or mask (bool) are in `which`, in that order. No pixel is copied."""
        if which.dtype == torch.bool:
            which = which.nonzero()[:, 0]
        return type(self)(self.pixels.take(which), self.labels[which], tuple(self.ids[k] for k in which.tolist()))


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What a source holds: the class id of an image is its class's place in `names`."""

    images: Images
    names: tuple[str, ...]
    test: Tensor  # N bool: images that the source itself sets apart for testing; none in many sources
    screening: Screening = field(default_factory=Screening)


def read(
    source: Path | str,
    options: TrainingOptions,
    *,
    strict: bool = False,
    report: Path | None = None,
    folder: Path | None = None,
    room: int | None = None,
) -> Dataset:
    """Decode every image of `source` as serving would (exporter/preprocess.py), a lot at a time.

    BadSetting, before any is decoded, if the memory is too small for so many classes.

    An image that cannot be used is left out and told, by `screening`; BadInput if that is more than half of them, or
    all of a class. An image that stands there more than once is taken once, as what it was first: public data sets have
    such images, even under two classes (CIFAR-100: a girl who is a baby).

    strict        the first image that cannot be used is an error: BadInput names it
    report        a file that lists all that is left out, if anything is
    folder, room  where decoded images go that memory should not hold, and what it should: see Collector
    """
    preprocess = Preprocess(options.image_size, options.resized_to, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def decoded(image: Encoded) -> tuple[np.ndarray | None, str]:
        try:
            return (None, image.problem) if image.problem else (decode(image.data, preprocess), "")
        except BadInput as error:
            if isinstance(error.__cause__, MemoryError):  # which is no fault of the image
                raise error.__cause__ from None
            return None, str(error)

    check(options, classes=len(counted(source)))
    screening = Screening.of(source, strict)
    collector = Collector(options.image_size, folder, room)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for lot in _lots(encoded(source), LOT // (3 * options.image_size**2)):
            for image, (pixels, problem) in zip(lot, pool.map(decoded, lot), strict=True):
                if screening.takes(image, problem) and pixels is not None:
                    collector.add(pixels)
    screening.conclude(report)
    used = screening.used
    names = class_names(used.values())
    number = {name: k for k, name in enumerate(names)}
    labels = torch.tensor([number[image.class_name] for image in used.values()])
    test = torch.tensor([image.split == "test" for image in used.values()])
    return Dataset(Images(collector.pixels(), labels, tuple(used)), tuple(names), test, screening)


def _lots(images: Iterator[Encoded], count: int) -> Iterator[list[Encoded]]:
    """Lists of at most `count` images, or one, and of bounded bytes."""
    lot: list[Encoded] = []
    size = 0
    for image in images:
        lot.append(image)
        size += len(image.data)
        if len(lot) >= count or size >= LOT:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


def roles_on_arrival(labels: Tensor, *, gate: float, holdout: float, generator: torch.Generator) -> Tensor:
    """A role for each image, once and for good: the same shares of every class, by lot (methods.md B4 to B6).

    labels: N int64. Returns N uint8. A class keeps at least one training image, and gets its first image of a role
    with a share above 0 as soon as it has one to spare: hold-out and gate images are never trained on.
    """
    roles = torch.full(labels.shape, TRAINING, dtype=torch.uint8)
    for label in sorted(set(labels.tolist())):
        of_class = (labels == label).nonzero()[:, 0]
        shuffled = of_class[torch.randperm(len(of_class), generator=generator)]
        spare = len(shuffled) - 1
        for role, share in ((GATE, gate), (HOLDOUT, holdout)):
            count = min(spare, max(1, int(share * len(of_class)))) if share > 0 else 0
            roles[shuffled[len(shuffled) - 1 - spare :][:count]] = role
            spare -= count
    return roles


def colour_statistics(pixels: Pixels | Tensor) -> tuple[Colour, Colour]:
    """(mean, std) of each channel, in 0 … 1, over N×S×S×3 uint8: exact sums of integers, so the same on any machine."""
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for batch in batches(pixels):
        flat = batch.reshape(-1, 3).cpu()
        counts += torch.stack([torch.bincount(flat[:, channel], minlength=256) for channel in range(3)])
    levels = torch.arange(256, dtype=torch.float64) / 255
    means = [float((count * levels).sum() / count.sum()) for count in counts]
    spreads = [
        float(((count * (levels - mean) ** 2).sum() / count.sum()).sqrt())
        for count, mean in zip(counts, means, strict=True)
    ]
    r, g, b = (max(spread, 1 / 255) for spread in spreads)  # a channel that never changes has no spread to divide by
    return (means[0], means[1], means[2]), (r, g, b)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting until it is there: each wait in a step would leave a GPU idle."""
    return tensor.to(device, non_blocking=True)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """B×S×S×3 uint8 → B×3×S×S float32, (x/255 - mean)/std, in channels-last order as convolutions like it."""
    scale = sent(torch.tensor([1 / (255 * s) for s in std]), pixels.device)
    shift = sent(torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]), pixels.device)
    return (pixels * scale + shift).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Which changes a training image goes through; each image of a batch by its own lot."""

    crop: bool
    flip: bool
    colour: bool

    def __call__(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float], lot: torch.Generator) -> Tensor:
        """B×S×S×3 uint8 → B×3×S×S float32, normalised. `lot` is on the CPU, so that every device draws the same.

        Crop: a shift by up to an eighth of the size; what comes in from outside is 0 after subtracting the mean
        (iCaRL). Colour: brightness ±63, or contrast ×0.2 … 1.8 about the channel's mean, or neither, each for a third
        of the images, and then only half of them are cropped (EEIL, methods.md 1.3).
        """
        count, size = pixels.shape[:2]
        reach = size // 8 if self.crop else 0
        shift = torch.randint(-reach, reach + 1, (2, count), generator=lot)
        mirrored = torch.rand(count, generator=lot) < (0.5 if self.flip else 0.0)
        kind, amount = torch.randint(3, (count,), generator=lot), torch.rand(count, generator=lot) * 2 - 1
        stays = torch.rand(count, generator=lot) < (0.5 if self.colour else 0.0)
        shift = sent(shift.masked_fill(stays, 0), pixels.device)
        if self.colour:
            pixels = _recolour(pixels, sent(kind, pixels.device), sent(amount, pixels.device))
        images = normalise(pixels, mean, std).permute(0, 2, 3, 1)
        if not (reach or self.flip):
            return images.permute(0, 3, 1, 2)
        along = torch.arange(size, device=pixels.device)
        rows = along + shift[0, :, None]
        columns = torch.where(sent(mirrored, pixels.device)[:, None], along.flip(0), along) + shift[1, :, None]
        inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
        which = torch.arange(count, device=pixels.device)[:, None, None]
        moved = images[which, rows.clamp(0, size - 1)[:, :, None], columns.clamp(0, size - 1)[:, None, :]]
        return (moved * inside[..., None]).permute(0, 3, 1, 2)


def _recolour(pixels: Tensor, kind: Tensor, amount: Tensor) -> Tensor:
    """kind 0: as it is; 1: brightness + 63·amount; 2: contrast × (1 + 0.8·amount). Clipped to 0 … 255, still levels."""
    values, amount = pixels.float(), amount[:, None, None, None]
    mean = values.mean((1, 2), keepdim=True)
    brighter, starker = values + 63 * amount, mean + (values - mean) * (1 + 0.8 * amount)
    kind = kind[:, None, None, None]
    return torch.where(kind == 0, values, torch.where(kind == 1, brighter, starker)).clamp(0, 255)
