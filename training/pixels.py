"""Decoded images, uint8: in memory, or in a file that is mapped there. Everything downstream takes either."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lifelist.exporter.errors import Failed
from lifelist.training.memory import free_memory

SHARE = 4  # images may take one part in so many of the memory that is free: joining them takes as much once more
BATCH = 256  # images that a pass over all of them holds: a whole class would not fit a GPU (methods.md I10)


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """N×S×S×3 uint8: some of the images of a base, which may be far larger than memory, and is never copied."""

    base: Tensor  # M×S×S×3 uint8, in memory, on a GPU, or a mapped file: see `mapped`
    which: Tensor | None = None  # N int64 on the CPU, places in the base; None: all of it

    def __len__(self) -> int:
        return len(self.base if self.which is None else self.which)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, 3)."""
        return (len(self), *self.base.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """uint8, if all is well."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that these images would take in memory."""
        return len(self) * self.base[:1].numel() if len(self) else 0

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        """B×S×S×3 uint8 in memory: the images with these numbers (int64) or this mask (bool), in that order."""
        return self.base[which if self.which is None else self.which[which]]

    def take(self, which: Tensor) -> Self:
        """The images with these numbers (int64) or this mask (bool): only numbers are copied."""
        if which.dtype == torch.bool:
            which = which.nonzero()[:, 0]
        return type(self)(self.base, which if self.which is None else self.which[which])

    def to(self, device: torch.device) -> Self:
        """A copy on a device, which holds only these images."""
        base = torch.empty(self.shape, dtype=self.dtype, device=device)
        for number, batch in enumerate(batches(self)):
            base[number * BATCH :][: len(batch)] = batch
        return type(self)(base)


def batches(pixels: Pixels | Tensor) -> Iterator[Tensor]:
    """All images in order, at most BATCH at a time."""
    return (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))


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

    def add(self, images: npt.NDArray[np.uint8]) -> None:
        """B×S×S×3. Failed if they fit neither in memory nor on the disk."""
        self._count += len(images)
        self._held.append(images)
        if self._file is not None or self._bytes > self._room:
            self._write()

    def pixels(self) -> Pixels:
        """All images that were added, in order; the last call."""
        if self._file is None:
            return Pixels(torch.from_numpy(np.concatenate([np.zeros((0, *self._shape), np.uint8), *self._held])))
        return Pixels(mapped(self._file, np.uint8, (self._count, *self._shape)))

    @property
    def _bytes(self) -> int:
        return self._count * int(np.prod(self._shape))

    def _write(self) -> None:
        try:
            if self._file is None:
                if self._folder is not None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder)
            for images in self._held:
                self._file.write(np.ascontiguousarray(images).data)
            self._file.flush()
        except OSError as error:
            raise Failed(
                f"the decoded images, {self._bytes:,} bytes so far, are more than the {self._room:,} that memory "
                f"should hold, and {self._folder or tempfile.gettempdir()} does not take them: {error}. Make room "
                "there, or choose a smaller image_size"
            ) from error
        self._held.clear()


def mapped(file: Path | IO[bytes], dtype: npt.DTypeLike, shape: Sequence[int], offset: int = 0) -> Tensor:
    """A tensor whose numbers stay in the file until they are looked at; only to be read. The file may be closed."""
    if 0 in shape:
        return torch.from_numpy(np.zeros(shape, dtype))
    found = np.memmap(file, dtype, "r", offset=offset, shape=tuple(shape))  # type: ignore[call-overload]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(found)
