"""How images look, in a few numbers that a broken camera, another decoder or the night would change."""

import numpy as np
import numpy.typing as npt

from lifelist.exporter.fold import Floats
from lifelist.exporter.preprocess import Pixels

LOOKS = ("brightness", "contrast", "sharpness", "size")  # a new one is added at the end
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_AT_A_TIME = 64  # images


def looks(images: Pixels, sides: npt.ArrayLike) -> Floats:
    """N×4 of images N×S×S×3 uint8, S ≥ 3, and N shorter sides, in pixels, that they had before they were resized.

    Mean and standard deviation of the luminance, 0 … 1; its sharpness; log2 of the side. Sharpness is log10 of the
    variance of the Laplacian (Pech-Pacheco et al., ICPR 2000), least -6: blurred images have little, noisy ones much.
    """
    parts = [_of_few(images[start : start + _AT_A_TIME]) for start in range(0, len(images), _AT_A_TIME)]
    seen = np.concatenate(parts) if parts else np.zeros((0, 3), np.float32)
    return np.column_stack([seen, np.log2(sides, dtype=np.float32)])


def _of_few(images: Pixels) -> Floats:
    grey = images.astype(np.float32) @ (_LUMA / 255)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    laplacian = around - 4 * grey[:, 1:-1, 1:-1]
    sharpness = np.log10(np.maximum(laplacian.var(axis=(1, 2)), 1e-6))
    return np.stack([grey.mean(axis=(1, 2)), grey.std(axis=(1, 2)), sharpness], axis=1).astype(np.float32)
