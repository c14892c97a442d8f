"""Images as a caller has them (paths, bytes, arrays, PIL images, folders), and as they go over the wire."""

import io
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PIL
from PIL import ImageOps

from lifelist.exporter.errors import BadInput

Image = Path | str | bytes | tuple[str, bytes] | NDArray[np.uint8] | PIL.Image
"""A file by its path, its bytes, or its name and its bytes; pixels, H×W×3; a PIL image."""
Images = Image | Iterable[Image]
"""One or many. Pixels may be N×H×W×3 as well."""
OnSent = Callable[[int], object]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
OF_A_PART = 500  # bytes that a form adds to an image, about
QUERY_BYTES, UPLOAD_BYTES = 32 * 2**20, 192 * 2**20  # in one request: well below the server's limits by default
MODES_OF_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


def batches(images: Images, most: int, most_bytes: int) -> Iterator[list[Image]]:
    """The images in order, in lists of at most so many images and bytes; one too big for that goes alone."""
    some: list[Image] = []
    size = 0
    for image in each(images):
        more = _size(image) + OF_A_PART
        if some and (len(some) == most or size + more > most_bytes):
            yield some
            some, size = [], 0
        some.append(image)
        size += more
    if some:
        yield some


def each(images: Images) -> Iterator[Image]:
    """One image after the other. BadInput for what is none."""
    if isinstance(images, np.ndarray) and images.ndim == 4:
        yield from map(_checked, images)
    elif isinstance(images, Path | str | bytes | np.ndarray | PIL.Image) or _is_named(images):
        yield _checked(images)
    else:
        yield from map(_checked, images)


def _is_named(image: Any) -> bool:
    return isinstance(image, tuple) and list(map(type, image)) == [str, bytes]


def _checked(image: Any) -> Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            shape = "×".join(map(str, image.shape))
            raise BadInput(f"an array of {image.dtype}, {shape}, is no image; pixels are uint8, H×W×3 (or N×H×W×3)")
    elif not isinstance(image, Path | str | bytes | PIL.Image) and not _is_named(image):
        raise BadInput(
            f"an image is a path, bytes, (name, bytes), an array or a PIL image; not {type(image).__name__} "
            f"{str(image)[:60]!r}"
        )
    elif isinstance(image, Path | str) and not Path(image).is_file():
        said = "is a folder; give the files in it" if Path(image).is_dir() else "does not exist, or is no file"
        raise BadInput(f"{image} {said}")
    return cast(Image, image)


def body(images: Sequence[Image]) -> Mapping[str, Any]:
    """One query's images as httpx takes them: a tensor if all are pixels of one shape, else a form of files."""
    if not images:
        raise BadInput("there is no image to classify; give at least one")
    shapes = {image.shape if isinstance(image, np.ndarray) else None for image in images}
    if shapes == {None} or len(shapes) > 1:
        return {"files": parts(images)}
    pixels = np.stack(cast(list[NDArray[np.uint8]], images))
    headers = {"Content-Type": "application/octet-stream", "X-Tensor-Shape": ",".join(map(str, pixels.shape))}
    return {"content": pixels.tobytes(), "headers": headers}


def parts(images: Sequence[Image], on_sent: OnSent | None = None) -> list[tuple[str, tuple[str, IO[bytes], str]]]:
    """The images as the files of a form. `on_sent(bytes)` is called once as each leaves, however often it is sent."""
    made = []
    for k, image in enumerate(images):
        file = _as_file(image, k)
        name = file.name if isinstance(file, Path) else file[0]
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        made.append(("images", (name, cast(IO[bytes], _Sending(file, on_sent)), kind)))
    return made


def _as_file(image: Image, k: int) -> Path | tuple[str, bytes]:
    """A file on disk, or a name and bytes; pixels become PNG, which loses none. `k`: its place, for a name."""
    if isinstance(image, str | Path):
        return Path(image)
    if isinstance(image, bytes):
        return f"image-{k + 1}", image
    if isinstance(image, tuple):
        return image
    seen = PIL.fromarray(image) if isinstance(image, np.ndarray) else ImageOps.exif_transpose(image)
    out = io.BytesIO()
    (seen if seen.mode in MODES_OF_PNG else _for_png(seen)).save(out, "PNG")
    return f"image-{k + 1}.png", out.getvalue()


def _for_png(image: PIL.Image) -> PIL.Image:
    """An image of another mode in one that PNG has, its 16 bits or its transparency kept."""
    if image.mode.startswith("I"):
        return PIL.fromarray(np.asarray(image).clip(0, 2**16 - 1).astype(np.uint16))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _size(image: Image) -> int:
    """Bytes that it will have on the wire, at most; of a PIL image, about."""
    if isinstance(image, str | Path):
        return Path(image).stat().st_size
    if isinstance(image, PIL.Image):
        return image.width * image.height * len(image.getbands())
    if isinstance(image, np.ndarray):
        return image.nbytes
    return len(image[1] if isinstance(image, tuple) else image)


class _Sending:
    """An image as httpx reads one: opened when its turn comes, so that a thousand do not need a thousand handles."""

    def __init__(self, image: Path | tuple[str, bytes], on_sent: OnSent | None) -> None:
        self.image, self.on_sent, self.sent = image, on_sent, False
        self.size = image.stat().st_size if isinstance(image, Path) else len(image[1])

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.sent = False
        return self.size if whence == os.SEEK_END else offset

    def read(self, _: int = -1) -> bytes:
        if self.sent:
            return b""
        self.sent = True
        data = self.image.read_bytes() if isinstance(self.image, Path) else self.image[1]
        if self.on_sent is not None:
            self.on_sent(len(data))
            self.on_sent = None
        return data


# -------------------------------------------------------------------------------------------------------- folders


def unfolded(images: Images) -> Images:
    """The images, or those in the folder if it is one that is named."""
    path = Path(images) if isinstance(images, str | Path) else None
    return images_in(path) if path is not None and path.is_dir() else images


def images_in(path: Path) -> list[Path]:
    """The image files that a path names: itself, or those in the folder, sorted."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadInput(f"{path} does not exist")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise BadInput(f"{path} has no image; files that end in {', '.join(sorted(SUFFIXES))} count")
    return found


def labelled(paths: Sequence[Path], name: str | None = None) -> dict[str, list[Path]]:
    """Class name → image files. Without a name, a folder's own name is the class of the images in it."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        if name is not None:
            found.setdefault(name, []).extend(images_in(path))
        elif path.is_dir():
            below = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
            for folder in below or [path]:
                found.setdefault(folder.absolute().name, []).extend(images_in(folder))
        elif path.exists():
            raise BadInput(f"{path} is a file, so its class is not clear; say --class NAME")
        else:
            raise BadInput(f"{path} does not exist")
    return found
