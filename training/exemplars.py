"""The exemplar memory: which images of a known class are kept for replay, and how many."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lifelist.exporter.errors import BadInput
from lifelist.training.options import TrainingOptions
from lifelist.training.threads import one_thread


@one_thread()
def herd(features: Tensor, m: int) -> Tensor:
    """The m rows whose running mean stays closest to the class mean, best first (iCaRL, algorithm 4).

    features: N×D float32, unit rows. Returns m int64 row numbers, all different; a prefix of them is a smaller memory.
    ‖k·μ - S - x‖² = const - 2x·(k·μ - S) for unit x, so that each pick is one matrix-vector product.
    """
    _check(features, m)
    mean = features.mean(0)
    wanted, picked = mean.clone(), []
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for _ in range(m):
        best = int((features @ wanted).masked_fill(~free, -torch.inf).argmax())
        picked.append(best)
        free[best] = False  # the paper means distinct images; the authors' code may pick one twice
        wanted += mean - features[best]  # later picks make up for what earlier ones missed
    return torch.tensor(picked, dtype=torch.int64)


def nearest(features: Tensor, m: int) -> Tensor:
    """The m rows closest to the class mean, best first: often near-duplicates of each other, and not herding.

    features: N×D float32, unit *rows* (E6: normalising columns instead is another rule). Returns m int64.
    """
    _check(features, m)
    return (features - features.mean(0)).square().sum(1).argsort(stable=True)[:m].cpu()


def at_random(count: int, m: int, lot: torch.Generator) -> Tensor:
    """m of `count` rows by lot, m int64; a prefix of them is a smaller memory."""
    if not 1 <= m <= count:
        raise BadInput(f"asked for {m} exemplars of a class with {count} images; ask for 1 … {count}")
    return torch.randperm(count, generator=lot)[:m]


def _check(features: Tensor, m: int) -> None:
    if not 1 <= m <= len(features):
        raise BadInput(f"asked for {m} exemplars of a class with {len(features)} images; ask for 1 … {len(features)}")


SELECTIONS: Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "herding": lambda features, m, lot: herd(features, m),
    "nearest": lambda features, m, lot: nearest(features, m),
    "random": lambda features, m, lot: at_random(len(features), m, lot),
}


def shares(options: TrainingOptions, classes: int, *, reserved: bool) -> tuple[int, int]:
    """(exemplars, hold-out images) of each class when `classes` share the memory: together they are its quota.

    reserved  whether hold-out images were set apart on arrival at all; without them, the whole quota is exemplars.
    A tenth of the quota, at least one, is hold-out (Wu et al. 2019, 6.4: 9:1 is best), as long as that leaves an
    exemplar: v = max(1, floor(0.1·floor(K/n))). It counts inside the budget.
    """
    quota = options.quota(classes)
    holdout = min(max(1, quota // 10), max(quota - 1, 0)) if reserved else 0
    return quota - holdout, holdout
