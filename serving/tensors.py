"""Tensors of the Open Inference Protocol: raw, or as JSON, and back.

Raw is little-endian without padding; an element of BYTES is its length (uint32) and its bytes. Nothing is allocated by
what a shape promises, only by what has arrived.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from lifelist.exporter.errors import BadInput, TooLarge
from lifelist.exporter.ranking import best

BYTES = "BYTES"
NUMBERS = {  # datatype → how numpy writes it
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
TYPES: dict[str, set[type]] = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}}  # of JSON, by numpy's kind
MOST_DIMENSIONS = 16
MOST_ELEMENTS = 2**40

Array = npt.NDArray[Any]
Strings = list[bytes] | list[str]  # str: as it stood in JSON, or is to stand there


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named tensor; `data` holds its elements row by row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array | Strings


@dataclass(frozen=True, slots=True)
class Declared:
    """What is said of a tensor before its elements are looked at. BadInput, or TooLarge, if it cannot be.

    most_strings: elements that a tensor of BYTES may have.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    most_strings: int

    @classmethod
    def of(cls, name: Any, datatype: Any, shape: Any, most_strings: int) -> "Declared":
        """The same from values of any type, as a request has them."""
        if not isinstance(name, str):
            raise BadInput(f"the name of an input should be a string, not {name!r:.40}")
        if not isinstance(datatype, str) or datatype not in (*NUMBERS, BYTES):
            there = ", ".join(NUMBERS)
            raise BadInput(f"input {name!r:.40} is of datatype {datatype!r:.40}; there are {there} and {BYTES}")
        if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not all(map(_is_side, shape)):
            raise BadInput(
                f"the shape of {name!r:.40} should be at most {MOST_DIMENSIONS} whole numbers from 0 on, "
                f"not {shape!r:.80}"
            )
        found = cls(name, datatype, tuple(shape), most_strings)
        if found.count > MOST_ELEMENTS:
            raise TooLarge(f"{name!r:.40} of shape {shape} has {found.count:,} elements, more than any body can")
        if datatype == BYTES and found.count > most_strings:
            raise TooLarge(f"input {name!r:.40} has {found.count:,} elements; send at most {most_strings:,} at once")
        return found

    @property
    def count(self) -> int:
        """How many elements there should be."""
        return math.prod(self.shape)

    def raw(self, data: memoryview) -> Tensor:
        """The tensor whose raw elements these are. BadInput if they are not as many as its shape says."""
        if self.datatype == BYTES:
            return self._with(self._strings(data))
        kind = np.dtype(NUMBERS[self.datatype])
        if (size := self.count * kind.itemsize) != len(data):
            raise BadInput(
                f"input {self.name!r:.40} of {self.datatype} {list(self.shape)} has {size:,} bytes; "
                f"{len(data):,} were sent"
            )
        return self._with(np.frombuffer(data, kind))

    def listed(self, data: Any) -> Tensor:
        """The tensor whose elements these are as JSON has them, nested or flat. BadInput if they are not."""
        if not isinstance(data, list):
            raise BadInput(f"the data of {self.name!r:.40} should be a list, not {data!r:.40}")
        if self.datatype == "FP16":
            raise BadInput(f"input {self.name!r:.40} is FP16, which has no form in JSON; send it raw")
        found = self._elements(data)
        if len(found) != self.count:
            raise BadInput(f"the data of {self.name!r:.40} has {len(found):,} elements; its shape says {self.count:,}")
        if self.datatype != BYTES:
            return self._with(self._numbers(found))
        if not set(map(type, found)) <= {str}:
            raise BadInput(f"the data of {self.name!r:.40} should be {self.count:,} strings, as its shape says")
        return self._with(found)

    def _elements(self, data: list[Any]) -> list[Any]:
        """What stands in nested lists, row by row."""
        while data and isinstance(data[0], list):
            if set(map(type, data)) != {list} or len(set(map(len, data))) > 1:
                raise BadInput(f"the data of {self.name!r:.40} are no tensor: its rows differ in length")
            data = list(chain.from_iterable(data))
        return data

    def _with(self, data: Array | Strings) -> Tensor:
        return Tensor(self.name, self.datatype, self.shape, data)

    def _numbers(self, data: list[Any]) -> Array:
        kind = np.dtype(NUMBERS[self.datatype])
        if not set(map(type, data)) <= TYPES[kind.kind]:  # before numpy sees them, which makes texts of one length
            raise BadInput(f"the data of {self.name!r:.40} are no {self.datatype}")
        try:
            return np.array(data, kind)
        except OverflowError as error:
            limits = np.iinfo(kind) if kind.kind in "iu" else np.finfo(kind)
            raise BadInput(
                f"the data of {self.name!r:.40} run from {min(data)!s:.40} to {max(data)!s:.40}; "
                f"{self.datatype} holds {limits.min} … {limits.max}"
            ) from error

    def _strings(self, data: memoryview) -> list[bytes]:
        found: list[bytes] = []
        place = 0
        while place + 4 <= len(data) and len(found) < self.count:
            (size,) = struct.unpack_from("<I", data, place)
            if place + 4 + size > len(data):
                break
            found.append(bytes(data[place + 4 : place + 4 + size]))
            place += 4 + size
        if len(found) != self.count or place != len(data):
            raise BadInput(
                f"input {self.name!r:.40} should be {self.count:,} elements, each its length (4 bytes, little-endian) "
                f"and its bytes; of {len(data):,} bytes {place:,} are {len(found):,} such elements"
            )
        return found


def packed(tensor: Tensor) -> bytes:
    """A tensor's elements, raw."""
    if isinstance(tensor.data, np.ndarray):
        return tensor.data.astype(NUMBERS[tensor.datatype], copy=False).tobytes()
    encoded = [element.encode() if isinstance(element, str) else element for element in tensor.data]
    return b"".join(part for element in encoded for part in (struct.pack("<I", len(element)), element))


def listed(tensor: Tensor) -> list[Any]:
    """A tensor's elements as JSON has them, flat."""
    if isinstance(tensor.data, np.ndarray):
        found: list[Any] = tensor.data.ravel().tolist()
        return found
    return [element if isinstance(element, str) else element.decode() for element in tensor.data]


def best_of(values: Array, labels: Sequence[str], count: int) -> list[str]:
    """The classification extension: for each row of values the `count` highest, "value:column:label", best first."""
    order = best(values, count)
    highest = np.take_along_axis(values, order, axis=1)
    return [
        f"{value:.6f}:{column}:{labels[column]}"
        for columns, row in zip(order.tolist(), highest.tolist(), strict=True)
        for column, value in zip(columns, row, strict=True)
    ]


def _is_side(side: Any) -> bool:
    return type(side) is int and 0 <= side < 2**31
