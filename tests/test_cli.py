"""The command line by itself: what it prints where, its exit codes, and that it never shows a traceback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lifelist.client.images import batches, labelled
from lifelist.deploy.cli import main, root
from lifelist.deploy.sources import keys
from lifelist.deploy.terminal import progress, table
from lifelist.exporter.errors import BadInput

PROGRAM = [sys.executable, "-m", "lifelist.deploy.cli"]
NO_SERVER = "1"  # a port on which nobody may listen but the system itself


@pytest.fixture(autouse=True)
def _in_a_folder_without_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LIFELIST_")]:
        monkeypatch.delenv(name)


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_names_every_command_and_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom lifelist.deploy.cli import main\nassert main(['--help']) == 0\n"
        "print([m for m in ('torch', 'ray', 'onnxruntime', 'faiss', 'sklearn') if m in sys.modules])"
    )
    shown = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert shown.splitlines()[-1] == "[]"
    for command in root.commands:
        assert f"  {command} " in shown


def test_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--version", capsys=capsys)
    assert (code, out) == (0, "lifelist, version 0.1.0\n")


def test_help_is_shown_even_where_a_setting_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIFELIST_PROT", "1")
    assert run("versions", "--help", capsys=capsys)[0] == 0
    code, out, err = run("versions", "list", capsys=capsys)
    assert (code, out) == (2, "")
    assert "LIFELIST_PROT" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("increments list", "No such command 'increments'. Did you mean 'increment'?"),
        ("version list", "No such command 'version'. Did you mean 'versions'?"),
        ("increment strat", "No such command 'strat'. Did you mean 'start'?"),
        ("classify x --topk 3", "No such option '--topk'. Did you mean '--top-k'?"),
        ("classify", "Missing argument"),
        ("increment show x", "'x' is not a valid integer"),
        ("examples add nowhere", "nowhere does not exist"),
        ("classify nowhere.png", "nowhere.png does not exist"),
        ("examples add file.png", "say --class NAME"),
        ("examples add empty", "empty has no image"),
        ("settings --serving.prot 1", "Did you mean --serving.port?"),
        ("settings --config nowhere.toml", "nowhere.toml, which does not exist"),
        ("versions show 7", "7"),
        ("train nowhere", "nowhere"),
        ("base nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_a_line_or_two_and_exit_code_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file.png").touch()
    (tmp_path / "empty").mkdir()
    code, out, err = run(*line.split(), capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert 1 <= len(err.splitlines()) <= 2
    assert "Traceback" not in err


@pytest.mark.parametrize("line", ["classes", "increment list", "increment watch 1", "rollback", "feedback id cat"])
def test_without_a_server_the_command_says_so_and_how_to_start_one(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(*line.split(), "--json", "--port", NO_SERVER, capsys=capsys)
    assert (code, out) == (1, "")
    assert "no server answers at http://127.0.0.1:1" in err
    assert "lifelist serve" in err
    assert len(err.splitlines()) == 1


class _OtherServer(BaseHTTPRequestHandler):
    """Something that speaks HTTP and is not Lifelist: the only way to see how the client takes it."""

    def do_GET(self) -> None:
        self.send_response(500 if self.path.endswith("increments") else 200)
        self.end_headers()
        self.wfile.write(b"<html>It works!</html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def other_server() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _OtherServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.mark.parametrize("line", ["classes", "increment list"])
def test_an_answer_of_some_other_program_is_not_taken_for_ours(
    line: str, other_server: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(*line.split(), "--port", str(other_server), capsys=capsys)
    assert (code, out) == (1, "")
    assert "It works!" in err
    assert "Lifelist server?" in err


def test_an_interrupt_is_one_line_and_exit_code_130() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts a connection, and never answers
        port = str(silent.getsockname()[1])
        process = subprocess.Popen([*PROGRAM, "classes", "--port", port], stderr=subprocess.PIPE, text=True)
        silent.settimeout(60)
        connection, _ = silent.accept()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        connection.close()
    assert (process.returncode, err) == (130, "lifelist: interrupted\n")


def test_a_bug_is_a_line_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root.commands["settings"], "callback", lambda **_: 1 / 0)
    code, out, err = run("settings", capsys=capsys)
    assert (code, out) == (1, "")
    assert err == "lifelist: internal error, please report it (-v shows where): ZeroDivisionError: division by zero\n"
    code, _, err = run("-v", "settings", capsys=capsys)
    assert "Traceback" in err  # for whoever asks


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    line = " ".join([*PROGRAM, "settings", "|", "head", "-1"])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("setting")
    assert done.stderr == ""


def test_settings_are_printed_with_their_sources(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIFELIST_EXAMPLES__KEEP", "1")
    code, out, _ = run("settings", "--json", "--port=9123", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert list(found) == list(keys())
    assert found["serving.port"] == {"value": 9123, "source": "flag --port"}
    assert found["examples.keep"] == {"value": True, "source": "environment LIFELIST_EXAMPLES__KEEP"}
    assert found["training.method"]["source"] == "default"
    _, out, _ = run("--home", "there", "settings", capsys=capsys)
    assert any(line.split() == ["home", str(Path("there").absolute()), "flag", "--home"] for line in out.splitlines())


def test_the_settings_file_may_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[serving]\nport = 9001\n")
    _, out, _ = run("settings", "--config", "other.toml", "--json", capsys=capsys)
    assert json.loads(out)["serving.port"] == {"value": 9001, "source": "file other.toml"}


def test_versions_of_an_empty_registry_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("versions", "list", "--json", capsys=capsys)[:2] == (0, '{\n  "versions": [],\n  "refs": {}\n}\n')
    assert "lifelist base" in run("versions", "list", capsys=capsys)[1]


def test_a_folder_names_the_class_unless_one_is_given(tmp_path: Path) -> None:
    for name in ("animals/cat/1.png", "animals/cat/2.JPG", "animals/cat/notes.txt", "animals/dog/3.webp", "4.jpeg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    by_folder = labelled([tmp_path / "animals"], None)
    assert {name: [f.name for f in files] for name, files in by_folder.items()} == {
        "cat": ["1.png", "2.JPG"],
        "dog": ["3.webp"],
    }
    assert [f.name for f in labelled([tmp_path / "animals" / "dog"], None)["dog"]] == ["3.webp"]
    assert len(labelled([tmp_path / "animals" / "cat", tmp_path / "4.jpeg"], "pets")["pets"]) == 3
    with pytest.raises(BadInput, match="say --class"):
        labelled([tmp_path / "4.jpeg"], None)


def test_batches_keep_the_order_and_both_limits(tmp_path: Path) -> None:
    files = []
    for k, size in enumerate([100, 5000, 100, 100, 20_000, 100]):
        files.append(tmp_path / str(k))
        files[-1].write_bytes(bytes(size))
    assert [[int(f.name) for f in some] for some in batches(files, 2, 10_000)] == [[0, 1], [2, 3], [4], [5]]


def test_progress_without_a_terminal_is_a_line_every_ten_percent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 200, "epoch") as bar:
        for done in range(1, 201):
            bar.to(done, f"loss {1 / done:.2f}")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 10
    assert lines[4] == "train: 50 % of 200 epochs, loss 0.01"


def test_a_table_aligns_words_to_the_left_and_numbers_to_the_right() -> None:
    assert table(["name", "n"], [("a", 1), ("bc", None), ("d", 23)]) == "name   n\na      1\nbc     –\nd     23"
