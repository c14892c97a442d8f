"""Where labelled images come from: a folder per class, Parquet files, or the digits that ship with scikit-learn.

Nothing here needs torch. Each reader yields `Encoded` files as they are; `read` in data.py decodes them.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lifelist.exporter.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ROWS = 128  # of a Parquet file that are held at a time
_BUILT_IN = ("digits", "turned-digits")
Split = Literal["train", "test", ""]  # "": the source does not say
_SPLITS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image file and its class."""

    class_name: str
    data: bytes
    where: str  # for messages: path, or file and row
    split: Split = ""
    rank: int = 0  # the class's place in the order of arrival, where the source has one; else names are sorted
    problem: str = ""  # why there are no bytes


def encoded(source: Path | str, *, opened: bool = True) -> Iterator[Encoded]:
    """Every image of `source`, in a fixed order. BadInput says what is wrong with it, and what would be right.

    source: "digits", or "turned-digits" for 20 classes; a .parquet file, or a folder of them; or a folder with one
    folder of images for each class, which may stand in folders named train and test.
    opened: False for names, labels and places only, without bytes, which is quick.
    """
    if str(source) in _BUILT_IN:
        return _digits(turned=str(source) == "turned-digits")
    path = Path(source)
    if not path.exists():
        raise BadInput(f'{path} does not exist; give a folder with one folder per class, Parquet files, or "digits"')
    if path.is_file():
        if path.suffix != ".parquet":
            raise BadInput(f"{path} is a file, but not .parquet; images stand in a folder per class")
        return _parquet([path], opened)
    if shards := _shards(path):
        return _parquet(shards, opened)
    return _folders(path, opened)


def counted(source: Path | str) -> Counter[str]:
    """How many images of each class there are, but for those set apart for testing; none of them is read."""
    return Counter(image.class_name for image in encoded(source, opened=False) if image.split != "test")


def ignored(source: Path | str) -> list[Path]:
    """The files in a folder that `encoded` passes over; hidden ones are nobody's images."""
    path = Path(source)
    if str(source) in _BUILT_IN or not path.is_dir():
        return []
    read = {*(_shards(path) or (file for file, _, _ in _listed(path)))}
    found = (p for p in sorted(path.rglob("*")) if p not in read and not p.is_dir())
    return [p for p in found if not any(part[0] == "." for part in p.relative_to(path).parts)]


def empty(source: Path | str) -> list[Path]:
    """The folders of classes without an image, which `encoded` passes over."""
    path = Path(source)
    if str(source) in _BUILT_IN or not path.is_dir() or _shards(path):
        return []
    return [folder for folder, _ in _class_folders(path) if not any(_images_in(folder))]


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts "class 2" before "class 10"."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name) if part]


def class_names(images: Iterable[Encoded]) -> list[str]:
    """The classes in order of arrival: by rank, then by name."""
    return [name for _, name in sorted({(e.rank, e.class_name) for e in images}, key=lambda c: (c[0], natural(c[1])))]


def _digits(*, turned: bool) -> Iterator[Encoded]:
    """1,797 handwritten digits of 8×8 pixels (Alpaydin & Kaynak 1998), as PNG files.

    turned: then again, a quarter turned to the left, as ten more classes.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for turn in range(1 + turned):
        for k, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            file = io.BytesIO()
            image = np.rot90((255 * pixels / 16).round().astype(np.uint8), turn)
            Image.fromarray(image).convert("RGB").save(file, "png")
            name = f"{DIGITS[label]} turned" if turn else DIGITS[label]
            yield Encoded(name, file.getvalue(), f"{'turned ' if turn else ''}digit {k}", rank=10 * turn + int(label))


def _class_folders(root: Path) -> list[tuple[Path, Split]]:
    inner = _subfolders(root)
    splits = {folder: _SPLITS.get(folder.name.lower(), "") for folder in inner}
    if inner and all(splits.values()):
        return [(folder, splits[split]) for split in inner for folder in _subfolders(split)]
    return [(folder, "") for folder in inner]


def _listed(root: Path) -> list[tuple[Path, str, Split]]:
    """(file, class name, split) of every image in folders of classes."""
    files = [(f, folder.name, split) for folder, split in _class_folders(root) for f in _images_in(folder)]
    if not files:
        raise BadInput(
            f"{root} holds no images: expected one folder for each class, named as the class, "
            f"with {', '.join(SUFFIXES)} files; found {[p.name for p in sorted(root.iterdir())[:5]] or 'nothing'}"
        )
    return files


def _folders(root: Path, opened: bool) -> Iterator[Encoded]:
    for file, name, split in _listed(root):
        data, problem = b"", ""
        if opened:
            try:
                data = file.read_bytes()
            except OSError as error:
                problem = f"cannot be read: {error.strerror}"
        yield Encoded(name, data, str(file), split, problem=problem)


def _subfolders(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."), key=lambda p: natural(p.name))


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())


def _parquet(shards: list[Path], opened: bool) -> Iterator[Encoded]:
    """Rows of the usual public layout: image struct{bytes, path} or binary; label int or string; maybe class_name."""
    import pyarrow.parquet

    label_of: dict[str, tuple[Any, str]] = {}  # class name → its label, and where it was first seen
    for shard in shards:
        try:
            file = pyarrow.parquet.ParquetFile(shard, pre_buffer=False)  # else it holds the whole file
        except pyarrow.ArrowInvalid as error:
            raise BadInput(f"{shard} is not a Parquet file: {error}") from error
        image, label, named = _columns(file.schema_arrow, shard)
        known = _label_names(file.schema_arrow, label)
        words = re.split(r"[^a-z]+", shard.stem.lower())
        split: Split = next((_SPLITS[word] for word in words if word in _SPLITS), "")
        columns = (image if opened else None, label, named)
        row = 0
        for batch in file.iter_batches(ROWS, columns=[c for c in columns if c is not None], use_threads=False):
            for values in batch.to_pylist():
                found = _row(values, image, label, named, known, split, f"{shard} row {row}")
                first, where = label_of.setdefault(found.class_name, (values[label], found.where))
                if first != values[label]:
                    raise BadInput(
                        f"{found.where} has class {found.class_name!r} with {label} {values[label]!r}, but {where} has "
                        f"it with {first!r}; give each class one name and one label"
                    )
                yield found
                row += 1


def _columns(schema: Any, shard: Path) -> tuple[str, str, str | None]:
    """(image, label, class name or None): by their usual names, else the only column of a type that fits."""
    import pyarrow

    def pick(what: str, usual: tuple[str, ...], fits: Any) -> str:
        fitting: list[str] = [column.name for column in schema if fits(column.type)]
        for name in usual:
            if name in fitting:
                return name
        if len(fitting) != 1:
            raise BadInput(
                f"{shard} has no column that is clearly the {what}: expected one named {' or '.join(usual)}; "
                f"it has {', '.join(f'{c.name} ({c.type})' for c in schema)}"
            )
        return fitting[0]

    def is_bytes(kind: Any) -> bool:
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    def is_image(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return any(kind.field(k).name == "bytes" and is_bytes(kind.field(k).type) for k in range(kind.num_fields))
        return is_bytes(kind)

    def is_text(kind: Any) -> bool:
        if pyarrow.types.is_dictionary(kind):
            return is_text(kind.value_type)
        return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))

    def is_label(kind: Any) -> bool:
        return bool(pyarrow.types.is_integer(kind)) or is_text(kind)

    image = pick("image", ("image", "img"), is_image)
    label = pick("label", ("label", "labels", "fine_label", "class"), is_label)
    named = "class_name" if "class_name" in schema.names and is_text(schema.field("class_name").type) else None
    return image, label, named


def _label_names(schema: Any, label: str) -> list[str] | None:
    """The names that Hugging Face's metadata give to integer labels, if they are there."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _row(
    values: Mapping[str, Any],
    image: str,
    label: str,
    named: str | None,
    known: list[str] | None,
    split: Split,
    where: str,
) -> Encoded:
    content, value = values.get(image), values[label]  # no content if it is not opened
    data = content.get("bytes") if isinstance(content, dict) else content
    problem = "" if data else f"has no image bytes in column {image!r}; files outside the Parquet are not followed"
    if value is None or (isinstance(value, int) and value < 0):
        raise BadInput(f"{where} has no label ({value!r}) in column {label!r}")
    name = str(value)
    if named is not None and values[named]:
        name = str(values[named])
    elif isinstance(value, int) and known is not None:
        if value >= len(known):
            raise BadInput(f"{where} has label {value}, but the file's metadata name only {len(known)} classes")
        name = known[value]
    return Encoded(name, data or b"", where, split, value if isinstance(value, int) else 0, problem)
