"""What corrects the bias to new classes after training. A new one is a function here, and a row in REBALANCE."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelist.exporter.errors import BadInput
from lifelist.exporter.manifest import BiasCorrection
from lifelist.training.evaluate import features, head_logits, unit
from lifelist.training.exemplars import herd
from lifelist.training.forms import distillation_heads
from lifelist.training.loop import Phase, Run, Teacher, scaled, train
from lifelist.training.methods import Method, Schedules
from lifelist.training.network import Network
from lifelist.training.pixels import Pixels
from lifelist.training.statistics import Sums, solve
from lifelist.training.threads import one_thread

RIDGE = 0.05  # of beta²; the authors' code adds 0.1·beta²/2
LARGEST_ALPHA = 4.0  # published values are 0.4 … 0.8; where hold-out images are separable, the minimum is at infinity
USUAL_ALPHA = (0.2, 2.0)  # a fit outside is a sign of too few hold-out images, or of a training that went wrong
LARGEST_GAMMA = 1.1  # published training leaves new rows the longer ones: gamma is below 1
LEAST_HOLDOUT = 2  # images of each class, below which the fit is noise (B17)
RHOS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge method: tried where there are hold-out images …
RHO = 1e-3  # … and taken where there are none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Increment:
    """What is known when the main phase of an increment has ended."""

    method: Method
    schedules: Schedules
    run: Run
    n: int  # old classes
    refreshed: Sequence[int] = ()  # old rows whose classes bring new images
    heads: tuple[int, ...]  # classes that each increment brought, this one included
    pixels: Pixels  # N×S×S×3 uint8: exemplars (best first) and new images, what training may see
    rows: Tensor  # N int64
    held_pixels: Pixels  # hold-out: never trained on, as many of each class
    held_rows: Tensor
    statistics: Sequence[Sums] = ()  # of every class, in row order; for methods whose backbone is frozen


Rebalance = Callable[[Network, Increment], BiasCorrection | None]


def none(network: Network, increment: Increment) -> None:
    """The network answers as it was trained."""


def bias_correction(network: Network, increment: Increment) -> BiasCorrection | None:
    """BiC's second stage: one pair for the newest classes, all of the network frozen (Wu et al. 2019, section 4).

    Pairs of earlier increments are not applied again: the student learnt them from its corrected teacher (B14). For
    the same reason there is none without a new class.
    """
    n, classes = increment.n, network.classes
    if n == classes:
        return None
    least = int(torch.bincount(increment.held_rows, minlength=classes).min())
    if least < LEAST_HOLDOUT:
        increment.run.warn(
            "bias.not-fitted",
            f"bias correction needs {LEAST_HOLDOUT} hold-out images of each class, and has {least} of one; "
            "the classifier answers uncorrected. Send more images, enlarge the memory, or choose method wa",
        )
        return BiasCorrection(1.0, 0.0, n, classes)
    logits = head_logits(network, features(network, increment.held_pixels, increment.run))
    alpha, beta = fit_bias(logits, increment.held_rows, n)
    if alpha == 0:
        increment.run.warn(
            "bias.at-limit",
            f"{len(increment.held_rows)} hold-out images do not determine the correction: alpha would be 0, and no new "
            "class could be told from another; the classifier answers uncorrected",
        )
        return BiasCorrection(1.0, 0.0, n, classes)
    if alpha >= LARGEST_ALPHA:
        increment.run.warn(
            "bias.at-limit",
            f"{len(increment.held_rows)} hold-out images do not determine the correction: alpha is held at {alpha:g}",
        )
    elif not USUAL_ALPHA[0] <= alpha <= USUAL_ALPHA[1]:
        increment.run.warn(
            "bias.unusual",
            f"alpha is {alpha:.2f}, and 0.4 to 0.9 is usual: {len(increment.held_rows)} hold-out images are too few to "
            "fit it to, or training went wrong. Compare the accuracy before correction; send more images, enlarge the "
            "memory, or choose method wa",
        )
    return BiasCorrection(alpha, beta, n, classes)


@one_thread()
def fit_bias(logits: Tensor, rows: Tensor, first_new: int, ridge: float = RIDGE) -> tuple[float, float]:
    """(alpha, beta) that scale and shift the newest classes (Wu et al. 2019, eq. 4 and 5; methods.md 1.2).

    Minimises mean cross-entropy + ridge·beta², convex in both, over images that were never trained on: from (1, 0) by
    Newton's method, damped until a step lowers the objective (Levenberg), in float64. Never worse than (1, 0).
    Where hold-out images are separable there is no minimum; alpha then ends at 0 or LARGEST_ALPHA, and beta is the best
    for that.
    logits: N×C float, raw (no softmax before this: B1), made in eval mode;  rows: N int64;  the newest classes are
    first_new … C-1. BadInput if the newest or the older classes have no image here: the fit would run away.
    """
    if not (bool((rows >= first_new).any()) and bool((rows < first_new).any())):
        raise BadInput(f"need images of classes below and from {first_new}; got {sorted(set(rows.tolist()))}")
    z = logits.detach().double().cpu()
    slopes = torch.zeros(2, *z.shape, dtype=torch.float64)  # of each q_k by alpha and by beta
    slopes[0, :, first_new:], slopes[1, :, first_new:] = z[:, first_new:], 1.0
    fixed = z.clone()
    fixed[:, first_new:] = 0.0
    right = torch.arange(len(z)), rows.cpu()
    penalty = torch.tensor([0.0, 2 * ridge], dtype=torch.float64)

    def corrected(bias: Tensor) -> Tensor:
        return fixed + bias[0] * slopes[0] + bias[1] * slopes[1]

    def objective(bias: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(corrected(bias), right[1]) + ridge * bias[1] ** 2)

    def within(bias: Tensor) -> Tensor:
        return torch.stack([bias[0].clamp(0, LARGEST_ALPHA), bias[1]])

    bias, damping = torch.tensor([1.0, 0.0], dtype=torch.float64), 1e-12
    value = objective(bias)
    for _ in range(500):
        share = torch.softmax(corrected(bias), 1)
        expected = (share * slopes).sum(2)  # 2×N
        gradient = (expected - slopes[:, right[0], right[1]]).mean(1) + penalty * bias
        centred = slopes - expected[:, :, None]
        hessian = torch.einsum("ink,jnk,nk->ij", centred, centred, share) / len(z) + torch.diag(penalty)
        if (bias[0] <= 0 and gradient[0] > 0) or (bias[0] >= LARGEST_ALPHA and gradient[0] < 0):
            gradient[0] = hessian[0, 1] = hessian[1, 0] = 0.0  # at a limit, and pushed outwards: only beta moves
            hessian[0, 0] = 1.0
        if gradient.abs().max() < 1e-10:
            break
        while damping < 1e12:  # where the softmax is saturated, the Hessian is 0 and Newton's step far too long
            step = torch.linalg.solve(hessian + damping * torch.eye(2, dtype=torch.float64), gradient)
            candidate = within(bias - step)
            if (lower := objective(candidate)) <= value and not torch.equal(candidate, bias):
                break
            damping *= 10
        else:
            break  # no step lowers the objective any more: its digits are used up
        bias, value, damping = candidate, lower, max(damping / 100, 1e-12)
    return float(bias[0]), float(bias[1])


def balanced_finetuning(network: Network, increment: Increment) -> None:
    """EEIL's second phase: as many images of each class, from the just-trained network as its own teacher.

    (Castro et al. 2018, section 3.4; methods.md 1.3.) The snapshot is the teacher of *all* heads, the newest included,
    which has no teacher in the main phase (E1). The extra loss ends with the phase: nothing of it stays.
    """
    run, schedule = increment.run, increment.schedules.balanced
    if schedule is None:
        raise BadInput("a method that fine-tunes on a balanced set needs a schedule for it; see methods.Schedules")
    which = balanced_set(network, increment)
    if not len(which):
        run.warn("balanced.left-out", "there are no exemplars of old classes, so there is no balanced set to tune on")
        return
    snapshot = Teacher(run.asked(network.copy()))
    phase = Phase(
        name="balanced",
        method=increment.method,
        schedule=scaled(schedule, run.options, increment.schedules.increment),
        pixels=increment.pixels.take(which),
        rows=increment.rows[which],
        n=network.classes,  # every class counts as old here, so that the snapshot teaches all of them
        heads=distillation_heads(increment.heads),
        teacher=snapshot,
    )
    train(network, phase, run)


def balanced_set(network: Network, increment: Increment) -> Tensor:
    """Numbers of the images to tune on: the same count of each class (E2), int64; none without exemplars.

    The count is that of an old class's exemplars, or the memory's share where every old class is refreshed; a new or
    refreshed class gives its best by herding with the network as it is now. A class that has fewer images than the
    count shows them more than once.
    """
    counts = torch.bincount(increment.rows, minlength=network.classes)
    replayed = [row for row in range(increment.n) if row not in increment.refreshed]
    wanted = max((int(counts[row]) for row in replayed), default=increment.run.options.quota(network.classes))
    wanted = min(wanted, int(counts.max())) if increment.n else 0
    chosen = [torch.zeros(0, dtype=torch.int64)]
    ranking = increment.run.asked(network)
    for row, count in enumerate(counts.tolist()):
        if not wanted or not count:
            continue
        of_class = (increment.rows == row).nonzero()[:, 0]
        if row not in replayed:
            raw = features(ranking, increment.pixels.take(of_class), increment.run)
            of_class = of_class[herd(unit(raw), min(wanted, count))]
        chosen.append(of_class.repeat(-(-wanted // len(of_class)))[:wanted])
    return torch.cat(chosen)


@torch.no_grad()
def weight_aligning(network: Network, increment: Increment) -> None:
    """WA: new rows are scaled so that their mean length is that of the old ones (Zhao et al. 2020, eq. 6 and 7).

    gamma = mean‖w_old‖ / mean‖w_new‖; biases stay. The aligned network is what is served, kept, and distilled from.
    Without a new class there is no row to scale.
    """
    weight = network.head.weight
    gamma = weight[: increment.n].norm(dim=1).mean() / weight[increment.n :].norm(dim=1).mean()
    weight[increment.n :] *= gamma
    if gamma > LARGEST_GAMMA:
        increment.run.warn(
            "alignment.unusual",
            f"new rows are made {gamma:.2f} times as long, and below 1 is usual: training left them short, "
            "and aligning now favours new classes. Compare the accuracy before correction; train for longer, or choose "
            "method bic",
        )


def class_means(network: Network, increment: Increment) -> None:
    """Nearest class mean as the last layer: W = unit means, b = 0, for W·f has its largest row where μ is nearest."""
    weight = torch.stack([sums.mean for sums in increment.statistics]).double()
    _answer_by(network, weight, weight.new_zeros(len(weight)), increment)


def ridge(network: Network, increment: Increment) -> None:
    """Ridge regression as the last layer, in closed form (methods.md 4.3 B); rho by hold-out images, if there are any.

    The rho whose squared error on them is least: they are as many of each class, so each weighs the same there too.
    """
    best = RHO
    if _enough_held(network, increment):
        raw = features(network, increment.held_pixels, increment.run).double()
        wanted = torch.nn.functional.one_hot(increment.held_rows, network.classes)

        def error(rho: float) -> float:
            weight, bias = solve(increment.statistics, rho)
            return float((raw @ weight.T + bias - wanted).square().mean())

        best = min(RHOS, key=error)
    _answer_by(network, *solve(increment.statistics, best), increment)


@torch.no_grad()
def _answer_by(network: Network, weight: Tensor, bias: Tensor, increment: Increment) -> None:
    """Make a last layer of W (C×D) and b (C), both float64, times one number that makes probabilities of its softmax.

    The number is fitted to hold-out images, else to those that may be trained on; none of either, and it is 1.
    """
    shown = (increment.pixels, increment.rows)
    if _enough_held(network, increment):
        shown = (increment.held_pixels, increment.held_rows)
    logits = features(network, shown[0], increment.run).double() @ weight.T + bias
    scale = fit_scale(logits, shown[1]) if len(logits) else 1.0
    network.head.weight.copy_(scale * weight)
    network.head.bias.copy_(scale * bias)


def _enough_held(network: Network, increment: Increment) -> bool:
    return int(torch.bincount(increment.held_rows, minlength=network.classes).min()) >= LEAST_HOLDOUT


def fit_scale(logits: Tensor, rows: Tensor) -> float:
    """The s > 0 for which softmax(s·logits) is likeliest, each class weighing the same (Guo et al. 2017, with s = 1/T).

    N images are no reason to be surer than 1 - 1/(N+1) (Platt 1999): so much of the target is shared by all classes,
    and there is a best s where all answers are right, too. The loss is convex in s: its slope is bisected.
    logits: N×C float64, N ≥ 1;  rows: N int64.
    """
    doubt = 1 / (len(rows) + 1)
    right = logits[torch.arange(len(rows)), rows]
    wanted = (1 - doubt) * right + doubt * logits.mean(1)
    weight = 1 / torch.bincount(rows)[rows]
    low, high = math.log(1e-6), math.log(1e6)
    for _ in range(60):
        middle = (low + high) / 2
        expected = (torch.softmax(math.exp(middle) * logits, 1) * logits).sum(1)
        if float((weight * (expected - wanted)).sum()) > 0:
            high = middle
        else:
            low = middle
    return math.exp(low)


REBALANCE: Mapping[str, Rebalance] = {
    "none": none,
    "bias-correction": bias_correction,
    "balanced-finetuning": balanced_finetuning,
    "weight-aligning": weight_aligning,
    "class-means": class_means,
    "ridge": ridge,
}
