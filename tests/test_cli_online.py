"""The commands that talk to a server, against one: what they print for people, and for machines."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import BIRDS, blob_path, flip_one_bit, tiny_version
from parts_operator import Server, bird, files, serving, take_step, tell_epoch

from lifelist.client.blocking import Client
from lifelist.deploy.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "home") as made:
        yield made


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command against the server: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def running(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--port", server.port, "--home", str(server.settings.home)])
        out, err = capsys.readouterr()
        return code, out, err

    return running


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """pictures/<class>/*.png of two new classes."""
    for k in (3, 4):
        for name, data in files(k, 12):
            (tmp_path / "pictures" / BIRDS[k]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "pictures" / BIRDS[k] / name).write_bytes(data)
    return tmp_path / "pictures"


def test_classify_names_the_classes_of_each_file_in_order(run: Run, tmp_path: Path) -> None:
    for k in (2, 0):
        (tmp_path / f"{k}.png").write_bytes(bird(k))
    code, out, _ = run("classify", "2.png", "0.png", "--top-k", "2", "--json")
    found = json.loads(out)
    assert code == 0
    assert [(one["file"], one["classes"][0]["name"]) for one in found] == [("2.png", "swift"), ("0.png", "heron")]
    assert all(one["version"] == 1 and len(one["classes"]) == 2 for one in found)
    _, out, _ = run("classify", "2.png")
    assert re.match(r"2\.png: swift \d\.\d+, .* \(version 1, linear\)\n    prediction \S+\n$", out)


def test_a_broken_file_is_bad_input_and_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bird(0))
    (tmp_path / "b.png").write_bytes(bird(0)[:60])
    code, out, err = run("classify", "a.png", "b.png")
    assert (code, out) == (2, "")
    assert "b.png" in err


def test_whoever_adds_images_of_a_trained_class_is_told_that_they_wait(run: Run, tmp_path: Path) -> None:
    (tmp_path / "heron").mkdir()
    (tmp_path / "heron" / "a.png").write_bytes(bird(0))
    code, out, _ = run("examples", "add", str(tmp_path / "heron"))
    assert (code, out) == (
        0, "heron (class 1): 1 accepted; trained, in version 1: new images wait for the next increment\n"
    )  # fmt: skip


def test_examples_are_added_class_by_class_with_progress(run: Run, pictures: Path) -> None:
    code, out, err = run("examples", "add", str(pictures))
    assert code == 0
    assert out.splitlines() == [
        "robin (class 4): 12 accepted; answerable since version 2",
        "wren (class 5): 12 accepted; answerable since version 3",
    ]
    assert "sent: 100 %" in err
    _, out, _ = run("classes", "--json")
    assert [c["state"] for c in json.loads(out)["classes"]] == ["trained"] * 3 + ["enrolled"] * 2


def test_refused_images_are_listed_with_the_reason(run: Run, pictures: Path) -> None:
    (pictures / "wren" / "x.png").write_bytes(b"no image")
    (pictures / "wren" / "y.png").write_bytes((pictures / "wren" / "wren-0.png").read_bytes())
    code, out, _ = run("examples", "add", str(pictures / "wren"))
    assert code == 0
    assert "12 accepted, 1 duplicate, 1 refused" in out
    assert "x.png: not an image" in out
    code, out, err = run("examples", "add", str(pictures / "wren"), "--class", "robin")
    assert (code, out) == (2, "")
    assert "no image of the new class 'robin' can be accepted" in err
    assert "already an example of class 'wren'" in err


def carry(server: Server, end: str = "done", reason: str | None = None) -> threading.Thread:
    """Take the oldest increment through its states, as its carrier would."""

    def carrying() -> None:
        shop = server.workshop
        time.sleep(0.2)
        rollout = take_step(shop, shop.store.open_rollouts()[0], "intake")
        rollout = take_step(shop, rollout, "train")
        for epoch in range(1, 21):
            tell_epoch(shop, rollout, epoch, 20)
        if end == "done":
            for state in ("export", "parity", "gate", "quantise", "publish", "swap", "tidy"):
                rollout = take_step(shop, rollout, state)
        shop.store.move(rollout, end, {}, reason=reason, version=2 if end == "done" else None)

    thread = threading.Thread(target=carrying)
    thread.start()
    return thread


def test_an_increment_is_started_and_watched_to_its_end(run: Run, pictures: Path, server: Server) -> None:
    run("examples", "add", str(pictures / "wren"))
    thread = carry_when_started(server)
    code, out, err = run("increment", "start", "wren", "--watch")
    thread.join()
    assert code == 0
    assert out == "increment 1 (wren; bic) done, version 2\n"
    lines = err.splitlines()
    assert lines[0] == "increment 1: wren by bic"
    assert [line for line in lines if line.startswith("main:")] == [
        f"main: {10 * k} % of 20 epochs, classify_new {1 / (2 * k):.3f}, 100 images/s" for k in range(1, 11)
    ]
    assert [line for line in lines if line.startswith("…")] == [
        f"… {state}"
        for state in ("queued", "intake", "train", "export", "parity", "gate", "quantise", "publish", "swap", "tidy")
    ]


def carry_when_started(server: Server, **how: Any) -> threading.Thread:
    """`carry`, as soon as there is an increment."""

    def waiting() -> None:
        while not server.workshop.store.open_rollouts():
            time.sleep(0.02)
        carry(server, **how).join()

    thread = threading.Thread(target=waiting)
    thread.start()
    return thread


def test_watching_with_json_prints_a_line_for_each_event_and_nothing_else(
    run: Run, pictures: Path, server: Server
) -> None:
    run("examples", "add", str(pictures / "wren"))
    code, out, _ = run("increment", "start", "--json")
    assert (code, json.loads(out)["state"]) == (0, "queued")
    thread = carry(server)
    code, out, _ = run("increment", "watch", "1", "--json")
    thread.join()
    *events, last = map(json.loads, out.splitlines())
    assert code == 0
    assert [e["epoch"] for e in events if e["event"] == "epoch"] == list(range(1, 21))
    assert events[-1]["event"] == "ended"
    assert (last["id"], last["state"], last["version"]) == (1, "done", 2)


def test_an_increment_that_did_not_go_live_is_a_failure_with_its_reason(
    run: Run, pictures: Path, server: Server
) -> None:
    run("examples", "add", str(pictures / "wren"))
    run("increment", "start")
    thread = carry(server, end="failed", reason="the disk is full")
    code, out, err = run("increment", "watch", "1")
    thread.join()
    assert (code, out) == (1, "increment 1 (wren; bic) failed: the disk is full\n")
    assert err.splitlines()[-1] == "lifelist: increment 1 ended as failed: the disk is full"


def test_a_rejected_increment_says_what_helps(run: Run, pictures: Path, server: Server) -> None:
    run("examples", "add", str(pictures / "wren"))
    run("increment", "start")
    thread = carry(server, end="rejected", reason="version 2 refused: too low")
    code, _, err = run("increment", "watch", "1")
    thread.join()
    assert code == 1
    assert "ended as rejected: version 2 refused: too low. To get through: send more images" in err.splitlines()[-1]


def test_increments_are_listed_shown_and_cancelled(run: Run, pictures: Path) -> None:
    run("examples", "add", str(pictures))
    run("increment", "start", "wren", "--method", "wa", "--key", "one")
    assert json.loads(run("increment", "start", "wren", "--key", "one", "--json")[1])["id"] == 1
    assert run("increment", "start", "robin")[1].startswith("increment 2 (robin; bic) queued\n")
    _, out, _ = run("increment", "list")
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["1", "queued", "wa", "wren"], ["2", "queued", "bic", "robin"],
    ]  # fmt: skip
    assert "increment 2 (robin; bic) queued" in run("increment", "show", "2")[1]
    code, out, _ = run("increment", "cancel", "2")
    assert (code, out) == (0, "increment 2 (robin; bic) cancelled: cancelled in the queue\n")
    assert json.loads(run("increment", "show", "2", "--json")[1])["state"] == "cancelled"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("increment show 9", 2, "no increment has id 9"),
        ("increment watch 9", 2, "no increment has id 9"),
        ("increment start ostrich", 2, "no class is named 'ostrich'"),
        ("increment start heron", 1, "trained already"),
        ("increment start", 1, "no class waits to be learned"),
        ("increment start --method bick", 2, "method 'bick' does not exist"),
        ("rollback", 1, "no previous version"),
        ("versions promote 9", 2, "there is no version 9"),
        ("versions show 9", 2, "there is no version 9"),
        ("feedback AAAA heron", 2, "was not given out by this server"),
    ],
)
def test_what_the_server_refuses_is_told_in_its_words(line: str, code: int, message: str, run: Run) -> None:
    found, out, err = run(*line.split())
    assert (found, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_feedback_says_whether_the_answer_was_right(run: Run, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(bird(0))
    prediction = json.loads(run("classify", "0.png", "--json")[1])[0]["prediction_id"]
    assert run("feedback", prediction, "heron")[1] == "version 1 was right; the truth is heron\n"
    assert run("feedback", prediction, "gull")[1] == "version 1 was wrong: it answered heron; the truth is gull\n"
    assert json.loads(run("feedback", prediction, "heron", "--json")[1])["correct"] is True


def test_versions_are_listed_shown_compared_promoted_and_rolled_back(run: Run, server: Server) -> None:
    tiny_version(server.workshop.registry, BIRDS[:4], first_id=1, seed=1, parent=1)
    assert run("versions", "promote", "2")[1] == "version 2 is live; before: version 1\n"
    found = json.loads(run("versions", "list", "--json")[1])
    assert found["refs"] == {"live": 2, "previous": 1}
    assert [(v["version"], v["refs"], v["classes"]) for v in found["versions"]] == [
        (1, ["previous"], 3),
        (2, ["live"], 4),
    ]
    assert run("versions", "list")[1].splitlines()[2].split()[:4] == ["2", "live", "increment", "bic"]
    shown = run("versions", "show", "2")[1]
    assert "version 2 (live): increment by bic" in shown
    assert "wren" in shown
    assert json.loads(run("versions", "show", "2", "--json")[1])["refs"] == ["live"]
    difference = json.loads(run("versions", "diff", "1", "2", "--json")[1])
    assert difference["classes"]["added"] == ["wren"]
    lines = run("versions", "diff", "1", "2")[1].splitlines()
    assert "classes.added: ['wren']" in lines
    assert not [line for line in lines if line.startswith("gate")]  # both passed
    assert run("rollback")[1] == "version 1 is live; before: version 2\n"


def test_a_refused_version_is_promoted_only_by_force(run: Run, server: Server) -> None:
    tiny_version(server.workshop.registry, BIRDS[:4], first_id=1, seed=1, passed=False)
    told = [line for line in run("versions", "diff", "1", "2")[1].splitlines() if line.startswith("gate")]
    assert told == ["gate.from: classes passed: as asked", "gate.to: classes REFUSED: a class is missing"]
    code, out, err = run("versions", "promote", "2")
    assert (code, out) == (1, "")
    assert "the gate refused version 2" in err
    assert run("versions", "promote", "2", "--force")[0] == 0


def test_verify_finds_one_altered_bit_and_fails(run: Run, server: Server) -> None:
    registry = server.workshop.registry
    second = tiny_version(registry, BIRDS[:4], first_id=1, seed=1)
    assert run("versions", "verify")[:2] == (0, "version 1: sound\nversion 2: sound\n")
    flip_one_bit(blob_path(registry, second, "checkpoint.safetensors"))
    code, out, err = run("versions", "verify")
    assert code == 1
    assert "version 1: sound\nversion 2: checkpoint.safetensors" in out
    assert err.startswith("lifelist: 1 of 2 versions are not what their manifests say: [2]")
    assert run("versions", "verify", "1")[0] == 0


def test_gc_removes_nothing_that_a_version_needs(run: Run, server: Server) -> None:
    assert run("versions", "gc") == (0, "nothing to remove\n", "")
    assert run("versions", "verify")[0] == 0


def test_the_program_itself_works_as_a_process(server: Server, pictures: Path) -> None:
    line = [sys.executable, "-m", "lifelist.deploy.cli", "examples", "add", str(pictures / "wren"), "--json"]
    done = subprocess.run([*line, "--port", server.port], capture_output=True, text=True, timeout=60, cwd=pictures)
    assert (done.returncode, json.loads(done.stdout)[0]["accepted"]) == (0, 12)
    with Client(server.url) as client:
        assert client.classes()["version"] == 2
