"""Tensors on disk: safetensors with one JSON header, written whole or not at all. Never pickle."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lifelist.exporter.errors import Corrupt

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
    for file in folder.glob(".*.*.*"):
        file.unlink(missing_ok=True)


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> bytes:
    """The same tensors and header always give the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    metadata = None if header is None else {_HEADER: json.dumps(header, sort_keys=True)}
    data: bytes = safetensors.torch.save(plain, metadata)
    return data


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
