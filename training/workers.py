"""Several processes that train as one, over torch.distributed; whoever starts them makes the process group.

Each draws the same batches from the same seeds, and takes its share of every batch: only sums need to be exchanged.
Without a process group there is one worker, and nothing here does anything. Unavailable: another worker is gone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lifelist.exporter.errors import Unavailable


def count() -> int:
    """How many workers there are, this one included."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this worker, from 0. The first one, the lead, alone writes files and tells events."""
    return distributed.get_rank() if count() > 1 else 0


def shared_sum(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over all workers of each tensor, whose shapes are the same everywhere; the same bits everywhere."""
    if count() == 1:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one exchange instead of a hundred
    _together(distributed.all_reduce, flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [torch.empty_like(t).copy_(part.view(t.shape)) for t, part in zip(tensors, parts, strict=True)]


@torch.no_grad()
def same_everywhere(module: nn.Module) -> None:
    """Give every worker the parameters and buffers of the lead: batch-norm's running statistics differ until then."""
    if count() == 1:
        return
    for tensor in module.state_dict().values():
        flat = tensor.reshape(-1).clone()  # backends want plain memory; the module's is channels-last
        _together(distributed.broadcast, flat, 0)
        tensor.copy_(flat.view(tensor.shape))


def meet() -> None:
    """Wait until every worker is here."""
    if count() > 1:
        _together(distributed.barrier)


def _together(what: Callable[..., Any], *arguments: Any) -> None:
    try:
        what(*arguments)
    except RuntimeError as error:  # so says torch whatever became of the other
        raise Unavailable(f"another worker of this increment is gone, or out of reach: {error}") from error
