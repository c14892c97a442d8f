"""Where bytes are kept: a folder or an object store, seen through the few operations that a registry needs.

Everything stored is written once and never changed, so one operation carries all of it: *create*, which either makes a
whole, durable file or says that there is one already. Blobs, versions and references are all built on that.
"""

import contextlib
import inspect
import os
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from lifelist.exporter.errors import BadSetting, Missing

SCRATCH = "tmp"  # where unfinished files lie, beside what they are for


class Storage(Protocol):
    """Files by path, relative to a root, with "/" between the parts."""

    def create(self, path: str, data: bytes) -> bool:
        """Store a new file, whole or not at all. False, and nothing done, if there is one."""

    def replace(self, path: str, data: bytes) -> None:
        """Store a file over what is there: readers see the one or the other, whole."""

    def move(self, path: str, to: str) -> None:
        """Give a file another path, where none is; Missing if there is none."""

    def read(self, path: str) -> bytes:
        """The file's bytes; Missing if there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    def names(self, folder: str) -> list[str]:
        """The names right under a folder, sorted; [] if there is no such folder."""

    def files(self, folder: str) -> list[str]:
        """The paths of all files below a folder, sorted."""

    def touch(self, path: str) -> None:
        """Make a file young again, so that nobody takes it for a leftover; Missing if there is none."""

    def age_s(self, path: str) -> float:
        """Seconds since the file was made or touched; Missing if there is none."""

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The storage that a folder's path or an fsspec URL (s3://…, gs://…, memory://…) names. It need not exist yet."""
    try:
        fs, path = fsspec.core.url_to_fs(os.fspath(url))
    except (ImportError, ValueError) as error:
        raise BadSetting(f"{os.fspath(url)!r} is no folder, and no URL that can be opened here: {error}") from error
    return Folder(Path(path)) if isinstance(fs, LocalFileSystem) else ObjectStore(fs, path)


class Folder:
    """A local folder. A file is written under another name, synced, then linked to its own: never seen half-written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, path: str, data: bytes) -> bool:
        target = self.root / path
        if target.exists():
            return False
        with self._written(data) as unfinished:
            self._make(target.parent)
            try:
                os.link(unfinished, target)  # atomic, and fails if the name is taken
            except FileExistsError:
                return False
        _sync(target.parent)
        return True

    def replace(self, path: str, data: bytes) -> None:
        target = self.root / path
        with self._written(data) as unfinished:
            self._make(target.parent)
            os.replace(unfinished, target)
        _sync(target.parent)

    def move(self, path: str, to: str) -> None:
        target = self.root / to
        self._make(target.parent)
        try:
            os.rename(self.root / path, target)
        except FileNotFoundError:
            raise Missing(f"{self.root / path} does not exist") from None

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"{self.root / path} does not exist") from None

    def exists(self, path: str) -> bool:
        return (self.root / path).is_file()

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, folder: str) -> list[str]:
        found = (self.root / folder).rglob("*")
        return sorted(path.relative_to(self.root).as_posix() for path in found if path.is_file())

    def touch(self, path: str) -> None:
        try:
            os.utime(self.root / path)
        except FileNotFoundError:
            raise Missing(f"{self.root / path} does not exist") from None

    def age_s(self, path: str) -> float:
        try:
            return time.time() - (self.root / path).stat().st_mtime
        except FileNotFoundError:
            raise Missing(f"{self.root / path} does not exist") from None

    def remove(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _written(self, data: bytes) -> Iterator[Path]:
        """A file with these bytes, durable, under a name of its own; gone afterwards if it still has that name."""
        unfinished = self.root / SCRATCH / uuid.uuid4().hex
        self._make(unfinished.parent)
        descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444)  # nothing stored is ever changed
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield unfinished
        finally:
            unfinished.unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        """The folder and those above it, durable."""
        if folder.is_dir():
            return
        self._make(folder.parent)
        with contextlib.suppress(FileExistsError):  # another writer made it just now
            folder.mkdir()
        _sync(folder.parent)


class ObjectStore:
    """Any other file system of fsspec; writing needs one whose `pipe_file` can create without overwriting."""

    def __init__(self, fs: Any, root: str) -> None:
        self.fs, self.root = fs, root.rstrip("/")
        self._proven = False  # that it really refuses to overwrite: some stores take the condition and ignore it

    def create(self, path: str, data: bytes) -> bool:
        if not self._proven:
            trial = f"{SCRATCH}/{uuid.uuid4().hex}"
            if not _creates_atomically(self.fs) or not self._create(trial, b"") or self._create(trial, b""):
                raise BadSetting(
                    f"{self.fs.protocol} cannot create a file only if it is absent, so two writers could overwrite "
                    "each other's versions; use a local folder, or an object store with conditional writes (s3, gs, …)"
                )
            self.remove(trial)
            self._proven = True
        return self._create(path, data)

    def _create(self, path: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(f"{self.root}/{path}", data, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self.root}/{path}", data)

    def move(self, path: str, to: str) -> None:
        """Copied, then removed: killed in between, it lies in both places."""
        self.replace(to, self.read(path))
        self.remove(path)

    def read(self, path: str) -> bytes:
        try:
            data: bytes = self.fs.cat_file(f"{self.root}/{path}")
        except FileNotFoundError:
            raise Missing(f"{self.root}/{path} does not exist") from None
        return data

    def exists(self, path: str) -> bool:
        return bool(self.fs.isfile(f"{self.root}/{path}"))

    def names(self, folder: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(f"{self.root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)

    def files(self, folder: str) -> list[str]:
        self.fs.invalidate_cache()
        inside = self.fs._strip_protocol(self.root)
        return sorted(path.removeprefix(inside).lstrip("/") for path in self.fs.find(f"{self.root}/{folder}"))

    def touch(self, path: str) -> None:
        """An object store dates what is written, so the same bytes are written again."""
        self.replace(path, self.read(path))

    def age_s(self, path: str) -> float:
        self.fs.invalidate_cache()
        try:
            made: datetime = self.fs.modified(f"{self.root}/{path}")
        except FileNotFoundError:
            raise Missing(f"{self.root}/{path} does not exist") from None
        return time.time() - made.timestamp()

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{path}")


def _creates_atomically(fs: Any) -> bool:
    """Whether the file system has a create-if-absent of its own; fsspec's stand-in looks first and then overwrites."""
    own = getattr(type(fs), "_pipe_file", type(fs).pipe_file)
    generic = (fsspec.AbstractFileSystem.pipe_file, AsyncFileSystem._pipe_file)
    return own not in generic and "mode" in inspect.signature(own).parameters


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
