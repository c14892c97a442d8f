"""Odd image files: training and serving see the same pixels in each, or neither uses it and both say the same why."""

import asyncio
import io
import re
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from parts import OPEN, PREPROCESS, SIZE, encoded, images, tiny_version
from PIL import Image, ImageCms, PngImagePlugin

from lifelist.client import images as client_images
from lifelist.exporter.errors import BadImage
from lifelist.exporter.preprocess import decode
from lifelist.exporter.registry import Registry
from lifelist.serving.app import Replica
from lifelist.serving.options import ServingOptions
from lifelist.training.data import read
from lifelist.training.options import TrainingOptions

PICTURE = images(1)[0]  # 16×16
IMAGE = Image.fromarray(PICTURE)
PNG, JPEG, WEBP = (
    encoded(IMAGE, kind, **({"lossless": True} if kind == "WEBP" else {})) for kind in ("PNG", "JPEG", "WEBP")
)


def lying(orientation: int, kind: str) -> bytes:
    """A file with a camera's note of how it lies."""
    notes = Image.Exif()
    notes[0x0112] = orientation
    return encoded(IMAGE, kind, exif=notes, **({"lossless": True} if kind == "WEBP" else {}))


def png(header: tuple[int, int], rows: bytes, *more: tuple[bytes, bytes], size: int = SIZE) -> bytes:
    """A PNG written by hand: (bit depth, colour type), rows without filters, and other chunks."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", size, size, *header, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def sixteen_bit(colour_type: int, pixel: tuple[int, ...], *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of one colour with 16 bits in each channel."""
    row = b"\0" + struct.pack(f">{len(pixel)}H", *pixel) * SIZE
    return png((16, colour_type), row * SIZE, *more)


def behind(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with chunks put in behind its header."""
    packed = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return data[:33] + packed + data[33:]


def moving(kind: str, frames: int) -> bytes:
    pictures = [Image.fromarray(one) for one in images(frames)]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:], lossless=True)


def named(text: str) -> PngImagePlugin.PngInfo:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", text)
    return notes


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
ZIP = b"PK\x03\x04" + bytes(30) + b"PK\x05\x06" + bytes(18)
HTML = b"<html><script>alert(1)</script></html>"
BOMB = zlib.compress(bytes(200 * 2**20), 9)
GREY = (77 * 257,)
PALETTE = (b"PLTE", bytes([10, 200, 30, 200, 10, 30, 0, 0, 0, 9, 9, 9]))
FOUR_COLOURS = (b"\0" + bytes([0b00011011]) * (SIZE // 4)) * SIZE

# fmt: off
SOUND = {  # file → what is seen, where it can be told by hand
    **{f"lying {k} in {kind}": (lying(k, kind), None) for kind in ("JPEG", "PNG", "WEBP") for k in (*range(10), 65535)},
    "CMYK":                      (encoded(IMAGE.convert("CMYK"), "JPEG"), None),
    "CMYK with a profile":       (encoded(IMAGE.convert("CMYK"), "JPEG", icc_profile=SRGB), None),
    "progressive":               (encoded(IMAGE, "JPEG", progressive=True), None),
    "grey JPEG":                 (encoded(Image.new("L", (SIZE, SIZE), 77), "JPEG"), (77, 77, 77)),
    "16-bit grey":               (sixteen_bit(0, GREY), (77, 77, 77)),
    "16-bit RGB":                (sixteen_bit(2, (10 * 257, 200 * 257, 30 * 257)), (10, 200, 30)),
    "16-bit grey and clear":     (sixteen_bit(4, (*GREY, 0)), (255, 255, 255)),
    "16-bit grey and opaque":    (sixteen_bit(4, (*GREY, 65535)), (77, 77, 77)),
    "16-bit RGBA, clear":        (sixteen_bit(6, (1, 2, 3, 0)), (255, 255, 255)),
    "16-bit, its grey is clear": (sixteen_bit(0, GREY, (b"tRNS", struct.pack(">H", *GREY))), (255, 255, 255)),
    "16-bit, another is clear":  (sixteen_bit(0, GREY, (b"tRNS", b"\0\0")), (77, 77, 77)),
    "palette of 2 bits":         (png((2, 3), FOUR_COLOURS, PALETTE), None),
    "palette, all clear":        (png((2, 3), FOUR_COLOURS, PALETTE, (b"tRNS", bytes(4))), (255, 255, 255)),
    "palette, half clear":       (png((2, 3), FOUR_COLOURS, PALETTE, (b"tRNS", bytes([255, 128, 0]))), None),
    "palette without colours":   (png((2, 3), FOUR_COLOURS, (b"PLTE", bytes(3))), None),
    "one bit":                   (encoded(Image.new("1", (SIZE, SIZE), 1)), (255, 255, 255)),
    "sRGB profile":              (encoded(IMAGE, icc_profile=SRGB), PICTURE),
    "profile of no RGB":         (encoded(IMAGE, icc_profile=LAB), PICTURE),
    "profile of nonsense":       (encoded(IMAGE, icc_profile=b"no profile"), PICTURE),
    "notes of HTML":             (encoded(IMAGE, pnginfo=named(HTML.decode())), PICTURE),
    "a WebP that moves once":    (moving("WEBP", 1), PICTURE),
    "PNG and ZIP in one":        (PNG + ZIP, PICTURE),
    "JPEG and HTML in one":      (JPEG + HTML, None),
    "WebP and ZIP in one":       (WEBP + ZIP, PICTURE),
    "one pixel":                 (encoded(Image.new("RGB", (1, 1), (10, 200, 30))), (10, 200, 30)),
    "a line":                    (encoded(Image.new("RGB", (3000, 1), (10, 200, 30))), (10, 200, 30)),
}
REFUSED = {  # file → why
    "nothing":              (b"", "the image is empty"),
    "one byte":             (b"\0", "of no JPEG, PNG or WebP file"),
    "the start of a PNG":   (PNG[:8], "broken or cut off|of no JPEG"),
    "the start of a JPEG":  (JPEG[:4], "broken or cut off|of no JPEG"),
    "half a PNG":           (PNG[: len(PNG) // 2], "broken or cut off"),
    "half a JPEG":          (JPEG[: len(JPEG) // 2], "broken or cut off"),
    "half a WebP":          (WEBP[: len(WEBP) // 2], "broken or cut off|of no JPEG"),
    "moving PNG":           (moving("PNG", 2), "animated, with 2 frames"),
    "moving WebP":          (moving("WEBP", 3), "animated, with 3 frames"),
    "moving GIF":           (moving("GIF", 2), "of no JPEG, PNG or WebP file"),
    "GIF":                  (encoded(IMAGE, "GIF"), "of no JPEG, PNG or WebP file"),
    "BMP":                  (encoded(IMAGE, "BMP"), "of no JPEG, PNG or WebP file"),
    "TIFF":                 (encoded(IMAGE, "TIFF"), "of no JPEG, PNG or WebP file"),
    "ICO":                  (encoded(IMAGE, "ICO"), "of no JPEG, PNG or WebP file"),
    "SVG":                  (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "of no JPEG, PNG or WebP file"),
    "PDF":                  (b"%PDF-1.7\n" + JPEG, "of no JPEG, PNG or WebP file"),
    "HTML before a PNG":    (HTML + PNG, "of no JPEG, PNG or WebP file"),
    "ZIP before a JPEG":    (ZIP + JPEG, "of no JPEG, PNG or WebP file"),
    "gzip of a PNG":        (b"\x1f\x8b\x08\0\0\0\0\0\0\0" + PNG, "of no JPEG, PNG or WebP file"),
    "10 gigapixels":        (png((8, 2), bytes(1000), size=100_000), "more than 50,000,000 pixels"),
    "64 megapixels":        (png((1, 0), bytes(1000), size=8000), "64,000,000 pixels; the limit is 50,000,000"),
    "no pixels":            (png((8, 2), b"", size=0), "broken or cut off|of no JPEG"),
    "profile that is a bomb": (behind(PNG, (b"iCCP", b"x\0\0" + BOMB)), "Decompressed data too large"),
    "notes that are a bomb": (behind(PNG, (b"zTXt", b"x\0\0" + BOMB)), "broken or cut off"),
}
# fmt: on


class Both:
    """The two ways of an image file: into training, and into an answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        registry = Registry(str(folder / "registry"))
        tiny_version(registry, live=True)
        self.replica = Replica("one", registry, ServingOptions(), bytes(32), OPEN)
        self.seen: list[np.ndarray] = []
        answer = self.replica.batcher.run

        def noting(queries: object, alone: bool) -> object:
            self.seen += [query.images for query in queries]  # type: ignore[attr-defined]
            return answer(queries, alone)  # type: ignore[arg-type]

        self.replica.batcher.run = noting  # type: ignore[assignment]

    def trained_on(self, files: dict[str, bytes], suffix: str) -> dict[str, np.ndarray | str]:
        """The pixels of each file, or why it is not used: read from a folder in which each has a class of its own."""
        for k, data in enumerate(files.values()):
            place = self.folder / suffix / f"{k:03d}"
            place.mkdir(parents=True)
            (place / "0.png").write_bytes(encoded(images(1, seed=100 + k)[0]))  # a class needs a sound one
            (place / f"1{suffix}").write_bytes(data)
        options = TrainingOptions(image_size=SIZE)
        assert options.resized_to == PREPROCESS.resize_to
        found = read(self.folder / suffix, options)
        why = {Path(line.partition(": ")[0]).parent.name: line.partition(": ")[2] for line in found.screening.broken}
        seen: dict[str, np.ndarray | str] = {}
        for k, name in enumerate(files):
            _, *edge = found.images.pixels[found.images.labels == found.names.index(f"{k:03d}")]
            seen[name] = np.asarray(edge[0]) if edge else why[f"{k:03d}"]
        return seen

    def served(self, data: bytes, kind: str) -> np.ndarray | str:
        """What the model sees of the file, or why it is refused: with a 4xx, then."""

        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self.replica.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.post("/v1/classify", files={"images": ("1", data, kind)})

        self.seen.clear()
        answer = asyncio.run(asked())
        if answer.status_code == 200:
            return self.seen[0][0]
        assert answer.status_code in (400, 413)
        return str(answer.json()["error"])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    made = Both(tmp_path_factory.mktemp("edges"))
    yield made
    made.replica.close()


def test_what_is_sound_is_seen_alike_by_training_and_serving_whatever_it_is_called(both: Both) -> None:
    trained = both.trained_on({name: data for name, (data, _) in SOUND.items()}, ".jpg")  # most are not
    for name, (data, wanted) in SOUND.items():
        served, taken = both.served(data, "image/webp"), trained[name]
        assert isinstance(served, np.ndarray), (name, served)
        assert isinstance(taken, np.ndarray), (name, taken)
        assert np.array_equal(served, taken), name
        if wanted is not None:
            assert np.abs(served.astype(int) - np.asarray(wanted)).max() <= 1, name


def sent_of(image: Image.Image) -> bytes:
    """The file that a client sends of a PIL image."""
    ((_, (_, file, _)),) = client_images.parts([image])
    return file.read()


@pytest.mark.parametrize("name", SOUND)
def test_a_client_sends_of_a_pil_image_what_is_seen_as_its_file_is(name: str) -> None:
    data, _ = SOUND[name]
    assert np.array_equal(decode(sent_of(Image.open(io.BytesIO(data))), PREPROCESS), decode(data, PREPROCESS))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_what_is_clear_in_a_pil_image_is_white(mode: str) -> None:
    clear = Image.new(mode, (SIZE, SIZE), 0 if mode == "PA" else (0,) * len(mode))
    if mode == "PA":
        clear.putalpha(0)
    assert (decode(sent_of(clear), PREPROCESS) == 255).all()


@pytest.mark.parametrize("mode", ["I;16", "I", "I;16B"])
def test_grey_of_16_bits_in_a_pil_image_is_as_bright_as_in_a_file(mode: str) -> None:
    grey = Image.new(mode, (SIZE, SIZE), 77 * 257)
    assert (decode(sent_of(grey), PREPROCESS) == 77).all()


def test_what_is_refused_is_refused_by_both_for_the_same_reason(both: Both) -> None:
    trained = both.trained_on({name: data for name, (data, _) in REFUSED.items()}, ".png")
    for name, (data, why) in REFUSED.items():
        served = both.served(data, "image/png")
        assert isinstance(served, str), name
        assert re.search(why, served), (name, served)
        assert trained[name] == served, name


TURNS = {
    2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.rot90(np.fliplr(a)),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.fliplr(a), -1), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_an_image_is_turned_as_the_note_says_and_as_it_lies_if_the_note_says_nothing(
    kind: str, orientation: int
) -> None:
    turned = TURNS.get(orientation, lambda a: a)(PICTURE)  # type: ignore[operator]
    assert np.array_equal(decode(lying(orientation, kind), PREPROCESS), turned)


@pytest.mark.parametrize("data", [REFUSED[f"{what} a bomb"][0] for what in ("profile that is", "notes that are")])
def test_bombs_beside_the_picture_take_no_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadImage):
            decode(data, PREPROCESS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data) < 300_000
    assert peak < 20 * 2**20
