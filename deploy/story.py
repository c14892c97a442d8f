"""The demo's story: which classes come when, and the images of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lifelist.deploy import examples
from lifelist.deploy.settings import Settings
from lifelist.deploy.terminal import note
from lifelist.exporter.errors import BadInput
from lifelist.exporter.preprocess import decode

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
LEAST_IMAGES, LEAST_CLASSES = 20, 4


@dataclass(frozen=True, slots=True)
class Story:
    """Which classes come when, and the images of each: those to learn from, and those held out for the client."""

    base: tuple[str, ...]
    arriving: tuple[tuple[str, ...], tuple[str, ...]]
    learn: Path  # learn/<class>/*: what the user has
    held_out: tuple[tuple[str, bytes], ...]  # (class, file): never shown to the server but as queries

    def known_after(self, step: int) -> tuple[str, ...]:
        """The classes known after the base (step 0), the first increment (1) and the second (2)."""
        return self.base + sum(self.arriving[:step], ())


def digits(folder: Path) -> Story:
    """scikit-learn's handwritten digits (1,797 images of 8×8 pixels, 10 classes) as PNG files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    files: dict[str, list[Path]] = {name: [] for name in DIGITS}
    for k, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / "images" / DIGITS[label] / f"{k:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image / 16).round().astype(np.uint8)).convert("RGB").save(path)
        files[DIGITS[label]].append(path)
    return _story(files, folder)


def own_images(data: Path, folder: Path, settings: Settings) -> Story:
    """A folder per class of JPEG, PNG or WebP files. Those to hold out that the server would refuse are left out.

    BadInput if there are too few classes, or too few images of one.
    """
    if not data.is_dir():
        raise BadInput(f"--data takes a folder that has one folder of images for each class; {data} is not a folder")
    files = {
        sub.name: [f for f in sorted(sub.iterdir()) if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()]
        for sub in sorted(data.iterdir())
        if sub.is_dir()
    }
    if few := {name: len(found) for name, found in files.items() if len(found) < LEAST_IMAGES}:
        raise BadInput(f"the demo needs at least {LEAST_IMAGES} images of each class in {data}; too few: {few}")
    if len(files) < LEAST_CLASSES:
        raise BadInput(f"the demo needs at least {LEAST_CLASSES} classes in {data}, two to add; found {list(files)}")
    seen = examples.decoding(settings.training.image_size, settings.training.resized_to)
    refused: list[str] = []

    def is_usable(file: Path, content: bytes) -> bool:
        try:
            decode(content, seen, settings.serving.image_limits)
        except BadInput as error:
            refused.append(f"{file}: {error}")
            return False
        return True

    story = _story(files, folder, is_usable)
    if refused:
        note(f"{len(refused)} of the images to hold out cannot be used, and are left out; the first is {refused[0]}")
    if without := sorted(set(files) - {name for name, _ in story.held_out}):
        raise BadInput(f"none of the images to hold out can be used of {', '.join(without)}; mend them, or add others")
    return story


def _story(
    files: Mapping[str, Sequence[Path]], folder: Path, is_usable: Callable[[Path, bytes], bool] = lambda *_: True
) -> Story:
    """Every fourth image of a class is held out, if usable; of ten classes six come first, then two and two."""
    names = list(files)
    late = max(1, len(names) // 5)
    held_out: list[tuple[str, bytes]] = []
    for name, found in files.items():
        (folder / "learn" / name).mkdir(parents=True)
        for k, path in enumerate(found):
            if k % 4 == 3:
                content = path.read_bytes()
                if is_usable(path, content):
                    held_out.append((name, content))
            else:
                (folder / "learn" / name / path.name).symlink_to(path.resolve())
    first, second = tuple(names[-2 * late : -late]), tuple(names[-late:])
    return Story(tuple(names[: -2 * late]), (first, second), folder / "learn", tuple(held_out))
