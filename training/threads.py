"""How work outside the training loop uses a CPU's cores: one thread in each operation.

Several threads in one operation wait for one another at its end. In small operations that takes longer than the work,
and a hundred times longer as soon as one of them has to share its core with another program.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Found = TypeVar("Found")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Operations of this thread take one core as long as the block lasts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(function: Callable[[Part], Found], parts: Sequence[Part], cores: int) -> list[Found]:
    """`function` of each part, in order; each of `cores` takes a part at a time."""
    with one_thread(), ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, parts))
