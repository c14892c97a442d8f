"""Sums over the images of each class in a frozen backbone's features: all that nearest mean and ridge need of them.

They are sums, so that images and classes may come in any order and grouping, and a class may go as if it had never
come. They take (D+1)(D+2)/2 + D numbers of 8 bytes for each class: 18 kB for ResNet-32 (D = 64), 17 MB for D = 2048.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lifelist.exporter.errors import Corrupt
from lifelist.training import checkpoint
from lifelist.training.evaluate import unit


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Of one class, over every image ever seen of it."""

    count: int  # images
    directions: Tensor  # D float64: Σ f/‖f‖
    products: Tensor  # (D+1)(D+2)/2 float64: the upper triangle of Σ x·xᵀ with x = [f, 1], row by row

    @classmethod
    def of(cls, *views: Tensor) -> Self:
        """views: N×D raw features each, of the same N ≥ 1 images: plain, and mirrored where that counts too."""
        x = [torch.cat([view.double(), torch.ones(len(view), 1, dtype=torch.float64)], 1) for view in views]
        products = torch.stack([one.T @ one for one in x]).mean(0)
        row, column = torch.triu_indices(*products.shape)
        directions = torch.stack([unit(view.double()).sum(0) for view in views]).mean(0)
        return cls(len(views[0]), directions, products[row, column])

    def __add__(self, other: Self) -> Self:
        """Of the images of both."""
        sums = self.directions + other.directions, self.products + other.products
        return type(self)(self.count + other.count, *sums)

    @property
    def mean(self) -> Tensor:
        """The class mean, D float32, of length 1 (evaluate.class_mean)."""
        return unit(self.directions).float()


Statistics = Mapping[int, Sums]  # by class id
LEAST_PENALTY = 1e-12  # where all features are 0


def add(statistics: Statistics, class_id: int, more: Sums) -> Statistics:
    """With more images of a class, be it new or known."""
    return {**statistics, class_id: statistics[class_id] + more if class_id in statistics else more}


def without(statistics: Statistics, class_id: int) -> Statistics:
    """As if there had never been an image of the class."""
    return {known: sums for known, sums in statistics.items() if known != class_id}


def solve(classes: Sequence[Sums], rho: float) -> tuple[Tensor, Tensor]:
    """Ridge regression of the classes' indicators on features: (weight C×D, bias C), float64, exact.

    Minimises Σ_c (1/n_c) Σ_{images of c} ‖W·f + b - e_c‖² + λ‖W‖²: each class weighs the same, however many images it
    has. λ is rho times the mean of the D diagonal elements, so that the scale of the features does not matter.
    """
    dim = len(classes[0].directions)
    row, column = torch.triu_indices(dim + 1, dim + 1)
    products = torch.zeros(len(row), dtype=torch.float64)
    for sums in classes:
        products.add_(sums.products, alpha=1 / sums.count)
    gram = torch.empty(dim + 1, dim + 1, dtype=torch.float64)
    gram[row, column] = gram[column, row] = products
    last = (column == dim).nonzero()[:, 0]  # the products with 1: Σ x
    wanted = torch.stack([sums.products[last] / sums.count for sums in classes], 1)  # (D+1)×C
    gram.diagonal()[:-1] += max(rho * float(gram.diagonal()[:-1].mean()), LEAST_PENALTY)
    solution = torch.cholesky_solve(wanted, torch.linalg.cholesky(gram))
    return solution[:-1].T.contiguous(), solution[-1].contiguous()


def as_bytes(statistics: Statistics) -> bytes:
    """As safetensors; the same statistics always give the same bytes."""
    known = sorted(statistics)
    return checkpoint.pack(
        {
            "class_ids": torch.tensor(known),
            "counts": torch.tensor([statistics[c].count for c in known]),
            "directions": torch.stack([statistics[c].directions for c in known]),
            "products": torch.stack([statistics[c].products for c in known]),
        }
    )


def from_bytes(data: bytes, dim: int) -> Statistics:
    """What `as_bytes` wrote, of features of `dim` numbers; Corrupt if it is not that."""
    found = checkpoint.unpack(data, "the statistics")
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    count = len(found.get("class_ids", ()))
    wanted: dict[str, tuple[int, ...]] = {"class_ids": (count,), "counts": (count,)}
    wanted |= {"directions": (count, dim), "products": (count, (dim + 1) * (dim + 2) // 2)}
    if shapes != wanted:
        raise Corrupt(f"the statistics should hold {wanted} for features of {dim} numbers; they hold {shapes}")
    columns = found["class_ids"].tolist(), found["counts"].tolist(), found["directions"], found["products"]
    return {class_id: Sums(*sums) for class_id, *sums in zip(*columns, strict=True)}
