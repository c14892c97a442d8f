"""Which images of a source are used, and what is said of the others: one line, a report, or an error if it is much."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lifelist.exporter.errors import BadInput
from lifelist.training.checkpoint import write_atomically
from lifelist.training.names import alike, looks_like
from lifelist.training.sources import SUFFIXES, Encoded, empty, ignored

TOLD = 3  # of a list, in one line; the report has them all


@dataclass(slots=True)
class Screening:
    """Filled while a source is read: an image is used once, and only if nothing is the matter with it."""

    strict: bool = False  # the first image that cannot be used is an error
    ignored: Sequence[Path] = ()  # files that are no images of a class
    empty: Sequence[Path] = ()  # folders of classes without an image
    used: dict[str, Encoded] = field(default_factory=dict)  # by sha256, without their bytes
    broken: list[str] = field(default_factory=list)  # images that cannot be used, and why
    copies: list[str] = field(default_factory=list)  # images that stand there already, and where
    reasons: dict[str, str] = field(default_factory=dict)  # class name → one of its images that is not used, and why
    report: Path | None = None  # where all of them are listed

    @classmethod
    def of(cls, source: Path | str, strict: bool) -> "Screening":
        """For a source that is about to be read. With `strict`, BadInput if a class has no image at all."""
        made = cls(strict, ignored(source), empty(source))
        if strict and made.empty:
            raise BadInput(
                f"no image of {', '.join(SUFFIXES)} in {_some([*map(str, made.empty)])}; add some, or remove the folder"
            )
        return made

    def takes(self, image: Encoded, problem: str = "") -> bool:
        """Whether this image is to be used. problem: why it cannot be."""
        if problem:
            line = f"{image.where}: {problem}"
            if self.strict:
                raise BadInput(line)
            self.broken.append(line)
            self.reasons.setdefault(image.class_name, line)
            return False
        first = self.used.setdefault(hashlib.sha256(image.data).hexdigest(), replace(image, data=b""))
        if first.where == image.where:
            return True
        self.copies.append(f"{image.where} ({image.class_name}) is {first.where} ({first.class_name})")
        self.reasons.setdefault(image.class_name, self.copies[-1])
        return False

    def conclude(self, report: Path | None = None) -> None:
        """Write the report, if there is anything to list. BadInput if most images are broken, or all of a class are not
        used: the source is not what was thought.
        """
        if report is not None:
            self._write(report)
        tried = len(self.broken) + len(self.copies) + len(self.used)
        if 2 * len(self.broken) > tried:
            raise BadInput(
                f"{len(self.broken):,} of {tried:,} images cannot be used, which is more than half: "
                f"{_some(self.broken)}{self._listed}. Is this the right data?"
            )
        if empty := sorted(set(self.reasons) - {image.class_name for image in self.used.values()}):
            raise BadInput(
                f"no image can be used of {'class' if len(empty) == 1 else 'classes'} {', '.join(map(repr, empty))}: "
                f"{_some([self.reasons[name] for name in empty])}{self._listed}. Mend the images, or remove the class"
            )

    def warnings(self) -> Iterator[tuple[str, str]]:
        """(what, message) of each kind that there is."""
        if self.broken:
            yield "data.broken-left-out", f"{_images(self.broken)} cannot be used: {_some(self.broken)}{self._listed}"
        if self.copies:
            yield "data.copies-left-out", f"{_images(self.copies)} copies of others: {_some(self.copies)}{self._listed}"
        if self.ignored:
            suffixes = Counter(file.suffix.lower() or "none" for file in self.ignored)
            counts = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common())
            message = f"files that are no images of a class are not read, by suffix: {counts}{self._listed}"
            yield "data.files-ignored", message
        if self.empty:
            folders = "1 folder of a class" if len(self.empty) == 1 else f"{len(self.empty):,} folders of classes"
            message = f"{folders} without an image left out: {_some([*map(str, self.empty)])}{self._listed}"
            yield "data.folders-empty", message
        for names in alike(image.class_name for image in self.used.values()):
            yield "data.names-alike", looks_like(names)

    @property
    def _listed(self) -> str:
        return f"; all are listed in {self.report}" if self.report else ""

    def _write(self, report: Path) -> None:
        kinds = {
            "images that cannot be used": self.broken,
            "copies of other images": self.copies,
            "files that are no images of a class": [str(file) for file in self.ignored],
            "folders of classes without an image": [str(folder) for folder in self.empty],
        }
        lines = [line for kind, some in kinds.items() if some for line in (f"# {len(some):,} {kind}", *some)]
        if lines:
            write_atomically(report, "".join(f"{line}\n" for line in lines).encode())
            self.report = report
        else:
            report.unlink(missing_ok=True)  # that of an earlier try


def _some(lines: Sequence[str]) -> str:
    more = len(lines) - TOLD
    return "; ".join(lines[:TOLD]) + (f"; and {more:,} more" if more > 0 else "")


def _images(lines: Sequence[str]) -> str:
    return "1 image is left out," if len(lines) == 1 else f"{len(lines):,} images are left out,"
