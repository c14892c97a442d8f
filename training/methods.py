"""The methods, as a table of four loss terms. A new method is a row; the one loop (loop.py) reads it. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lifelist.exporter.manifest import AnswerKind

ScheduleName = Literal["paper", "short"]
Shape = Literal["steps", "one_cycle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long, and how fast. SGD with momentum throughout."""

    epochs: int
    batch_size: int = 128
    least_steps: int = 1  # an epoch of fewer takes smaller batches, so that few images are learned too (loop.fitted)
    few_epochs: float = 1.0  # times as many epochs, where one has few steps (loop.FEW_STEPS) …
    few_rate: float = 1.0  # … and times the learning rate
    learning_rate: float  # at the start ("steps"), or the peak ("one_cycle": linear warm-up, then half a cosine to 0)
    shape: Shape = "steps"
    milestones: tuple[int, ...] = ()  # after these epochs …
    factor: float = 0.1  # … the learning rate is multiplied by this
    momentum: float = 0.9
    weight_decay: float = 2e-4
    decays_biases: bool = True  # False: weights only, neither biases nor batch-norm
    views: int = 1  # passes over the images in one epoch, each with its own augmentation
    colour: bool = False  # brightness or contrast besides crop and flip
    drops_last: bool = False  # whether a last batch that is not full is left out
    zooms: tuple[float, ...] = (1.0,)  # of the image's size, in stretches of equally many epochs: small ones are quick


@dataclass(frozen=True, slots=True)
class Schedules:
    """Of the base, of an increment, and of balanced fine-tuning after it (for the methods that do it)."""

    base: Schedule
    increment: Schedule
    balanced: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table."""

    terms: tuple[bool, bool, bool, bool]  # classify new, distil new, classify old, distil old
    form: str  # forms.FORMS: how the two kinds of loss are computed
    weights: Callable[[int, int], tuple[float, float]]  # (n old, m new) → weight of classifying, of distilling
    rebalance: str  # rebalance.REBALANCE: what corrects the bias to new classes after training
    holdout: bool  # whether that needs images that were never trained on, reserved on arrival
    afresh: bool  # whether an increment starts from new weights, not from the teacher's
    keeps_all: bool  # whether every image of a known class is kept, whatever the memory's budget
    frozen: bool  # whether only a base trains its backbone: the rebalance makes every last layer, from statistics.py
    answers_by: AnswerKind
    schedules: Mapping[ScheduleName, Schedules]

    @property
    def distils(self) -> bool:
        """Whether a teacher is asked at all."""
        return self.terms[1] or self.terms[3]

    @property
    def replays(self) -> bool:
        """Whether images of old classes are trained on at all."""
        return self.terms[2] or self.terms[3]


def by_share(n: int, m: int) -> tuple[float, float]:
    """λ = n/(n+m) weighs distilling, 1-λ classifying (Wu et al. 2019, eq. 3): for increments of any size (B7, B20)."""
    distil = n / (n + m)
    return 1 - distil, distil


def in_full(n: int, m: int) -> tuple[float, float]:
    """Weight 1 for each (EEIL, iCaRL)."""
    return 1.0, 1.0


# As the authors trained on CIFAR-100 (methods.md 1.2 to 1.4); EEIL's milestones of the base are ours, in proportion.
_BIC = Schedule(epochs=250, learning_rate=0.1, milestones=(100, 150, 200))
_EEIL_BASE = Schedule(epochs=100, learning_rate=0.1, milestones=(25, 50, 75), weight_decay=1e-4, views=12, colour=True)
_EEIL = Schedule(epochs=40, learning_rate=0.1, milestones=(10, 20, 30), weight_decay=1e-4, views=12, colour=True)
_EEIL_TUNE = Schedule(epochs=30, learning_rate=0.01, milestones=(10, 20), weight_decay=1e-4, views=12, colour=True)
_ICARL = Schedule(
    epochs=70,
    learning_rate=2.0,
    milestones=(49, 63),
    factor=0.2,
    weight_decay=2e-5,  # 1e-5·Σw² in the authors' code
    decays_biases=False,
    drops_last=True,
)

# For two cores: an increment starts from the teacher, so that a few epochs do, with one warm-up and one decay; most of
# them see small images.
_SHORT_BASE = Schedule(
    epochs=30,
    batch_size=64,
    least_steps=8,
    learning_rate=0.2,
    shape="one_cycle",
    weight_decay=5e-4,
    few_rate=0.5,
    zooms=(0.5, 0.5, 0.75, 1.0),
)
_SHORT = replace(_SHORT_BASE, epochs=16, few_epochs=1.5)
_SHORT_TUNE = Schedule(epochs=6, batch_size=64, learning_rate=0.01, milestones=(2, 4), weight_decay=5e-4)
# iCaRL's loss is divided by 100 (forms.SIGMOID_WIDTH): its steps are as large as the others' at 100 times the rate.
_SHORT_ICARL_BASE = replace(_SHORT_BASE, learning_rate=0.2 * 100, weight_decay=5e-4 / 100, decays_biases=False)
_SHORT_ICARL = replace(_SHORT_ICARL_BASE, epochs=18, few_epochs=1.5)

_Rows = Mapping[ScheduleName, Schedules]
AS_BIC: _Rows = {"paper": Schedules(_BIC, _BIC), "short": Schedules(_SHORT_BASE, _SHORT)}
AS_EEIL: _Rows = {
    "paper": Schedules(_EEIL_BASE, _EEIL, _EEIL_TUNE),
    "short": Schedules(_SHORT_BASE, _SHORT, _SHORT_TUNE),
}
AS_ICARL: _Rows = {"paper": Schedules(_ICARL, _ICARL), "short": Schedules(_SHORT_ICARL_BASE, _SHORT_ICARL)}
# Without teacher and exemplars nothing holds a student back; from the second increment on it diverges at 0.1.
AS_FINETUNE: _Rows = {
    "paper": Schedules(_BIC, _BIC),
    "short": Schedules(_SHORT_BASE, replace(_SHORT, learning_rate=0.02, few_rate=1.0)),
}
AS_BASE: _Rows = {"paper": Schedules(_BIC, _BIC), "short": Schedules(_SHORT_BASE, _SHORT_BASE)}

x, o = True, False
# fmt: off
METHODS: dict[str, Method] = {
    # terms 1 to 4; loss form; weights; rebalance; whether it holds out, starts afresh, keeps all, is frozen; answers by
    "bic":      Method((x, x, x, x), "softmax",  by_share, "bias-correction",     x, o, o, o, "linear", AS_BIC),
    "eeil":     Method((x, o, x, x), "per-head", in_full,  "balanced-finetuning", o, o, o, o, "linear", AS_EEIL),
    "eeil-all": Method((x, x, x, x), "per-head", in_full,  "balanced-finetuning", o, o, o, o, "linear", AS_EEIL),
    "icarl":    Method((x, x, x, x), "sigmoid",  in_full,  "none",                o, o, o, o, "nearest_mean", AS_ICARL),
    "wa":       Method((x, x, x, x), "softmax",  by_share, "weight-aligning",     o, o, o, o, "linear", AS_BIC),
    "finetune": Method((x, o, o, o), "softmax",  in_full,  "none",                o, o, o, o, "linear", AS_FINETUNE),
    "replay":   Method((x, o, x, o), "softmax",  in_full,  "none",                o, o, o, o, "linear", AS_BIC),
    "joint":    Method((x, o, x, o), "softmax",  in_full,  "none",                o, x, x, o, "linear", AS_BASE),
    "ncm":      Method((x, o, x, o), "softmax",  in_full,  "class-means",         o, o, o, x, "nearest_mean", AS_BIC),
    "ridge":    Method((x, o, x, o), "softmax",  in_full,  "ridge",               o, o, o, x, "linear", AS_BIC),
}  # iCaRL's third term is partial by nature: the sigmoid form never shows an exemplar's label to an old output
# fmt: on
AUTO = "auto"  # a row for each increment, by what is there (auto.py)
NAMES = (*METHODS, AUTO)


def possible(name: str) -> tuple[Method, ...]:
    """The rows that a name may mean: one, or for "auto" any."""
    return (METHODS[name],) if name in METHODS else tuple(METHODS.values())


def certainly_trains(name: str, n: int) -> bool:
    """Whether an increment with n old classes trains a network for sure, rather than a closed form."""
    return not n or not any(row.frozen for row in possible(name))
