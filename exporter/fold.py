"""What was learned after training, folded into one matrix and one bias: serving runs a single Gemm (numpy only)."""

import numpy as np
import numpy.typing as npt

from lifelist.exporter.manifest import BiasCorrection

Floats = npt.NDArray[np.float32]

TINY = 1e-12  # a vector shorter than this has no direction: it stays as it is, near zero, and is like nothing


def fold_bias(weight: Floats, bias: Floats, correction: BiasCorrection | None) -> tuple[Floats, Floats]:
    """The last layer with BiC's pair inside: W[rows]·alpha, b[rows]·alpha + beta (Wu et al. 2019, eq. 4).

    weight: C×D float32, bias: C float32, both raw, as training keeps them. Returns copies; without a correction, equal
    ones. The raw ones go on to the next increment, whose student starts from them. ValueError if the shapes disagree,
    or if the correction names rows that are not there.
    """
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(f"a last layer has a weight C×D and a bias C; got {weight.shape} and {bias.shape}")
    folded, shift = weight.astype(np.float64), bias.astype(np.float64)
    if correction is not None:
        if correction.last_row > len(weight):
            raise ValueError(
                f"the correction is of rows {correction.first_row} … {correction.last_row - 1}, "
                f"and the last layer has {len(weight)}"
            )
        rows = slice(correction.first_row, correction.last_row)
        folded[rows] *= correction.alpha
        shift[rows] = shift[rows] * correction.alpha + correction.beta
    return folded.astype(np.float32), shift.astype(np.float32)


def nearest_mean_layer(means: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Nearest class mean as a last layer: logits are cosines times the feature's length, in the same order.

    For unit vectors argmin ‖f − μ‖ is argmax μ·f (Rebuffi et al. 2017, section 2.2), hence W = μ / ‖μ‖, b = 0.
    means: C×D, of any length. Returns C×D and C float32.
    """
    rows = unit(means)
    return rows, np.zeros(len(rows), np.float32)


def unit(rows: npt.ArrayLike) -> Floats:
    """Each row divided by its length; a row that has none (the zero vector) stays zero. N×D in, N×D float32 out."""
    exact = np.asarray(rows, dtype=np.float64)
    length = np.linalg.norm(exact, axis=-1, keepdims=True)
    result: Floats = (exact / np.maximum(length, TINY)).astype(np.float32)
    return result
