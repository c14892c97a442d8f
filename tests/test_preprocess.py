"""What an image file becomes, and what is refused before it is decoded."""

import contextlib
import hashlib
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lifelist.exporter.errors import BadImage, BadManifest, TooLarge
from lifelist.exporter.manifest import Preprocess
from lifelist.exporter.preprocess import KEPT_BLOCKS, ImageLimits, decode, fit

SMALL = Preprocess(size=32, resize_to=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
LARGE = Preprocess(size=56, resize_to=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """height×width×3 uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The image as a file."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes whose header promises width×height pixels: a bomb, if it were decoded."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (500, 375), (375, 501), (57, 31), (8, 8), (100, 799)])
@pytest.mark.parametrize("preprocess", [SMALL, LARGE], ids=["small", "large"])
def test_an_image_is_resized_and_cropped_exactly_as_torchvision_does_it(
    size: tuple[int, int], preprocess: Preprocess
) -> None:
    import torchvision  # here, for it takes seconds, and a process below imports this file

    pixels = noise(size[1], size[0])
    rule = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(preprocess.resize_to),
            torchvision.transforms.CenterCrop(preprocess.size),
        ]
    )
    wanted = np.asarray(rule(Image.fromarray(pixels)))
    assert np.array_equal(decode(file(pixels), preprocess), wanted)
    assert np.array_equal(fit(pixels, preprocess), wanted)


def test_pixels_that_have_the_right_size_already_are_not_touched() -> None:
    pixels = noise(32, 32)
    assert np.array_equal(fit(pixels, SMALL), pixels)
    assert np.array_equal(decode(file(pixels, "WEBP", lossless=True), SMALL), pixels)
    assert fit(pixels, SMALL).flags.writeable


def test_the_same_file_gives_the_same_pixels_in_every_run() -> None:
    """The golden test between what training evaluates on and what serving sees: a change of the rule shows here."""
    ramp = np.add.outer(np.arange(100), np.arange(90))[..., None] * np.array([1, 2, 3])
    found = hashlib.sha256(decode(file((ramp % 256).astype(np.uint8)), LARGE).tobytes()).hexdigest()
    assert found == "582de282d4adbee262002f12871b6f783c5322c2cab7fc37c6e599f77c01413b"


def test_memory_of_one_image_is_used_for_the_next() -> None:
    data = file(noise(375, 500), "JPEG")
    decode(data, LARGE)
    before = Image.core.get_stats()
    decode(data, LARGE)
    after = Image.core.get_stats()
    assert after["reused_blocks"] > before["reused_blocks"]
    assert after["allocated_blocks"] == before["allocated_blocks"]
    assert after["blocks_cached"] <= KEPT_BLOCKS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_all_three_formats_are_read(kind: str) -> None:
    grey = np.full((40, 60, 3), 77, np.uint8)
    assert np.abs(decode(file(grey, kind), SMALL).astype(int) - 77).max() <= 1


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (Image.new("L", (40, 40), 77), (77, 77, 77)),
        (Image.new("1", (40, 40), 1), (255, 255, 255)),
        (Image.new("I;16", (40, 40), 77 * 257), (77, 77, 77)),
        (Image.new("RGBA", (40, 40), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("RGBA", (40, 40), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("LA", (40, 40), (77, 0)), (255, 255, 255)),
        (Image.new("RGB", (40, 40), (10, 200, 30)).quantize(4), (10, 200, 30)),
    ],
    ids=["grey", "two colours", "16 bit", "opaque", "transparent", "transparent grey", "palette"],
)
def test_every_kind_of_pixel_becomes_rgb_and_transparency_goes_on_white(
    image: Image.Image, wanted: tuple[int, int, int]
) -> None:
    assert np.abs(decode(file(image), SMALL).astype(int) - wanted).max() <= 1


def test_a_transparent_colour_of_a_palette_goes_on_white() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([10, 200, 30] + [0] * 765)
    assert decode(file(image, transparency=0), SMALL).min() == 255


def test_cmyk_is_read() -> None:
    assert decode(file(Image.new("CMYK", (40, 40), (0, 0, 0, 255)), "JPEG"), SMALL).max() <= 2


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_the_orientation_that_the_camera_noted_is_applied(
    orientation: int, turned: Callable[[np.ndarray], np.ndarray]
) -> None:
    pixels = noise(32, 32)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(decode(file(image, "PNG", exif=image.getexif()), SMALL), turned(pixels))


def test_broken_notes_beside_a_sound_picture_do_no_harm() -> None:
    pixels = noise(32, 32)
    assert np.array_equal(decode(file(pixels, "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"), SMALL), pixels)


def test_the_previews_behind_a_cameras_picture_are_ignored() -> None:
    first, preview = Image.new("RGB", (40, 40), (200, 0, 0)), Image.new("RGB", (40, 40), (0, 200, 0))
    data = file(first, "MPO", save_all=True, append_images=[preview])
    assert decode(data, SMALL)[0, 0, 0] > 190


def test_of_a_very_long_image_the_middle_is_seen() -> None:
    stripe = np.zeros((1, 4000, 3), np.uint8)
    stripe[:, 1990:2010] = 255
    assert decode(file(stripe), LARGE).min() == 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animated_image_is_refused(kind: str) -> None:
    frames = [Image.fromarray(noise(32, 32, seed)) for seed in range(3)]
    with pytest.raises(BadImage, match="animated, with 3 frames; send a single one"):
        decode(file(frames[0], kind, save_all=True, append_images=frames[1:]), SMALL)


def test_a_bomb_is_refused_by_its_header_with_size_and_limit() -> None:
    with pytest.raises(TooLarge, match=r"8000×8000 = 64,000,000 pixels; the limit is 50,000,000"):
        decode(png_that_claims(8000, 8000), SMALL)
    with pytest.raises(TooLarge, match=r"more than 50,000,000 pixels"):
        decode(png_that_claims(60_000, 60_000), SMALL)


def test_bombs_and_very_long_images_take_no_memory() -> None:
    """In a process of its own, under 60 MB: files that promise 268 and 64 million pixels, and a long stripe."""
    code = """
import io, resource
from PIL import Image
from test_preprocess import LARGE, SMALL, file, np, png_that_claims
from lifelist.exporter.errors import BadImage, TooLarge
from lifelist.exporter.preprocess import decode
webp = bytes.fromhex("524946461a000000574542505650384c0e0000002ffebfff0f071011fd0f4444ff03")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in (png_that_claims(8000, 8000), png_that_claims(13000, 13000), webp):
    try:
        decode(bomb, SMALL)
        raise SystemExit("decoded")
    except (BadImage, TooLarge):
        pass
decode(file(np.zeros((1, 400_000, 3), np.uint8)), LARGE)  # resized whole, it would be 64×25,600,000 pixels
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
raise SystemExit(0 if grown < 60_000 else f"grew by {grown} KiB")
"""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, env={"PYTHONPATH": str(Path(__file__).parent)}
    )


def test_a_file_over_the_limit_is_refused_before_it_is_opened() -> None:
    with pytest.raises(TooLarge, match=r"101 bytes; the limit is 100\. Send a smaller one"):
        decode(bytes(101), SMALL, ImageLimits(max_bytes=100))


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", b"\x89PNG\r\n\x1a\n", file(noise(32, 32), "GIF"), file(noise(32, 32), "BMP"), b"<svg/>"],
    ids=["empty", "text", "magic only", "GIF", "BMP", "SVG"],
)
def test_what_is_no_image_that_we_read_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"JPEG, PNG or WebP|cannot be decoded"):
        decode(data, SMALL)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_cut_off_anywhere_is_refused_and_nothing_else_is_raised(kind: str) -> None:
    whole = file(noise(64, 64), kind)
    for length in range(0, len(whole) - 20, max(1, len(whole) // 60)):
        with pytest.raises(BadImage):
            decode(whole[:length], SMALL)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_altered_bytes_give_pixels_or_bad_image_and_never_another_error(kind: str) -> None:
    whole, random = file(noise(48, 48), kind), np.random.default_rng(7)
    for _ in range(200):
        altered = bytearray(whole)
        for place in random.integers(0, min(len(whole), 400), 3):
            altered[place] = random.integers(0, 256)
        with contextlib.suppress(BadImage, TooLarge):
            assert decode(bytes(altered), SMALL).shape == (32, 32, 3)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((0, 32, 3), np.uint8),
        np.zeros((9, 9, 3)),
    ],
    ids=["no channels", "four channels", "no rows", "floats"],
)
def test_pixels_of_another_kind_are_refused_with_what_was_found(pixels: np.ndarray) -> None:
    with pytest.raises(BadImage, match=rf"uint8, height×width×3; got {pixels.dtype}, {pixels.shape[0]}×"):
        fit(pixels, SMALL)


@pytest.mark.parametrize(("size", "resize_to", "std"), [(0, 32, 1.0), (33, 32, 1.0), (32, 32, 0.0)])
def test_a_rule_that_cannot_be_followed_is_no_rule(size: int, resize_to: int, std: float) -> None:
    with pytest.raises(BadManifest, match="size ≤ resize_to and std > 0"):
        Preprocess(size, resize_to, (0.0, 0.0, 0.0), (1.0, 1.0, std))
