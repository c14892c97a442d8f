"""Where versions are kept: blobs by their content, versions by number, references that only move forward.

    blobs/sha256/<aa>/<digest>         content-addressed, immutable
    versions/<n>/manifest.json         written last, create-if-absent: a version without it does not exist
    refs/<name>/<generation>.json      {"version", "at"}, create-if-absent; the highest generation is what holds
    tmp/                               unfinished files, and blobs that are about to be removed

A reference is a log: to move it is to create generation g+1, which succeeds for one of those who saw g. That is
compare-and-swap on folders and object stores alike, and the log says what was live when. `previous` is read off the log
of `live`, so the two can never disagree.
"""

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from lifelist.exporter.difference import difference
from lifelist.exporter.errors import BadInput, Corrupt, LifelistError, Missing, Moved
from lifelist.exporter.manifest import FileEntry, Manifest
from lifelist.exporter.storage import SCRATCH, Storage, open_storage

GRACE_S = 3600.0  # what is younger may belong to a publication under way
REMEMBERED = 16  # manifests
_ASIDE = re.compile(rf"{SCRATCH}/[0-9a-f]{{64}}\.[0-9a-f]{{32}}")  # a blob that a collector took out of its place


@dataclass(frozen=True, slots=True)
class Ref:
    """Where a reference stands: the version, and how often it was moved to get there."""

    version: int
    generation: int
    at: str = field(default="", compare=False)  # RFC 3339, UTC: when it was moved


class Blobs:
    """Bytes by their sha256. What is stored twice is kept once; what is read is verified."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def put(self, data: bytes) -> str:
        """Keep `data`; its sha256, by which `get` gives it back."""
        digest = hashlib.sha256(data).hexdigest()
        if not self.storage.create(_place(digest), data):
            try:
                self.get(digest)
                self.storage.touch(_place(digest))  # it may be an old leftover, about to be collected
            except (Missing, Corrupt):
                self.storage.replace(_place(digest), data)
        return digest

    def get(self, sha256: str) -> bytes:
        """The bytes with that sha256: Missing if there are none, Corrupt if what is stored is not it."""
        data = self.storage.read(_place(sha256))
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise Corrupt(f"blob {sha256}: the {len(data)} stored bytes have sha256 {found}; they were altered")
        return data

    def has(self, sha256: str) -> bool:
        """Whether there are bytes under that sha256; only reading tells whether they are sound."""
        return self.storage.exists(_place(sha256))

    def remove(self, sha256: str) -> None:
        """Forget the bytes; nothing happens if there are none."""
        self.storage.remove(_place(sha256))

    def digests(self) -> list[str]:
        """The sha256 of all blobs, sorted."""
        return sorted(path.rsplit("/", 1)[1] for path in self.storage.files("blobs/sha256"))

    def age_s(self, sha256: str) -> float:
        """Seconds since the blob was put, the last time if several; Missing if there is none."""
        return self.storage.age_s(_place(sha256))


class Registry:
    """The versions in a folder, or under an fsspec URL. Any number of processes may read and write it at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.storage = open_storage(url)
        self.blobs = Blobs(self.storage)

    def put_blob(self, data: bytes) -> str:
        """Keep bytes that a version will refer to; their sha256."""
        return self.blobs.put(data)

    def blob(self, sha256: str) -> bytes:
        """Verified bytes; Missing or Corrupt."""
        return self.blobs.get(sha256)

    def has_blob(self, sha256: str) -> bool:
        """Whether there are bytes under that sha256."""
        return self.blobs.has(sha256)

    def publish(self, draft: Manifest, files: Mapping[str, bytes], reuse: Sequence[FileEntry] = ()) -> Manifest:
        """Make a version of a draft and its files, under the next free number; the numbered manifest.

        `reuse` are files that another version brought, and which this one shares. The files are stored first and the
        manifest last: until it is there, complete, no reader sees anything. When two publish at once, one gets the
        next number and the other the one after. Missing if a file to share is gone, Corrupt if it is damaged.
        """
        contents = [*files.values(), *self._shared(reuse)]
        for data in contents:
            self.blobs.put(data)
        entries = (*(FileEntry.of(name, data) for name, data in files.items()), *reuse)
        number = max(self.versions(), default=0)
        while True:
            number += 1
            manifest = replace(draft, version=number, files=tuple(sorted(entries, key=lambda entry: entry.name)))
            if self.storage.create(_manifest_place(number), manifest.as_json().encode()):
                break
        for data in contents:  # a collector that did not see the manifest may have taken an old leftover meanwhile
            if not self.blobs.has(hashlib.sha256(data).hexdigest()):
                self.blobs.put(data)
        return manifest

    def _shared(self, reuse: Sequence[FileEntry]) -> Iterator[bytes]:
        """The verified bytes of files that another version brought."""
        for entry in reuse:
            try:
                yield entry.verified(self.storage.read(_place(entry.sha256)))
            except Missing:
                raise Missing(
                    f"cannot publish: {self.url} no longer holds the bytes of {entry.name}; give them anew"
                ) from None

    def versions(self) -> list[int]:
        """The numbers of all versions, lowest first."""
        numbers = sorted(int(name) for name in self.storage.names("versions") if re.fullmatch(r"[1-9][0-9]*", name))
        return [number for number in numbers if self.storage.exists(_manifest_place(number))]

    def manifest(self, version: int) -> Manifest:
        """What a version says of itself. Missing names those there are; Corrupt if it is not what was published."""
        try:
            data = self.storage.read(_manifest_place(version))
        except Missing:
            known = ", ".join(map(str, self.versions())) or "none; publish one first"
            raise Missing(f"there is no version {version} in {self.url}; there is: {known}") from None
        manifest = Manifest.from_json(data)
        if manifest.version != version:
            raise Corrupt(f"version {version} says that it is version {manifest.version}; it was moved or copied")
        return manifest

    def read(self, manifest: Manifest, name: str) -> bytes:
        """A file of a version, verified. Corrupt if its bytes are altered or gone."""
        entry = manifest.file(name)
        try:
            return entry.verified(self.storage.read(_place(entry.sha256)))
        except Missing:
            raise Corrupt(f"version {manifest.version} lost its {name}: no blob {entry.sha256} in {self.url}") from None

    def ref(self, name: str) -> Ref | None:
        """Where a reference stands; None if it was never set."""
        if name == "previous":
            return self._previous()
        generations = self._generations(name)
        return self._ref_at(name, generations[-1]) if generations else None

    def history(self, name: str) -> list[Ref]:
        """Everywhere that a reference stood, oldest first: what was live, and since when."""
        return [self._ref_at(name, generation) for generation in self._generations(name)]

    def move(self, name: str, to: int, expected: int | None) -> Ref:
        """Point a reference at version `to` if its generation is still `expected` (None: not yet set), else Moved."""
        if name == "previous":
            raise BadInput("`previous` follows from the history of `live`, and cannot be moved by itself")
        self.manifest(to)
        generations = self._generations(name)
        found = generations[-1] if generations else None
        if found == expected:
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            ref = Ref(to, 1 if expected is None else expected + 1, at)
            content = json.dumps({"version": ref.version, "at": ref.at}) + "\n"
            if self.storage.create(_ref_place(name, ref.generation), content.encode()):
                return ref
        now = self.ref(name)
        stands = f"at generation {now.generation}, version {now.version}" if now else "not set"
        wanted = "it to be unset" if expected is None else f"generation {expected}"
        raise Moved(f"reference {name!r} is {stands}; you expected {wanted}. Read it again, and decide again")

    def promote(self, version: int, expected: int | None) -> Ref:
        """Make a version live, if `live` is still at generation `expected`; what was live becomes `previous`."""
        return self.move("live", version, expected)

    def verify(self, version: int) -> list[str]:
        """Read every byte of a version and say what is wrong with it; [] if it is sound. Missing if there is none."""
        try:
            manifest = self.manifest(version)
        except Corrupt as error:
            return [f"manifest.json: {error}"]
        problems = []
        for entry in manifest.files:
            try:
                self.read(manifest, entry.name)
            except LifelistError as error:
                problems.append(str(error))
        return problems

    def diff(self, first: int, second: int) -> dict[str, Any]:
        """In what the manifest of version `second` differs from that of `first`."""
        return difference(self.manifest(first), self.manifest(second))

    def collect_garbage(self, older_than_s: float = GRACE_S) -> list[str]:
        """Remove blobs that no version refers to and files that were never finished; the paths of what was removed.

        What is younger than `older_than_s` stays: it may belong to a publication under way. Nothing is removed while a
        manifest cannot be read (Corrupt), since nobody knows what it refers to.
        """
        digests = self.blobs.digests()  # listed before the manifests, which may come to refer to one of them
        needed = self._needed()
        removed = []
        for path in self.storage.files(SCRATCH):
            if not _ASIDE.fullmatch(path) and self._is_old(path, older_than_s):
                self.storage.remove(path)
                removed.append(path)
        for digest in digests:
            if digest not in needed and self._is_old(_place(digest), older_than_s):  # asked last: `put` makes it young
                with contextlib.suppress(Missing):  # collected by another, in this moment
                    self.storage.move(_place(digest), f"{SCRATCH}/{digest}.{uuid.uuid4().hex}")
        return removed + self._forget_what_is_aside()

    def _forget_what_is_aside(self) -> list[str]:
        """Remove the blobs that were set aside, and put back those that a version needs by now: paths of the removed.

        A publisher writes its manifest and then looks whether its blobs are there; here a blob is set aside and then
        the manifests are read. So one of the two sees what the other did, whatever the order, and the blob stays.
        """
        aside = [path for path in self.storage.files(SCRATCH) if _ASIDE.fullmatch(path)]  # of killed collectors too
        try:
            needed = self._needed()
        except LifelistError:
            self._put_back(aside)
            raise
        digests = {path: path.removeprefix(f"{SCRATCH}/").partition(".")[0] for path in aside}
        self._put_back([path for path in aside if digests[path] in needed])
        unused = [path for path in aside if digests[path] not in needed]
        for path in unused:
            self.storage.remove(path)
        return [_place(digests[path]) for path in unused]

    def _put_back(self, aside: Sequence[str]) -> None:
        for path in aside:
            with contextlib.suppress(Missing):  # put back by another, in this moment
                self.blobs.put(self.storage.read(path))
                self.storage.remove(path)

    def _needed(self) -> set[str]:
        """The sha256 of every blob that a version refers to; Corrupt if a manifest cannot be read."""
        return {entry.sha256 for number in self.versions() for entry in self.manifest(number).files}

    def _is_old(self, path: str, limit_s: float) -> bool:
        try:
            return self.storage.age_s(path) >= limit_s
        except Missing:  # finished, or collected by another, in this moment
            return False

    def _previous(self) -> Ref | None:
        backwards = (self._ref_at("live", generation) for generation in reversed(self._generations("live")))
        now = next(backwards, None)
        return next((ref for ref in backwards if now and ref.version != now.version), None)

    def _generations(self, name: str) -> list[int]:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise BadInput(f"{name!r} is no name for a reference; use lower-case letters, digits and '-'")
        names = self.storage.names(f"refs/{name}")
        return [int(found.removesuffix(".json")) for found in names if re.fullmatch(r"[0-9]{8}\.json", found)]

    def _ref_at(self, name: str, generation: int) -> Ref:
        try:
            found = json.loads(self.storage.read(_ref_place(name, generation)))
            return Ref(int(found["version"]), generation, str(found["at"]))
        except (ValueError, TypeError, KeyError) as error:
            raise Corrupt(f"generation {generation} of reference {name!r} cannot be read: {error}") from error


class Remembering(Registry):
    """For who reads the same versions again and again. A manifest never changes, so it is read once."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._known: dict[int, Manifest] = {}

    def manifest(self, version: int) -> Manifest:
        """What a version says of itself, as it was when it was read first; the last 16 are remembered."""
        if version not in self._known:
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[version] = super().manifest(version)
        return self._known[version]


def _place(sha256: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise BadInput(f"{sha256!r} is no sha256: 64 lower-case hexadecimal digits")
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def _manifest_place(version: int) -> str:
    return f"versions/{version}/manifest.json"


def _ref_place(name: str, generation: int) -> str:
    return f"refs/{name}/{generation:08d}.json"
