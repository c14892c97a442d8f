"""API keys: how they are kept, and how a process that holds a door to them follows what becomes of them."""

import json
import threading
import time
from pathlib import Path

import pytest

from lifelist.exporter.errors import BadInput, BadKey, Conflict, Corrupt, Forbidden, Missing, Unavailable
from lifelist.serving import keys
from lifelist.serving.keys import Guard


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys.json"


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the file at every check: the second between looks has its own test."""
    monkeypatch.setattr(keys, "LOOK_S", 0)


def opens(guard: Guard, key: str | None, *roles: keys.Role) -> bool:
    try:
        guard.check(key, roles or ("classify",))
    except BadKey:
        return False
    return True


def test_what_is_kept_of_a_key_is_its_hash_in_a_file_of_its_owner_alone(file: Path) -> None:
    made = keys.add(file, "camera", ["classify", "feedback"])
    assert made.startswith("lifelist_")
    assert len(made) - len("lifelist_") == 43  # 256 bits, six in each character
    assert file.stat().st_mode & 0o777 == 0o600
    kept = file.read_text()
    assert made not in kept
    assert made.removeprefix("lifelist_") not in kept
    (row,) = json.loads(kept)["keys"]
    assert (row["name"], row["roles"], row["expires_at"]) == ("camera", ["classify", "feedback"], None)


def test_a_key_does_what_its_roles_say_and_operate_does_everything(file: Path) -> None:
    guard = Guard(file, anonymous=True)
    both = keys.add(file, "camera", ["classify", "feedback"])
    all_ = keys.add(file, "me", ["operate"])
    for role in keys.ROLES:
        assert guard.check(all_, [role]) is not None
    assert guard.check(both, ["feedback"]) is not None
    assert guard.check(both, ["operate", "classify"]) is not None
    with pytest.raises(Forbidden, match=r"'camera' may classify, feedback; this is for keys that may read or operate"):
        guard.check(both, ["read"])


def test_no_key_is_needed_where_there_is_none_and_anonymous_callers_are_allowed(file: Path) -> None:
    assert opens(Guard(file, anonymous=True), None, "operate")
    assert not opens(Guard(file, anonymous=False), None)
    keys.add(file, "me", ["operate"])
    assert not opens(Guard(file, anonymous=True), None)


@pytest.mark.parametrize("presented", [None, "", "lifelist_", "lifelist_" + 43 * "A", "é", "\udcff", 5000 * "x"])
def test_what_is_no_key_opens_nothing(file: Path, presented: str | None) -> None:
    keys.add(file, "me", ["operate"])
    with pytest.raises(BadKey, match="Authorization: Bearer KEY"):
        Guard(file, anonymous=True).check(presented, ["classify"])


def test_keys_come_and_go_while_a_process_runs_and_the_last_to_go_locks_nobody_out_who_was_let_in_before(
    file: Path,
) -> None:
    here, beyond = Guard(file, anonymous=True), Guard(file, anonymous=False)
    assert opens(here, None)
    first = keys.add(file, "first", ["classify"])
    assert not opens(here, None)
    second = keys.add(file, "second", ["classify"])
    assert opens(here, first)
    assert opens(here, second)
    keys.remove(file, "first")
    assert not opens(here, first)
    assert opens(beyond, second)
    keys.remove(file, "second")
    assert opens(here, None)
    assert not opens(beyond, None)  # without a key left, nobody may do anything where others could reach it


def test_the_file_is_looked_at_once_a_second_however_many_ask(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", 1.0)
    looks: list[Path] = []
    stands = keys._stands
    monkeypatch.setattr(keys, "_stands", lambda path: (looks.append(path), stands(path))[1])
    guard = Guard(file, anonymous=True)
    for _ in range(1000):
        assert opens(guard, None)
    assert len(looks) == 1
    keys.add(file, "me", ["operate"])
    deadline = time.monotonic() + 1.5
    while opens(guard, None):
        assert time.monotonic() < deadline


def test_a_key_expires(file: Path) -> None:
    guard = Guard(file, anonymous=True)
    lasting, brief = keys.add(file, "lasting", ["classify"], days=1), keys.add(file, "brief", ["classify"], days=1e-9)
    assert opens(guard, lasting)
    with pytest.raises(BadKey, match=r"'brief' has expired, at 20"):
        guard.check(brief, ["classify"])


def test_a_file_that_vanishes_or_breaks_opens_no_door_and_closes_none(file: Path) -> None:
    made = keys.add(file, "me", ["operate"])
    guard = Guard(file, anonymous=True)
    assert opens(guard, made)
    for broken in (b"", b"{", b"[]", b'{"keys": [{"name": "x"}]}', b"\xff\xfe", None):
        file.unlink()
        if broken is not None:
            file.write_bytes(broken)
            with pytest.raises(Corrupt, match=r"keys\.json cannot be read as a file of API keys"):
                keys.read(file)
            with pytest.raises(Unavailable, match="cannot be read"):  # who comes only now lets nobody in
                Guard(file, anonymous=True).check(None, ["classify"])
        assert opens(guard, made)
        assert not opens(guard, None)
        file.touch()
    file.unlink()
    again = keys.add(file, "again", ["classify"])
    assert opens(guard, again)
    assert not opens(guard, made)


def test_no_request_fails_while_the_file_is_replaced_over_and_over(file: Path) -> None:
    made = keys.add(file, "me", ["operate"])
    guard, stop = Guard(file, anonymous=True), threading.Event()

    def replacing() -> None:
        while not stop.is_set():
            keys.add(file, "other", ["classify"])
            keys.remove(file, "other")

    thread = threading.Thread(target=replacing)
    thread.start()
    try:
        for _ in range(2000):
            assert opens(guard, made)
            assert not opens(guard, None)
    finally:
        stop.set()
        thread.join()


def test_keys_that_are_made_at_once_are_all_kept(file: Path) -> None:
    threads = [threading.Thread(target=keys.add, args=(file, f"key {k}", ["classify"])) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in keys.read(file)} == {f"key {k}" for k in range(8)}


def test_what_cannot_be_done_says_why(file: Path) -> None:
    keys.add(file, "me", ["operate"])
    with pytest.raises(Conflict, match=r"a key 'me' already; remove it first: lifelist keys remove me"):
        keys.add(file, "me", ["classify"])
    with pytest.raises(Missing, match=r"no key 'you'; there are: me"):
        keys.remove(file, "you")
    with pytest.raises(BadInput, match=r"no role 'admin'; there are read, classify, feedback, operate"):
        keys.add(file, "you", ["admin"])  # type: ignore[list-item]
    with pytest.raises(BadInput, match="needs a role"):
        keys.add(file, "you", [])
    for name in ("", "a\nb", 101 * "x"):
        with pytest.raises(BadInput, match="1 to 100 characters"):
            keys.add(file, name, ["classify"])
