"""How probable each class is for an image, so that of 100 answers that are 80 % sure about 80 are right.

What a network calls a probability is none: it is too sure, and an increment and its correction change by how much. Two
things are fitted on held-out images, of the version as it answers: a scale for what speaks for the classes (temperature
scaling; Guo et al., ICML 2017), and which share of the best ones are right, by how sure they then look (isotonic
regression; Zadrozny & Elkan, KDD 2002). The mean over images nobody has labels for estimates the accuracy on them, as
long as images have changed and not what they are called: confidence-based performance estimation.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lifelist.exporter.manifest import SURE_POINTS, Confidence

LEAST = 20  # images, to fit anything
BINS = 10
SCALES = (1e-2, 1e3)

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What speaks for each class, for N images: log-probabilities, or similarities."""

    ids: npt.NDArray[np.int64]  # A class ids, all different
    scores: npt.NDArray[np.float64]  # N×A


def fit(found: Evidence, labels: npt.NDArray[np.int64]) -> Confidence | None:
    """Fit on held-out images, N class ids; None if fewer than LEAST of them are of classes that can be named."""
    from scipy.optimize import isotonic_regression, minimize_scalar  # here: who only reads it need not load it

    columns = {class_id: column for column, class_id in enumerate(found.ids.tolist())}
    known = np.array([label in columns for label in labels.tolist()], np.bool_)
    if known.sum() < LEAST:
        return None
    scores, truth = found.scores[known], np.array([columns[label] for label in labels[known].tolist()])
    rows = np.arange(len(truth))

    def surprise(log_scale: float) -> float:
        return float(-np.log(np.maximum(_softmax(np.exp(log_scale) * scores)[rows, truth], 1e-30)).mean())

    scale = float(np.exp(minimize_scalar(surprise, bounds=tuple(np.log(SCALES)), method="bounded").x))
    probabilities = _softmax(scale * scores)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    order = np.argsort(sure, kind="stable")
    share = isotonic_regression(right[order].astype(np.float64)).x.clip(1 / (len(truth) + 2), 1 - 1 / (len(truth) + 2))
    points = np.quantile(sure, np.linspace(0, 1, SURE_POINTS))
    return Confidence(
        images=len(truth),
        scale=float(f"{scale:.6g}"),
        sure=tuple(float(f"{value:.6g}") for value in points),
        right=tuple(float(f"{value:.6g}") for value in np.interp(points, sure[order], share)),
    )


def probabilities(fitted: Confidence, found: Evidence) -> Probabilities:
    """N×A, each row sums to 1: the best class has the share of such answers that are right, the others what is left."""
    shown = _softmax(fitted.scale * found.scores)
    rows, best = np.arange(len(shown)), shown.argmax(axis=1)
    sure = shown[rows, best]
    right = np.interp(sure, fitted.sure, fitted.right)
    left = np.maximum(1 - sure, 1e-12)
    shown *= ((1 - right) / left)[:, None]
    shown[rows, best] = right
    if shown.shape[1] > 1:
        rest = shown.sum(axis=1) - right  # 0 where the others had nothing at all
        shown[rest <= 0] += ((1 - right) / (shown.shape[1] - 1))[rest <= 0, None]
        shown[rows, best] = right
    return shown


def error(found: Evidence, labels: npt.NDArray[np.int64]) -> float | None:
    """Expected calibration error on N held-out images, 0 … 1: the mean distance of "so sure" from "so often right".

    Every second image is fitted to, and the error is that of the others in bins of equal counts (Naeini et al., AAAI
    2015); then the other way round. Chance alone makes it some hundredths where images are few. None: too few to fit.
    """
    halves = [np.arange(len(labels)) % 2 == k for k in (0, 1)]
    errors = [
        _binned(fitted, _of(found, other), labels[other])
        for half, other in (halves, halves[::-1])
        if (fitted := fit(_of(found, half), labels[half])) is not None
    ]
    return float(np.mean(errors)) if len(errors) == 2 else None


def _of(found: Evidence, which: npt.NDArray[np.bool_]) -> Evidence:
    return Evidence(found.ids, found.scores[which])


def _binned(fitted: Confidence, found: Evidence, labels: npt.NDArray[np.int64]) -> float:
    shown = probabilities(fitted, found)
    sure, right = shown.max(axis=1), found.ids[shown.argmax(axis=1)] == labels
    order = np.argsort(sure, kind="stable")
    gaps = [abs(float(np.sum(sure[bin_] - right[bin_]))) for bin_ in np.array_split(order, min(BINS, len(order)))]
    return sum(gaps) / len(order)


def _softmax(scores: npt.NDArray[np.float64]) -> Probabilities:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Probabilities = weights / weights.sum(axis=1, keepdims=True)
    return found
