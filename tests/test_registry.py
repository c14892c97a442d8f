"""Versions on disk: whole or not there, numbered once, referred to by compare-and-swap; writers are killed."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from parts import BIRDS, blob_path, flip_one_bit, tiny_version

from lifelist.exporter.errors import BadInput, BadManifest, BadSetting, Corrupt, Missing, Moved
from lifelist.exporter.manifest import Check, ClassEntry, FileEntry, Manifest, Preprocess
from lifelist.exporter.registry import Ref, Registry
from lifelist.exporter.storage import Folder, ObjectStore, open_storage

DRAFT = Manifest(
    version=0,
    created_at="2026-01-01T00:00:00+00:00",
    kind="increment",
    parent=None,
    method="bic",
    network="tiny",
    embedding_dim=8,
    default_answer="linear",
    preprocess=Preprocess(16, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    classes=(ClassEntry(0, "heron", "trained", 0), ClassEntry(1, "gull", "trained", 0)),
)
ANOTHER_PROCESS = """
import dataclasses, os, signal, sys
sys.path.insert(0, {tests!r})
from test_registry import DRAFT, Registry
registry = Registry({url!r})
{code}
"""


@pytest.fixture(params=["folder", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    """An empty registry: in a folder, and on fsspec's own object store, which lives in memory."""
    if request.param == "folder":
        yield Registry(str(tmp_path / "registry"))
    else:
        yield Registry(f"memory://{tmp_path.name}")
        fsspec.filesystem("memory").store.clear()


@pytest.fixture
def local(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "registry"))


def start(registry: Registry, code: str) -> subprocess.Popen[str]:
    """Another process with `registry` and `DRAFT` in its hands."""
    program = ANOTHER_PROCESS.format(tests=str(Path(__file__).parent), url=registry.url, code=code)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def results(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each of them printed; all must end well."""
    printed = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return printed


# ---- versions


def test_versions_count_from_one_and_give_back_what_was_published(registry: Registry) -> None:
    assert registry.versions() == []
    first = registry.publish(DRAFT, {"b.bin": b"two", "a.bin": b"one"})
    second = registry.publish(replace(DRAFT, parent=1), {"a.bin": b"three"})
    assert (first.version, second.version, registry.versions()) == (1, 2, [1, 2])
    assert registry.manifest(1) == first
    assert [entry.name for entry in first.files] == ["a.bin", "b.bin"]
    assert registry.read(first, "b.bin") == b"two"
    assert registry.verify(1) == registry.verify(2) == []


def test_a_version_may_share_files_with_another(registry: Registry) -> None:
    first = registry.publish(DRAFT, {"model.onnx": b"m" * 1000, "class_means.faiss": b"i"})
    second = registry.publish(DRAFT, {"class_means.faiss": b"ii"}, reuse=[first.file("model.onnx")])
    assert registry.read(second, "model.onnx") == b"m" * 1000
    assert len(registry.blobs.digests()) == 3
    absent = FileEntry.of("model.onnx", b"never stored")
    with pytest.raises(Missing, match=r"no longer holds the bytes of model\.onnx; give them anew"):
        registry.publish(DRAFT, {}, reuse=[absent])
    assert registry.versions() == [1, 2]


def test_a_version_that_does_not_exist_is_missing_and_the_message_names_those_that_do(registry: Registry) -> None:
    with pytest.raises(Missing, match=r"no version 1 in .*; there is: none; publish one first"):
        registry.manifest(1)
    registry.publish(DRAFT, {})
    registry.publish(DRAFT, {})
    with pytest.raises(Missing, match=r"no version 7 in .*; there is: 1, 2"):
        registry.manifest(7)
    with pytest.raises(Missing, match="no version 7"):
        registry.verify(7)


def test_what_lies_about_under_versions_is_not_taken_for_one(local: Registry) -> None:
    local.publish(DRAFT, {})
    folder = Path(local.url) / "versions"
    for name in ("2", "03", "0", "-1", "latest", "4.tmp"):
        (folder / name).mkdir()
    (folder / "03" / "manifest.json").write_bytes((folder / "1" / "manifest.json").read_bytes())
    assert local.versions() == [1]
    assert local.publish(DRAFT, {}).version == 2


def test_a_manifest_moved_under_another_number_is_refused(local: Registry) -> None:
    local.publish(DRAFT, {})
    (Path(local.url) / "versions" / "1").rename(Path(local.url) / "versions" / "5")
    with pytest.raises(Corrupt, match="version 5 says that it is version 1; it was moved or copied"):
        local.manifest(5)


def test_two_processes_that_publish_at_once_both_succeed_with_different_numbers(local: Registry) -> None:
    code = """
for k in range(20):
    made = registry.publish(DRAFT, {"who.txt": f"{os.getpid()} {k}".encode(), "same.txt": b"same"})
    print(made.version, os.getpid(), k)
"""
    printed = [line.split() for out in results([start(local, code) for _ in range(3)]) for line in out.splitlines()]
    assert sorted(int(version) for version, _, _ in printed) == list(range(1, 61)) == local.versions()
    for version, process, k in printed:
        assert local.read(local.manifest(int(version)), "who.txt") == f"{process} {k}".encode()
    assert all(local.verify(version) == [] for version in local.versions())


@pytest.mark.parametrize("call", ["os.fsync", "os.link"])
def test_a_writer_killed_in_mid_publish_leaves_nothing_to_see_and_gc_removes_the_rest(
    call: str, local: Registry, tmp_path: Path
) -> None:
    """Killed before each single call that makes something durable or gives it its name; none of them is left out."""
    new = {"model.onnx": b"new model" * 1000, "exemplars.json": b"new exemplars"}
    before = local.publish(DRAFT, {"model.onnx": b"one"})
    seen = []
    for moment in itertools.count(1):
        fresh = Registry(str(tmp_path / str(moment)))
        shutil.copytree(local.url, fresh.url)
        process = start(fresh, _killing(call, moment) + f"registry.publish(DRAFT, {new!r})")
        process.communicate(timeout=60)
        if process.returncode == 0:  # there were not as many calls
            break
        assert process.returncode == -signal.SIGKILL
        seen.append(fresh.versions())
        assert all(fresh.verify(version) == [] for version in fresh.versions())
        assert fresh.manifest(1) == before
        if fresh.versions() == [1]:
            assert fresh.collect_garbage() == []  # too young: for all that gc knows, it is still being published
            removed = fresh.collect_garbage(older_than_s=0)
            assert removed
            assert all(path.startswith(("tmp/", "blobs/")) for path in removed)
            assert stored(fresh) == {
                blob_path(fresh, before, "model.onnx"),
                Path(fresh.url) / "versions/1/manifest.json",
            }
        again = fresh.publish(DRAFT, new)
        assert (again.version, fresh.verify(again.version)) == (len(seen[-1]) + 1, [])
    last = [1, 2] if call == "os.fsync" else [1]  # the last sync is of the folder with the name, which is there already
    assert len(seen) >= 3  # two blobs and a manifest
    assert seen == [[1]] * (len(seen) - 1) + [last]


def _killing(call: str, count: int) -> str:
    """Code after which this process is killed, with SIGKILL, on the count-th `call`."""
    return f"""
real, seen = {call}, 0
def counting(*args, **options):
    global seen
    seen += 1
    if seen == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
{call} = counting
"""


def stored(registry: Registry) -> set[Path]:
    """All files of a local registry."""
    return {path for path in Path(registry.url).rglob("*") if path.is_file()}


def test_writers_killed_at_any_moment_never_show_a_version_that_is_not_whole(local: Registry) -> None:
    """Twelve writers, each killed after a different time; whatever there is afterwards is complete."""
    code = """
print("ready", flush=True)
while True:
    registry.publish(DRAFT, {"a.bin": os.urandom(200_000), "b.bin": os.urandom(200_000)})
"""
    for k in range(12):
        process = start(local, code)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.02 + 0.007 * k)
        process.kill()
        process.communicate()
        found = local.versions()
        assert found == list(range(1, len(found) + 1))
        assert all(local.verify(version) == [] for version in found)
    assert local.versions()
    local.collect_garbage(older_than_s=0)
    needed = {entry.sha256 for version in local.versions() for entry in local.manifest(version).files}
    assert set(local.blobs.digests()) == needed
    assert not [path for path in stored(local) if path.parent.name == "tmp"]


# ---- altered bytes


@pytest.mark.parametrize("name", ["model.onnx", "class_means.faiss", "checkpoint.safetensors", "exemplars.json"])
def test_a_file_with_one_altered_bit_is_refused_before_it_is_read(name: str, local: Registry) -> None:
    manifest = tiny_version(local)
    flip_one_bit(blob_path(local, manifest, name))
    with pytest.raises(Corrupt, match=rf"{name}: \d+ bytes, sha256 .*; the manifest says \d+ bytes"):
        local.read(manifest, name)
    with pytest.raises(Corrupt, match=r"stored bytes have sha256 .*; they were altered"):
        local.blob(manifest.file(name).sha256)
    (problem,) = local.verify(1)
    assert problem.startswith(name)


def test_a_manifest_with_one_altered_bit_is_refused_wherever_the_bit_is(local: Registry) -> None:
    manifest = local.publish(DRAFT, {"model.onnx": b"m"})
    path = Path(local.url) / "versions" / "1" / "manifest.json"
    whole = path.read_bytes()
    path.chmod(0o644)
    refused = 0
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 1
        path.write_bytes(altered)
        try:
            assert local.manifest(1) == manifest  # white space between the parts says nothing
        except Corrupt:
            refused += 1
            assert local.verify(1)[0].startswith("manifest.json")
    assert refused > 0.6 * len(whole)


@pytest.mark.parametrize("name", ["model.onnx", "exemplars.json"])
def test_a_file_that_is_gone_or_cut_off_is_refused_and_named(name: str, local: Registry) -> None:
    manifest = tiny_version(local)
    path = blob_path(local, manifest, name)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Corrupt, match=rf"{name}: {manifest.file(name).size - 1} bytes"):
        local.read(manifest, name)
    path.unlink()
    with pytest.raises(Corrupt, match=rf"version 1 lost its {name}: no blob"):
        local.read(manifest, name)
    with pytest.raises(Corrupt, match=r"has no file 'model\.pt'; it has \['checkpoint"):
        local.read(manifest, "model.pt")


def test_publishing_the_same_bytes_again_heals_a_blob_that_was_altered(local: Registry) -> None:
    first = local.publish(DRAFT, {"model.onnx": b"m" * 100})
    flip_one_bit(blob_path(local, first, "model.onnx"))
    local.publish(DRAFT, {"model.onnx": b"m" * 100})
    assert local.verify(1) == local.verify(2) == []


def test_a_blob_is_healed_without_a_moment_in_which_it_is_gone(
    local: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = local.publish(DRAFT, {"model.onnx": b"m" * 100})
    flip_one_bit(path := blob_path(local, first, "model.onnx"))
    for call in ("link", "replace"):
        real = getattr(os, call)

        def there(*arguments: Any, real: Any = real) -> None:
            assert path.exists()
            real(*arguments)

        monkeypatch.setattr(os, call, there)
    assert local.put_blob(b"m" * 100) == path.name
    assert (local.verify(1), local.storage.files("tmp")) == ([], [])


def test_what_is_stored_cannot_be_written_over(local: Registry) -> None:
    local.publish(DRAFT, {"model.onnx": b"m"})
    assert {path.stat().st_mode & 0o222 for path in stored(local)} == {0}
    assert local.storage.create("versions/1/manifest.json", b"{}") is False
    assert local.manifest(1).version == 1


# ---- references


def test_a_reference_moves_only_for_one_who_knows_where_it_stands(registry: Registry) -> None:
    for _ in range(3):
        registry.publish(DRAFT, {})
    assert registry.ref("candidate") is None
    assert registry.move("candidate", 1, expected=None) == Ref(1, 1) == registry.ref("candidate")
    with pytest.raises(Moved, match=r"'candidate' is at generation 1, version 1; you expected it to be unset"):
        registry.move("candidate", 2, expected=None)
    assert registry.move("candidate", 2, expected=1) == Ref(2, 2)
    with pytest.raises(Moved, match=r"at generation 2, version 2; you expected generation 1\. Read it again"):
        registry.move("candidate", 3, expected=1)
    with pytest.raises(Moved, match="you expected generation 9"):
        registry.move("candidate", 3, expected=9)
    assert registry.ref("candidate") == Ref(2, 2)
    with pytest.raises(Moved, match=r"'live' is not set; you expected generation 1"):
        registry.move("live", 1, expected=1)


def test_a_reference_to_a_version_that_does_not_exist_is_refused(registry: Registry) -> None:
    registry.publish(DRAFT, {})
    with pytest.raises(Missing, match="no version 2"):
        registry.promote(2, expected=None)
    assert registry.ref("live") is None
    with pytest.raises(BadInput, match="no name for a reference"):
        registry.ref("../live")


def test_previous_is_what_was_live_before_and_rolling_back_twice_comes_back(registry: Registry) -> None:
    for _ in range(3):
        registry.publish(DRAFT, {})
    generation = None
    seen = []
    for version in (1, 2, 2, 3, 2, 3):
        generation = registry.promote(version, generation).generation
        previous = registry.ref("previous")
        seen.append((version, previous.version if previous else None))
    assert seen == [(1, None), (2, 1), (2, 1), (3, 2), (2, 3), (3, 2)]
    assert [ref.version for ref in registry.history("live")] == [1, 2, 2, 3, 2, 3]
    assert all(ref.at.endswith("+00:00") for ref in registry.history("live"))
    with pytest.raises(BadInput, match="follows from the history of `live`"):
        registry.move("previous", 1, expected=None)


def test_of_processes_that_move_a_reference_at_once_one_wins_each_time(local: Registry) -> None:
    local.publish(DRAFT, {})
    local.move("live", 1, expected=None)
    code = """
from lifelist.exporter.errors import Moved
won = lost = 0
while won < 25:
    now = registry.ref("live")
    try:
        assert registry.move("live", 1, expected=now.generation).generation == now.generation + 1
        won += 1
    except Moved:
        lost += 1
print(won, lost)
"""
    results([start(local, code) for _ in range(3)])
    assert local.ref("live") == Ref(1, 76)  # each of the 75 moves was one step, and none was lost
    assert len(local.history("live")) == 76


def test_a_process_killed_while_it_moves_a_reference_leaves_it_at_one_of_both_ends(local: Registry) -> None:
    local.publish(DRAFT, {})
    local.publish(DRAFT, {})
    local.promote(1, expected=None)
    for call, count in (("os.open", 1), ("os.fsync", 1), ("os.link", 1)):
        process = start(local, _killing(call, count) + "registry.promote(2, expected=1)")
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert local.ref("live") == Ref(1, 1)
    process = start(local, _killing("os.fsync", 2) + "registry.promote(2, expected=1)")
    process.communicate(timeout=60)
    assert (process.returncode, local.ref("live"), local.ref("previous")) == (-signal.SIGKILL, Ref(2, 2), Ref(1, 1))


def test_a_reference_that_cannot_be_read_is_corrupt(local: Registry) -> None:
    local.publish(DRAFT, {})
    local.promote(1, expected=None)
    path = Path(local.url) / "refs" / "live" / "00000001.json"
    path.chmod(0o644)
    path.write_text("{}")
    with pytest.raises(Corrupt, match="generation 1 of reference 'live' cannot be read"):
        local.ref("live")


# ---- garbage


def test_gc_removes_what_no_version_refers_to_and_nothing_else(registry: Registry) -> None:
    kept = registry.publish(DRAFT, {"model.onnx": b"kept"})
    digest = registry.put_blob(b"referred to by nobody")
    assert registry.collect_garbage() == []
    assert registry.collect_garbage(older_than_s=0) == [f"blobs/sha256/{digest[:2]}/{digest}"]
    assert not registry.has_blob(digest)
    assert registry.read(kept, "model.onnx") == b"kept"
    with pytest.raises(Missing, match=f"{digest} does not exist"):
        registry.blob(digest)


def test_an_old_leftover_that_is_put_again_is_young_again(local: Registry) -> None:
    digest = local.put_blob(b"left over by a writer that was killed last week")
    path = Path(local.url) / "blobs" / "sha256" / digest[:2] / digest
    os.utime(path, (time.time() - 10**6,) * 2)
    local.put_blob(path.read_bytes())  # a new publication brings the same file
    assert local.collect_garbage() == []
    os.utime(path, (time.time() - 10**6,) * 2)
    assert len(local.collect_garbage()) == 1


def test_gc_removes_nothing_while_a_manifest_cannot_be_read(local: Registry) -> None:
    local.publish(DRAFT, {"model.onnx": b"m"})
    local.put_blob(b"nobody's")
    flip_one_bit(Path(local.url) / "versions" / "1" / "manifest.json", place=5)
    with pytest.raises(Corrupt):
        local.collect_garbage(older_than_s=0)
    assert len(local.blobs.digests()) == 2


@pytest.mark.parametrize("moment", ["_is_old", "move", "_needed"])
@pytest.mark.parametrize("share", [False, True], ids=["brought", "shared"])
def test_an_old_leftover_that_is_published_while_gc_is_at_it_is_not_lost(
    moment: str, share: bool, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher comes between two steps of the collector: before it takes a blob, after, or after its last look."""
    data = b"left over last week"
    registry.put_blob(data)
    other = Registry(registry.url)
    owner: Any = registry.storage if moment == "move" else registry
    real, published = getattr(owner, moment), []

    def then_publish(*arguments: Any) -> Any:
        found = real(*arguments)
        if not published:
            try:
                published.append(
                    other.publish(DRAFT, {}, reuse=[FileEntry.of("model.onnx", data)])
                    if share
                    else other.publish(DRAFT, {"model.onnx": data})
                )
            except Missing:  # to share what is gone is refused; nothing was promised to anybody
                assert share
                assert moment == "move"
        return found

    monkeypatch.setattr(owner, moment, then_publish)
    registry.collect_garbage(older_than_s=0)
    assert [other.verify(version) for version in other.versions()] == [[]] * len(published)
    assert len(published) == 1 or share


def test_gc_that_ends_between_a_manifest_and_the_publishers_last_look_loses_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector has read the manifests for the last time; then the manifest appears; the publisher mends it."""
    data = b"left over last week"
    registry.put_blob(data)
    real = registry.storage.create

    def collected_first(path: str, content: bytes) -> bool:
        if path.startswith("versions/"):
            Registry(registry.url).collect_garbage(older_than_s=0)
        return real(path, content)

    monkeypatch.setattr(registry.storage, "create", collected_first)
    for reuse in ([], [FileEntry.of("model.onnx", data)]):
        made = registry.publish(DRAFT, {} if reuse else {"model.onnx": data}, reuse=reuse)
        assert registry.verify(made.version) == []


def test_a_blob_that_a_killed_gc_had_set_aside_is_put_back_if_a_version_needs_it(local: Registry) -> None:
    made = local.publish(DRAFT, {"model.onnx": b"m"})
    digest = made.file("model.onnx").sha256
    for aside in (f"tmp/{digest}.{'0' * 32}", f"tmp/{'a' * 64}.{'1' * 32}"):
        local.storage.create(aside, b"m")
    local.blobs.remove(digest)
    assert local.collect_garbage() == [f"blobs/sha256/aa/{'a' * 64}"]
    assert local.verify(1) == []
    assert local.storage.files("tmp") == []


def test_gc_beside_writers_takes_nothing_from_them(local: Registry) -> None:
    code = """
for k in range(30):
    registry.publish(DRAFT, {"model.onnx": f"{os.getpid()} {k}".encode(), "same.bin": b"same"})
"""
    writers = [start(local, code) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        local.collect_garbage(older_than_s=30)
    results(writers)
    assert len(local.versions()) == 60
    assert all(local.verify(version) == [] for version in local.versions())


# ---- differences


def test_a_diff_says_what_changed_and_nothing_else(local: Registry) -> None:
    tiny_version(local, BIRDS[:3], enrolled=[BIRDS[3]], changes={"options": {"epochs": 2, "seed": 0}})
    classes = tuple(
        ClassEntry(k, name, "trained", int(k == 3))
        for k, name in enumerate(["heron", "sea gull", "swift", "wren", "owl"])
    )
    second = replace(
        local.manifest(1),
        classes=classes,
        kind="increment",
        default_answer="linear",
        parent=1,
        options={"epochs": 4, "seed": 0},
        results={"linear": {"all": 0.95, "old": 0.9, "new": 1.0, "per_class": {}}},
        gate=(Check("classes", True, None, None, "as asked"),),
    )
    local.publish(second, {"model.onnx": b"another"}, reuse=[local.manifest(1).file("class_means.faiss")])
    assert local.diff(1, 2) == {
        "classes": {"added": ["owl"], "trained": ["wren"], "renamed": {"gull": "sea gull"}},
        "files": {"changed": ["model.onnx"], "removed": ["checkpoint.safetensors", "exemplars.json"]},
        "kind": {"from": "enrolment", "to": "increment"},
        "parent": {"from": None, "to": 1},
        "default_answer": {"from": "nearest_mean", "to": "linear"},
        "options": {"epochs": {"from": 2, "to": 4}},
        "results": {"linear": {"all": {"from": 0.9, "to": 0.95}, "new": {"from": None, "to": 1.0}}},
    }
    assert local.diff(2, 2) == {}
    assert json.loads(json.dumps(local.diff(1, 2))) == local.diff(1, 2)


# ---- where it lies


def test_a_folder_is_named_by_path_or_url_and_need_not_exist(tmp_path: Path) -> None:
    for url in (str(tmp_path / "a"), f"file://{tmp_path}/a"):
        assert isinstance(storage := open_storage(url), Folder)
        assert storage.root == tmp_path / "a"
        assert Registry(url).versions() == []
    assert not (tmp_path / "a").exists()


def test_a_url_that_cannot_be_opened_is_a_bad_setting() -> None:
    with pytest.raises(BadSetting, match="'nosuch://bucket/x' is no folder, and no URL that can be opened"):
        open_storage("nosuch://bucket/x")


def test_a_file_system_on_which_writers_could_overwrite_each_other_is_refused() -> None:
    class LooksThenWrites(fsspec.AbstractFileSystem):  # a double: the file systems like it need servers of their own
        protocol = "sftp"

    class IgnoresTheCondition(fsspec.AbstractFileSystem):  # as do some stores that speak S3's protocol
        protocol = "s3"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
            """Written, whatever there was."""

    for fs in (LooksThenWrites(), IgnoresTheCondition()):
        with pytest.raises(
            BadSetting, match=rf"{fs.protocol} cannot create a file only if .* absent.*conditional writes"
        ):
            ObjectStore(fs, "/x").create("versions/1/manifest.json", b"{}")


def test_a_blob_is_asked_for_by_its_digest_only(registry: Registry) -> None:
    with pytest.raises(BadInput, match="is no sha256: 64 lower-case"):
        registry.blob("../../etc/passwd")
    digest = registry.put_blob(b"bytes")
    assert (registry.has_blob(digest), registry.blob(digest), registry.put_blob(b"bytes")) == (True, b"bytes", digest)


def test_a_draft_that_could_not_be_read_again_is_not_published(registry: Registry) -> None:
    with pytest.raises(BadManifest, match="no NaN or infinity"):
        registry.publish(replace(DRAFT, results={"linear": {"all": float("nan")}}), {})
    with pytest.raises(BadManifest, match=r"manifest\.method should be str, not 3"):
        registry.publish(replace(DRAFT, method=3), {})
    assert registry.versions() == []
