"""What of a source is not used, and why: told in one line, listed in a file, and an error where it is too much."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lifelist.exporter.errors import BadInput
from lifelist.training.checkpoint import write_atomically

TOLD = 3  # of a list, in one line; the file has them all


@dataclass(slots=True)
class LeftOut:
    """Filled while a source is read."""

    broken: list[str] = field(default_factory=list)  # images that cannot be used, and why
    copies: list[str] = field(default_factory=list)  # images that stand there already, and where
    ignored: list[Path] = field(default_factory=list)  # files with suffixes that are not read
    used: Counter[str] = field(default_factory=Counter)  # class name → its images that are used
    reasons: dict[str, str] = field(default_factory=dict)  # class name → one of its images that is not used, and why

    def __len__(self) -> int:
        return len(self.broken) + len(self.copies) + len(self.ignored)

    def use(self, class_name: str, count: int = 1) -> None:
        """So many images of a class are used."""
        self.used[class_name] += count

    def leave(self, class_name: str, where: str, reason: str) -> None:
        """An image cannot be used."""
        self.broken.append(f"{where}: {reason}")
        self.reasons.setdefault(class_name, self.broken[-1])

    def leave_copy(self, class_name: str, where: str, other: str) -> None:
        """An image is a copy of another, which is used."""
        self.copies.append(f"{where} ({class_name}) is {other}")
        self.reasons.setdefault(class_name, self.copies[-1])

    def check(self) -> None:
        """BadInput if most images are broken, or if a class has none left: the source is not what was thought."""
        tried = len(self.broken) + len(self.copies) + self.used.total()
        if 2 * len(self.broken) > tried:
            raise BadInput(
                f"{len(self.broken):,} of {tried:,} images cannot be used, which is more than half: "
                f"{_some(self.broken)}. Is this the right folder?"
            )
        if empty := [name for name in self.reasons if not self.used[name]]:
            raise BadInput(
                f"no image can be used of {'class' if len(empty) == 1 else 'classes'} {', '.join(map(repr, empty))}: "
                f"{_some([self.reasons[name] for name in empty])}. Mend the images, or remove the class"
            )

    def warnings(self, report: Path | None = None) -> Iterator[tuple[str, str]]:
        """(what, message) of each kind that there is; report: the file where all of them stand."""
        where = f". All are listed in {report}" if report else ""
        if self.broken:
            message = f"{_images(len(self.broken))} left out, not usable: {_some(self.broken)}{where}"
            yield "data.broken-left-out", message
        if self.copies:
            message = f"{_images(len(self.copies))} left out, copies of others: {_some(self.copies)}{where}"
            yield "data.copies-left-out", message
        if self.ignored:
            suffixes = Counter(file.suffix.lower() or "none" for file in self.ignored)
            listed = ", ".join(f"{suffix} ({count:,})" for suffix, count in suffixes.most_common())
            yield "data.files-ignored", f"{_files(len(self.ignored))} not read: {listed}{where}"

    def write(self, report: Path) -> None:
        """The whole list, one a line; no file if nothing is left out."""
        if not len(self):
            report.unlink(missing_ok=True)
            return
        parts = (
            ("images that cannot be used", self.broken),
            ("copies of other images", self.copies),
            ("files with suffixes that are not read", list(map(str, self.ignored))),
        )
        text = "".join(
            f"# {len(some):,} {what}\n" + "".join(f"{one}\n" for one in some) for what, some in parts if some
        )
        write_atomically(report, text.encode())


def _some(lines: list[str]) -> str:
    more = len(lines) - TOLD
    return "; ".join(lines[:TOLD]) + (f"; and {more:,} more" if more > 0 else "")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _files(count: int) -> str:
    return "1 file has a suffix that is" if count == 1 else f"{count:,} files have suffixes that are"
