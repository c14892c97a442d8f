"""Images made worse on purpose, in five steps, and a decoder that has a bug.

Noise, brightness and contrast are those of ImageNet-C (Hendrycks & Dietterich, ICLR 2019), brightness added to all
channels alike; blur is as wide as images of 32 pixels need, and grows with them.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage

from lifelist.exporter.preprocess import Pixels

SEVERITIES = (1, 2, 3, 4, 5)
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of 0 … 1
BLUR = (1.0, 1.5, 2.0, 3.0, 4.0)  # standard deviation, in pixels of an image of 32
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added, of 0 … 1
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of it

Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]  # (N×S×S×3, severity, lot) → the same, worse
Decoder = Callable[[Pixels], Pixels]


def noise(images: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Gaussian, of each pixel and channel by itself."""
    values = images.astype(np.float32) / 255
    return _pixels(values + NOISE[severity - 1] * random.standard_normal(images.shape, np.float32))


def blur(images: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Gaussian."""
    width = BLUR[severity - 1] * images.shape[1] / 32
    return _pixels(ndimage.gaussian_filter(images.astype(np.float32) / 255, (0, width, width, 0)))


def brightness(images: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Brighter."""
    return _pixels(images.astype(np.float32) / 255 + BRIGHTNESS[severity - 1])


def contrast(images: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Flatter, about the mean of each channel."""
    values = images.astype(np.float32) / 255
    mean = values.mean(axis=(1, 2), keepdims=True)
    return _pixels(mean + (values - mean) * CONTRAST[severity - 1])


CORRUPTIONS: Mapping[str, Corruption] = {"noise": noise, "blur": blur, "brightness": brightness, "contrast": contrast}


def blue_first(images: Pixels) -> Pixels:
    """Channels in the order in which some libraries give them."""
    return np.ascontiguousarray(images[..., ::-1])


def columns_first(images: Pixels) -> Pixels:
    """Rows taken for columns."""
    return np.ascontiguousarray(images.transpose(0, 2, 1, 3))


def coarse(images: Pixels) -> Pixels:
    """Resized to half by leaving pixels out, and back by repeating them."""
    side = images.shape[1]
    return images[:, ::2, ::2].repeat(2, axis=1).repeat(2, axis=2)[:, :side, :side]


def decoders(images: Pixels) -> Mapping[str, Decoder]:
    """Bugs that matter for images like these: an order of channels is none to grey ones."""
    grey = bool((images[..., 0] == images[..., 2]).all())
    found: dict[str, Decoder] = {"rows for columns": columns_first} if grey else {"BGR for RGB": blue_first}
    return found | {"another resize": coarse}


def _pixels(values: np.ndarray) -> Pixels:
    found: Pixels = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return found
