"""Class-incremental protocols by name: which classes arrive when, and how much may be remembered of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lifelist.exporter.errors import BadSetting
from lifelist.training.options import Precision

Order = Callable[[int], Sequence[int]]  # number of classes → their numbers in the source, in order of arrival


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the classes of a data set arrive. `base` classes first, then `step` at a time."""

    name: str
    data: str  # what the data set should be; the digits come with the product
    classes: int
    base: int
    step: int
    memory_total: int = 0
    memory_per_class: int = 0
    image_size: int = 32
    flip: bool = True
    epochs: int = 0  # of an increment; 0: as the schedule says
    precision: Precision | None = None  # None: what is quickest here

    @property
    def increments(self) -> int:
        """How many there are, the base included."""
        return 1 + (self.classes - self.base) // self.step

    @property
    def memory(self) -> str:
        """In words."""
        return memory(self.memory_total, self.memory_per_class)


def memory(total: int, per_class: int) -> str:
    """A budget in words."""
    if not (total or per_class):
        return "none"
    return f"{per_class} per class" if per_class else f"{total:,} in all"


def _cifar100() -> list[Protocol]:
    equal = [Protocol(f"cifar100-{100 // m}x{m}", "cifar100", 100, m, m, 2000) for m in (2, 5, 10, 20, 50)]
    half = [Protocol(f"cifar100-b50-{m}", "cifar100", 100, 50, m, 0, 20) for m in (1, 2, 5, 10, 25)]
    return equal + half


_DIGITS = [
    Protocol("digits", "digits", 10, 6, 2, 200, image_size=16, flip=False),  # as in the demo
    Protocol("tiny", "turned-digits", 20, 8, 4, 400, image_size=8, flip=False, epochs=8, precision="fp32"),
]
PROTOCOLS: Mapping[str, Protocol] = {p.name: p for p in (*_cifar100(), *_DIGITS)}


def drawn(seed: int) -> Order:
    """By numpy's shuffle with a seed."""
    return lambda count: [int(c) for c in np.random.RandomState(seed).permutation(count)]


facil = drawn(1993)  # 68, 56, 78, … for 100 classes; of FACIL (cifar100_icarl), PyCIL and LUCIR


def icarl(count: int) -> Sequence[int]:
    """Seed 1993 as iCaRL's own code draws: 87, 0, 52, … for 100 classes; also PODNet's and DER's first order.

    That code shuffles the 500 training images of each of 100 classes before it shuffles the classes.
    """
    lot = np.random.RandomState(1993)
    for _ in range(count):
        lot.permutation(500)
    return [int(c) for c in lot.permutation(count)]


ORDERS: Mapping[str, Order] = {"facil": facil, "icarl": icarl, "source": range}


def order(name: str) -> Order:
    """The order of that name, or `seed:N`. BadSetting says which there are."""
    if name in ORDERS:
        return ORDERS[name]
    kind, _, number = name.partition(":")
    if kind == "seed" and number.isdecimal() and int(number) < 2**32:
        return drawn(int(number))
    raise BadSetting(f"class order {name!r} does not exist; there are {', '.join(ORDERS)}, and seed:N for any number")
