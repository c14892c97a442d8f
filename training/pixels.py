"""Decoded images, uint8: in memory, or in a file that is mapped there. Everything downstream takes either."""

import io
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lifelist.exporter.errors import Corrupt, Failed
from lifelist.training.memory import free_memory

SHARE = 4  # images may take one part in so many of the memory that is free: joining them takes as much once more
PASS = 8 * 2**20  # bytes of images that a pass over all of them holds


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """N×S×S×3 uint8: some of the images of a base, which may be far larger than memory, and is never copied."""

    base: Tensor  # M×S×S×3 uint8: in memory, on a GPU, or mapped
    which: Tensor | None = None  # N int64 on the CPU, places in the base; None: all of it

    def __len__(self) -> int:
        return len(self.base if self.which is None else self.which)

    @property
    def shape(self) -> torch.Size:
        """N×S×S×3."""
        return torch.Size((len(self), *self.base.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """uint8, if all is well."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that these images would take in memory."""
        return self.shape.numel()

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        """B×S×S×3 uint8, where the base is: the images with these numbers (int64) or this mask (bool), in order."""
        if self.which is not None:
            which = self.which[which]
        if isinstance(which, Tensor):  # to a GPU without waiting until it is there
            which = which.to(self.base.device, non_blocking=True)
        return self.base[which]

    def take(self, which: Tensor | slice) -> Self:
        """The images with these numbers (int64) or this mask (bool), in order: only numbers are copied."""
        numbers = torch.arange(len(self)) if self.which is None else self.which
        return type(self)(self.base, numbers[which])

    def to(self, device: torch.device) -> Self:
        """A copy on a device, which holds only these images."""
        base = torch.empty(self.shape, dtype=self.dtype, device=device)
        start = 0
        for batch in batches(self):
            base[start : start + len(batch)] = batch
            start += len(batch)
        return type(self)(base)


def batches(pixels: Pixels | Tensor) -> Iterator[Tensor]:
    """All images in order, some at a time."""
    count = max(1, PASS // max(1, pixels.shape[1:].numel()))
    return (pixels[start : start + count] for start in range(0, len(pixels), count))


class Collector:
    """Takes decoded images as they come: held in memory while they fit, in a file from then on.

    The file has no name: its room is free again with the last Pixels of it, or when the process ends, however it does.
    folder  where the file goes; None: where temporary files do
    room    bytes that may be held in memory; None: a quarter of what is free now
    """

    def __init__(self, size: int, folder: Path | None = None, room: int | None = None) -> None:
        self._shape = (size, size, 3)
        self._folder = folder
        self._room = free_memory() // SHARE if room is None else room
        self._held: list[npt.NDArray[np.uint8]] = []
        self._file: IO[bytes] | None = None
        self._count = 0

    def add(self, image: npt.NDArray[np.uint8]) -> None:
        """S×S×3. Failed if they fit neither in memory nor on the disk."""
        self._count += 1
        self._held.append(image)
        if self._file is not None or self._bytes > self._room:
            self._write()

    def pixels(self) -> Pixels:
        """All images that were added, in order; the last call."""
        if self._file is None:
            images = np.stack(self._held) if self._held else np.zeros((0, *self._shape), np.uint8)
            return Pixels(torch.from_numpy(images))
        self._file.flush()
        return Pixels(_mapped(np.memmap(self._file, np.uint8, "r", shape=(self._count, *self._shape))))

    @property
    def _bytes(self) -> int:
        return self._count * int(np.prod(self._shape))

    def _write(self) -> None:
        try:
            if self._file is None:
                if self._folder is not None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            for image in self._held:
                self._file.write(np.ascontiguousarray(image).data)
        except OSError as error:
            raise Failed(
                f"the decoded images, {self._bytes:,} bytes so far, are more than the {self._room:,} that memory "
                f"should hold, and {self._folder or tempfile.gettempdir()} does not take them: {error}. Make room "
                "there, or choose a smaller image_size"
            ) from error
        self._held.clear()


def as_npy(pixels: Pixels) -> Iterator[bytes]:
    """A NumPy file of them, in parts."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (*pixels.shape,)})
    yield header.getvalue()
    for batch in batches(pixels):
        yield batch.cpu().numpy().tobytes()


def from_npy(file: Path) -> Pixels:
    """The images in a NumPy file, which stay there until they are looked at. Corrupt if it is no such file."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise Corrupt(f"{file} is not an array of images: {error}") from error
    return Pixels(_mapped(found))


def _mapped(array: npt.NDArray[np.uint8]) -> Tensor:
    """As a tensor, which must only be read; the file may be closed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
