"""Published figures for the protocols of protocols.py, in %: where they stand, and in what their setting differs."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """A table of a paper, and what every row of it shares."""

    cite: str
    order: str  # the class order it used, as protocols.ORDERS names it; "" if another, or several
    differs: str  # from what `lifelist bench accuracy` does


@dataclass(frozen=True, slots=True)
class Figure:
    """One method's row. Averages are over increments, the base included or not; None where it is not printed."""

    protocol: str
    method: str
    source: str
    average: float | None = None  # base included
    average_without_base: float | None = None
    last: float | None = None
    curve: tuple[float, ...] = ()  # after each increment


SOURCES: Mapping[str, Source] = {
    "CILS": Source(
        "Zhou et al., Class-Incremental Learning: A Survey, TPAMI 2024, table II and tables 19 to 22",
        "facil",
        "PyCIL's code: brightness jitter, 200 then 170 epochs, its BiC has its hold-out in training and a second "
        "softmax in stage 2, its iCaRL classifies by softmax",
    ),
    "WA": Source("Zhao et al., WA, CVPR 2020, table 4", "", "rows of other methods are the authors' own runs of them"),
    "iCaRL": Source("Rebuffi et al., iCaRL, CVPR 2017, table 1", "", "mean of 10 class orders; memory rounded up"),
    "BiC": Source("Wu et al., BiC, CVPR 2019, table 3", "", "weight decay larger in the first increments"),
    "PODNet": Source("Douillard et al., PODNet, ECCV 2020, table 1", "", "mean of 3 class orders"),
}


def _curve(protocol: str, method: str, source: str, text: str, average: float | None = None) -> Figure:
    """A printed curve. average: as printed beside it; else that of the curve."""
    points = tuple(map(float, text.split()))
    if average is None:
        average = round(sum(points) / len(points), 2)
    without = round(sum(points[1:]) / (len(points) - 1), 2)
    return Figure(protocol, method, source, average, without, points[-1], points)


_TEN, _FIVE, _TWENTY, _HALF, _HALF25 = (
    "cifar100-10x10",
    "cifar100-20x5",
    "cifar100-5x20",
    "cifar100-b50-10",
    "cifar100-b50-25",
)

FIGURES: tuple[Figure, ...] = (
    Figure(_TEN, "finetune", "CILS", 26.25, last=9.09),
    _curve(_TEN, "replay", "CILS", "90.80 78.65 71.40 62.98 57.86 52.53 50.83 45.15 41.89 41.01", 59.31),
    _curve(_TEN, "icarl", "CILS", "90.80 78.35 73.97 67.65 63.94 59.88 57.77 52.80 51.04 49.52", 64.42),
    _curve(_TEN, "bic", "CILS", "88.80 76.45 72.77 67.88 64.36 61.90 59.17 55.98 52.70 50.79", 65.08),
    _curve(_TEN, "wa", "CILS", "90.80 79.50 75.10 69.95 67.50 63.38 61.44 57.08 53.81 52.30", 67.09),
    Figure(_TEN, "icarl", "iCaRL", 64.1),
    Figure(_TEN, "icarl", "WA", average_without_base=61.6),
    Figure(_TEN, "eeil", "WA", average_without_base=63.6),
    Figure(_TEN, "bic", "WA", average_without_base=63.5),
    Figure(_TEN, "wa", "WA", average_without_base=64.5),
    Figure(_TEN, "joint", "iCaRL", last=68.6),
    Figure(_TEN, "joint", "WA", last=70.1),
    Figure(_FIVE, "finetune", "CILS", 17.59, last=4.83),
    Figure(_FIVE, "replay", "CILS", 58.20, last=38.69),
    _curve(
        _FIVE,
        "icarl",
        "CILS",
        "97.00 89.80 81.93 75.45 73.80 72.37 68.63 64.50 63.04 61.44 "
        "58.98 58.18 56.49 54.20 52.55 50.92 49.25 48.57 47.57 45.12",
        63.51,
    ),
    _curve(
        _FIVE,
        "bic",
        "CILS",
        "97.40 89.20 79.60 73.50 72.24 69.03 66.63 63.95 63.93 62.06 "
        "60.05 56.92 55.18 53.07 51.59 50.06 48.38 46.87 44.83 43.08",
        62.38,
    ),
    _curve(
        _FIVE,
        "wa",
        "CILS",
        "97.60 89.20 80.47 75.30 73.24 70.93 68.77 64.88 64.07 63.64 "
        "61.36 59.23 57.82 57.07 55.24 53.30 51.55 50.73 50.09 48.46",
        64.65,
    ),
    Figure(_FIVE, "icarl", "iCaRL", 61.2),
    Figure(_FIVE, "icarl", "WA", average_without_base=59.7),
    Figure(_FIVE, "eeil", "WA", average_without_base=63.4),
    Figure(_FIVE, "bic", "WA", average_without_base=62.1),
    Figure(_FIVE, "wa", "WA", average_without_base=62.6),
    _curve(_TWENTY, "bic", "BiC", "84.00 74.69 67.93 61.25 56.69"),
    _curve(_TWENTY, "wa", "WA", "83.5 75.5 68.7 63.1 59.2"),
    Figure(_TWENTY, "icarl", "iCaRL", 67.2),
    Figure(_TWENTY, "icarl", "WA", average_without_base=63.3),
    Figure(_TWENTY, "eeil", "WA", average_without_base=63.7),
    Figure("cifar100-50x2", "icarl", "iCaRL", 57.0),
    Figure("cifar100-2x50", "icarl", "iCaRL", 68.6),
    Figure("cifar100-2x50", "icarl", "WA", average_without_base=62.0),
    Figure("cifar100-2x50", "eeil", "WA", average_without_base=60.8),
    Figure("cifar100-2x50", "bic", "WA", average_without_base=64.9),
    Figure("cifar100-2x50", "wa", "WA", average_without_base=65.1),
    _curve(_HALF, "icarl", "CILS", "76.52 66.05 62.97 56.90 53.86 52.04"),
    _curve(_HALF, "bic", "CILS", "74.14 68.62 62.06 58.29 53.77 49.19"),
    _curve(_HALF, "wa", "CILS", "76.54 68.65 66.43 60.74 57.68 55.85"),
    _curve(_HALF25, "icarl", "CILS", "76.52 64.88 57.59"),
    _curve(_HALF25, "bic", "CILS", "74.68 65.91 59.77"),
    _curve(_HALF25, "wa", "CILS", "76.54 66.57 61.49"),
    Figure("cifar100-b50-1", "icarl", "PODNet", 44.20),
    Figure("cifar100-b50-1", "bic", "PODNet", 47.09),
    Figure("cifar100-b50-2", "icarl", "PODNet", 50.60),
    Figure("cifar100-b50-2", "bic", "PODNet", 48.96),
    Figure("cifar100-b50-5", "icarl", "PODNet", 53.78),
    Figure("cifar100-b50-5", "bic", "PODNet", 53.21),
    Figure(_HALF, "icarl", "PODNet", 58.08),
    Figure(_HALF, "bic", "PODNet", 56.86),
)


def figures(protocol: str, method: str) -> list[Figure]:
    """What was published of a method under a protocol, in order of the table above."""
    return [figure for figure in FIGURES if (figure.protocol, figure.method) == (protocol, method)]
