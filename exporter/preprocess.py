"""From an image file to what the model sees, defined once: training's evaluation and serving both come here.

The rule is torchvision's for evaluation: the shorter side to `resize_to` pixels (bilinear, antialiased), then the
centre crop. Scaling to 0…1, mean and standard deviation are inside the graph (exporter/graph.py).
"""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from lifelist.exporter.errors import BadImage, TooLarge
from lifelist.exporter.manifest import Preprocess

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP")
_ANY = "JPEG, PNG or WebP"
LONGEST = 8  # times the shorter side; an image longer than that is cut to it, about its middle, before resizing
KEPT_BLOCKS = 8  # of memory, of 16 MiB at most, for the next images: to have them anew is a third of a photo's time

Image.core.set_blocks_max(KEPT_BLOCKS)  # type: ignore[attr-defined]  # Pillow's "block allocator"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a single image may be, at most."""

    max_bytes: int = 10 * 2**20  # of the file
    max_pixels: int = 50_000_000  # width × height, as the file's header states them


IMAGE_LIMITS = ImageLimits()


def decode(data: bytes, preprocess: Preprocess, limits: ImageLimits = IMAGE_LIMITS) -> Pixels:
    """The image file as the model sees it: size×size×3 uint8, RGB.

    JPEG, PNG or WebP, told by content. The camera's orientation is applied; transparency goes on white; greyscale,
    palette, CMYK and 16-bit images become RGB. TooLarge if the file has too many bytes, or too many pixels (nothing is
    decoded then); BadImage if it is not such a file, is broken or cut off, or has more than one frame.
    """
    return sized(data, preprocess, limits)[0]


def sized(data: bytes, preprocess: Preprocess, limits: ImageLimits = IMAGE_LIMITS) -> tuple[Pixels, int]:
    """The same, and the shorter side of the image as it came, in pixels."""
    image = _read(data, limits)
    return _fitted(image, preprocess), min(image.size)


def side(data: bytes) -> int:
    """The shorter side of an image file that `decode` takes, in pixels; nothing is decoded."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return min(image.size)


def fit(image: Pixels, preprocess: Preprocess) -> Pixels:
    """Pixels of any height and width as the model sees them: H×W×3 uint8 RGB in, size×size×3 uint8 out."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise BadImage(f"pixels should be uint8, height×width×3; got {image.dtype}, {'×'.join(map(str, image.shape))}")
    return _fitted(Image.fromarray(image), preprocess)


def _read(data: bytes, limits: ImageLimits) -> Image.Image:
    """The image, upright and RGB."""
    if not data:
        raise BadImage(f"the image is empty; send a {_ANY} file")
    if len(data) > limits.max_bytes:
        raise TooLarge(f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,}. Send a smaller one")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check(image, limits)
            image.load()
            return _as_rgb(_upright(image))
    except (BadImage, TooLarge):
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image that we read: {len(data):,} bytes, of no {_ANY} file") from None
    except Image.DecompressionBombError:
        raise TooLarge(f"the image has more than {limits.max_pixels:,} pixels; send a smaller one") from None
    except Exception as error:  # whatever the decoder makes of hostile bytes, the bytes are at fault
        raise BadImage(f"the image is broken or cut off, and cannot be decoded: {error}") from error


def _check(image: Image.Image, limits: ImageLimits) -> None:
    """TooLarge or BadImage if the header promises what we refuse to decode."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise TooLarge(
            f"the image is {width}×{height} = {width * height:,} pixels; the limit is {limits.max_pixels:,}. "
            "Send a smaller one"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a camera's JPEG with previews behind the first picture
        raise BadImage(f"the image is animated, with {frames} frames; send a single one")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as the camera's EXIF tag says; as it lies if the tag cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  only the notes beside the picture are broken, and the picture is what counts
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow's own conversion would clip at 255
        grey = np.asarray(image, dtype=np.uint32)
        clear = grey == image.info.get("transparency", -1)
        image = Image.fromarray(np.where(clear, 255, (grey // 257).clip(0, 255)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _fitted(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """Shorter side to `resize_to`, centre crop to `size`.

    All of it is resized, although the crop drops a part: given that part's box, Pillow places edges in float32 and may
    take rows before columns, so that values come out differently from torchvision's.
    """
    image = _centre(image, *(min(side, LONGEST * min(image.size)) for side in image.size))
    width, height = image.size
    short, target = min(width, height), preprocess.resize_to
    if short != target:
        image = image.resize((target * width // short, target * height // short), Image.Resampling.BILINEAR)
    return np.array(_centre(image, preprocess.size, preprocess.size))


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
