"""Tensors on disk: safetensors with one JSON header, written whole or not at all. Never pickle."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lifelist.exporter.errors import Corrupt
from lifelist.training.pixels import Pixels, batches, mapped

_DTYPES = {"U8": (np.dtype(np.uint8), torch.uint8), "I64": (np.dtype("<i8"), torch.int64)}  # of images
_HEADER = "lifelist"  # one metadata key: safetensors writes several in any order, and files would differ


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Temporary name, sync, rename: a reader sees the old file or the new one, whatever is killed when.

    data: all of it, or parts, one after the other, of which only one is held at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_halves(folder: Path) -> None:
    """Remove what writers that were killed left behind in a folder that nobody else writes to now."""
    for file in folder.glob(".*.safetensors.*"):
        file.unlink(missing_ok=True)


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> bytes:
    """The same tensors and header always give the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    metadata = None if header is None else {_HEADER: json.dumps(header, sort_keys=True)}
    data: bytes = safetensors.torch.save(plain, metadata)
    return data


def parts(tensors: Mapping[str, Tensor | Pixels]) -> Iterator[bytes]:
    """A safetensors file in parts: like `pack` without a header, but for tensors that may be larger than memory."""
    facts: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        shape, dtype = list(tensor.shape), next(n for n, (_, d) in _DTYPES.items() if d == tensor.dtype)
        facts[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(facts, sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for tensor in tensors.values():
        for part in batches(tensor) if isinstance(tensor, Pixels) else [tensor]:
            yield part.cpu().contiguous().numpy().tobytes()


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each mapped into memory: only to be read. Corrupt if it is not such a file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            facts = json.loads(file.read(length))
        found = {}
        for name, fact in facts.items():
            start, end = fact["data_offsets"]
            dtype = _DTYPES[fact["dtype"]][0]
            if end - start != dtype.itemsize * math.prod(fact["shape"]):
                raise ValueError(f"{name} is not as long as its shape says")
            found[name] = mapped(path, dtype, fact["shape"], 8 + length + start)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Corrupt(f"{path} is not a safetensors file of ours: {error!r}") from error
    return found


def unpack(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of `pack`; Corrupt if the bytes are not safetensors."""
    try:
        found: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise Corrupt(f"{where} is not a safetensors file: {error}") from error
    return found


def header(data: bytes, where: str) -> dict[str, Any]:
    """The JSON header of `pack`; Corrupt if there is none."""
    try:
        length = int.from_bytes(data[:8], "little")
        found = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER])
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{where} has no header of ours: {error!r}") from error
    if not isinstance(found, dict):
        raise Corrupt(f"{where} has a header that is not an object: {found!r}")
    return found


def optimiser_state(optimiser: torch.optim.SGD, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The momentum of each parameter, by its name."""
    state = {names[p]: optimiser.state[p].get("momentum_buffer") for g in optimiser.param_groups for p in g["params"]}
    return {f"momentum.{name}": buffer for name, buffer in state.items() if buffer is not None}


def restore_optimiser(optimiser: torch.optim.SGD, names: Mapping[Tensor, str], found: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_state` took out."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if (buffer := found.get(f"momentum.{names[parameter]}")) is not None:
                restored = torch.empty_like(parameter)  # keeps the parameter's memory order
                optimiser.state[parameter]["momentum_buffer"] = restored.copy_(buffer)
