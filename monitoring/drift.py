"""Whether images differ from those a version was held against: tests, their correction for being many, and hysteresis.

Like is compared with like: from reference and window as many images are taken of each class that they were answered as.
So a change of which classes come is found by the test of class shares, and disturbs no other. Windows are so many
answers long, not so many seconds: what a test can find is the same by day and by night.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.spatial import distance

from lifelist.exporter.fold import Floats
from lifelist.exporter.imagery import LOOKS
from lifelist.monitoring.seen import Column, Seen

OF_IMAGES = ("embedding", "confidence", "margin", "unknown", *LOOKS)
TESTS = (*OF_IMAGES, "classes")
LEAST = 30  # images of each side, to test anything
MOST = 500  # images of each side go into a test; more would find differences that nobody cares for
PERMUTATIONS = 999
STRANGE = 0.05  # share of held-out images that look so unknown
BATCH = 100  # of them at once, where there are many classes
EXPECTED = 5.0  # images of the rarest class, for the distribution of χ² to be that of the statistic
KEPT = 0.98  # of the answers before, with each window: of those fifty windows ago a third are left


@dataclass(frozen=True, slots=True)
class Tested:
    """One test of one window."""

    test: str
    images: int  # of each side
    score: float  # how different: 0 not at all
    p_value: float
    rejected: bool = False  # after the correction


def compare(reference: Seen, window: Seen, random: np.random.Generator) -> list[Tested]:
    """All tests of what single images show; none where fewer than LEAST of each side are comparable."""
    pair = matched(reference.best, window.best, random)
    if len(pair[0]) < LEAST:
        return []
    then, now = reference.of(pair[0]), window.of(pair[1])
    score, p_value = mmd(then.embedding, now.embedding, then.best, random)
    found = [Tested("embedding", len(then), score, p_value)]
    columns = {name: (getattr(then, name), getattr(now, name)) for name in ("confidence", "margin")}
    columns |= {name: (then.looks[:, k], now.looks[:, k]) for k, name in enumerate(LOOKS)}
    for name, (one, other) in columns.items():
        if not (np.isnan(one).any() or np.isnan(other).any()):  # a version that has not got it
            statistic, p_value = stats.ks_2samp(one, other, method="asymp")
            found.append(Tested(name, len(one), float(statistic), float(p_value)))
    if not (np.isnan(then.unknown).any() or np.isnan(now.unknown).any()):
        found.append(_unknown(then.unknown, now.unknown))
    return found


def _unknown(then: Column, now: Column) -> Tested:
    """Whether more images look unknown, by Fisher's exact test: a new class is in the tail, which KS hardly weighs."""
    strange = [int((side > 1 - STRANGE).sum()) for side in (now, then)]
    table = [[count, len(now) - count] for count in strange]
    p_value = stats.fisher_exact(table, alternative="greater").pvalue
    return Tested("unknown", len(now), max(0, strange[0] - strange[1]) / len(now), float(p_value))


def matched(
    one: npt.NDArray[np.int64], other: npt.NDArray[np.int64], random: np.random.Generator
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places in both, drawn at random, so that both have as many of each class, in the same order; MOST at most."""
    pairs: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
    for class_id in np.intersect1d(one, other):
        places = [random.permutation(np.flatnonzero(side == class_id)) for side in (one, other)]
        count = min(map(len, places))
        pairs.append((places[0][:count], places[1][:count]))
    if not pairs:
        nothing = np.zeros(0, np.intp)
        return nothing, nothing
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    chosen = np.sort(random.permutation(len(first))[:MOST])
    return first[chosen], second[chosen]


def mmd(one: Floats, other: Floats, classes: npt.NDArray[np.int64], random: np.random.Generator) -> tuple[float, float]:
    """(maximum mean discrepancy, p-value) of two sets M×D whose rows k are of one class (Gretton et al., JMLR 2012).

    Gaussian kernel, as wide as the median distance within a class: beside that between classes, news in one are small.
    The p-value is that of permutations which exchange rows within a class only: how many there are of each was chosen.
    """
    both = np.concatenate([one, other]).astype(np.float64)
    squared = np.maximum(distance.cdist(both, both, "sqeuclidean"), 0)
    of_class = np.concatenate([classes, classes])
    within = squared[np.triu(of_class[:, None] == of_class, 1)]
    width = float(np.median(within)) or 1.0
    kernel = np.exp(-squared / width)
    np.fill_diagonal(kernel, 0)  # no image is compared with itself
    signs = np.empty((PERMUTATIONS + 1, len(both)))
    signs[0] = np.repeat([1.0, -1.0], len(one))
    for class_id in np.unique(classes):
        places = np.flatnonzero(of_class == class_id)
        signs[1:, places] = random.permuted(np.tile(signs[0, places], (PERMUTATIONS, 1)), axis=1)
    found = np.einsum("pn,pn->p", signs @ kernel, signs) / len(one) ** 2
    as_extreme = int((found[1:] >= found[0] - 1e-12).sum())
    m = len(one)
    within, between = kernel[:m, :m].sum() + kernel[m:, m:].sum(), kernel[:m, m:].sum()
    unbiased = within / (m * (m - 1)) - 2 * between / m**2  # eq. 3
    return float(np.sqrt(max(0.0, unbiased))), (1 + as_extreme) / (PERMUTATIONS + 1)


def shares(
    then: Mapping[int, int], now: Mapping[int, int], known: Sequence[int], random: np.random.Generator
) -> Tested | None:
    """Whether classes come in other shares: counts by class id, of classes that both sides know. None: too few.

    χ²; where a class is too rare for its distribution, by tables drawn at random with the same sums, so that a thousand
    classes of which each comes now and then are tested, too.
    """
    counts = np.array([[side.get(class_id, 0) for class_id in known] for side in (then, now)])
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2 or counts.sum(axis=1).min() < LEAST:
        return None
    expected = counts.sum(axis=0) * counts.sum(axis=1).min() / counts.sum()
    drawn = stats.MonteCarloMethod(PERMUTATIONS, batch=BATCH, rng=random) if expected.min() < EXPECTED else None
    p_value = float(stats.chi2_contingency(counts, correction=False, method=drawn).pvalue)
    with np.errstate(invalid="ignore"):  # of equal shares rounding makes the root of less than nothing, NaN
        score = float(np.nan_to_num(distance.jensenshannon(*counts, base=2)))
    return Tested("classes", int(counts[1].sum()), score, p_value)


def corrected(found: Sequence[Tested], rate: float) -> list[Tested]:
    """The same, with those rejected that Benjamini & Hochberg's procedure (1995) rejects at this rate."""
    if not found:
        return []
    adjusted = stats.false_discovery_control([one.p_value for one in found])
    return [replace(one, rejected=bool(p <= rate)) for one, p in zip(found, adjusted, strict=True)]


@dataclass(frozen=True, slots=True)
class Alarm:
    """Whether something is wrong. It takes several looks in a row to say so, and several to take it back."""

    raised: bool = False
    in_a_row: int = 0  # looks that spoke for the other state

    def after(self, rejected: bool, raise_after: int, clear_after: int) -> "Alarm":
        """What it is after one more look."""
        if rejected == self.raised:
            return Alarm(self.raised)
        if self.in_a_row + 1 >= (raise_after if rejected else clear_after):
            return Alarm(rejected)
        return Alarm(self.raised, self.in_a_row + 1)


class Past:
    """Of which classes the answers before were: what the shares of a window are held against.

    Windows that may yet raise an alarm are not part of it, so that none hides another. The rest is forgotten answer by
    answer and by chance, so that what is left is a fair sample of what was answered.
    """

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self._latest: list[Counter[int]] = []

    def add(self, window: Counter[int], raise_after: int, random: np.random.Generator) -> None:
        """One more window; raise_after: so many in a row may raise an alarm."""
        self._latest.append(window)
        if len(self._latest) >= raise_after:
            left = {class_id: int(random.binomial(count, KEPT)) for class_id, count in self.counts.items()}
            self.counts = Counter({class_id: count for class_id, count in left.items() if count})
            self.counts.update(self._latest.pop(0))


def counted(best: npt.NDArray[np.int64]) -> Counter[int]:
    """Images by the class that they were answered as."""
    return Counter(best.tolist())
