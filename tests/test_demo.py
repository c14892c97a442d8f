"""The demo on somebody's own images, and the client of it that checks every answer."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from parts import png, tiny_version
from PIL import Image

from lifelist.deploy.demo import _write_settings
from lifelist.deploy.settings import Settings
from lifelist.deploy.sources import load, resolve
from lifelist.deploy.story import own_images
from lifelist.deploy.traffic import Sent, Traffic
from lifelist.exporter.errors import BadInput
from lifelist.exporter.registry import Registry
from lifelist.serving.options import ServingOptions
from lifelist.training.job import read_task

COLOURS = {"coot": (40, 40, 40), "egret": (240, 240, 240), "robin": (200, 60, 40), "tit": (60, 120, 200)}


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Four classes of 24 images, each of a colour with noise."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "birds" / name).mkdir(parents=True)
        for k in range(24):
            pixels = np.clip(rng.normal(colour, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "birds" / name / f"{k}.png")
    return tmp_path


def test_the_demo_plays_on_own_images_and_leaves_the_server_running_if_asked(birds: Path, free_port: int) -> None:
    command = [
        sys.executable,
        "-m",
        "lifelist.deploy.cli",
        "demo",
        "--keep",
        "--data",
        "birds",
        "--port",
        str(free_port),
        "--training.epochs=8",  # enough for plain colours
        "--training.image_size=16",
        "--home=elsewhere",
    ]
    (birds / "birds" / "coot" / "11.png").write_bytes(b"?")  # would have been held out
    done = subprocess.run(command, cwd=birds, capture_output=True, text=True, timeout=280)
    process_id = int(re.findall(r"kill -INT (\d+)", done.stdout)[0])
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"2 classes learned under [\d,]+ requests; 0 failed, 0 inconsistent\.", done.stdout)
        assert "so these settings are not followed: home." in done.stdout
        assert not (birds / "elsewhere").exists()
        work, registry = birds / "lifelist-demo" / "data" / "work", birds / "lifelist-demo" / "data" / "registry"
        assert [read_task(work / str(k)).options.epochs for k in (1, 2, 3)] == [8, 8, 8]
        assert Registry(str(registry)).manifest(1).preprocess.size == 16
        with Image.open(birds / "lifelist-demo" / "demo.png") as picture:
            assert picture.size == (1320, 880)
        known = httpx.get(f"http://127.0.0.1:{free_port}/v1/classes").json()["classes"]
        assert {c["name"]: c["state"] for c in known} == dict.fromkeys(COLOURS, "trained")
        again = subprocess.run(command, cwd=birds, capture_output=True, text=True, timeout=60)
        assert again.returncode == 1
        assert "in use" in again.stderr
    finally:
        os.kill(process_id, signal.SIGINT)
        _wait_for_end(process_id)


def _wait_for_end(process_id: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{process_id}").exists() and "Z" not in Path(f"/proc/{process_id}/stat").read_text():
        assert time.monotonic() < deadline, "the server did not end"
        time.sleep(0.2)


def test_images_to_hold_out_that_the_server_would_refuse_are_left_out_and_told_in_one_line(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (birds / "birds" / "coot" / "11.png").write_bytes(b"?")
    (birds / "birds" / "tit" / "11.png").write_bytes(png(np.zeros((50, 50, 3), np.uint8)))
    story = own_images(birds / "birds", tmp_path / "all", Settings())
    assert capsys.readouterr().err.splitlines() == [
        f"1 of the images to hold out cannot be used, and are left out; the first is {birds}/birds/coot/11.png: "
        "not an image that we read: 1 bytes, of no JPEG, PNG or WebP file"
    ]
    assert Counter(name for name, _ in story.held_out) == {"coot": 5, "egret": 6, "robin": 6, "tit": 6}
    strict = Settings(serving=ServingOptions(max_pixels=2000))
    assert len(own_images(birds / "birds", tmp_path / "small", strict).held_out) == 22
    assert capsys.readouterr().err.startswith("2 of the images to hold out")
    with pytest.raises(BadInput, match="none of the images to hold out can be used of coot, egret, robin, tit"):
        own_images(birds / "birds", tmp_path / "none", Settings(serving=ServingOptions(max_pixels=10)))


@pytest.mark.parametrize("digits", [True, False])
def test_the_demo_follows_every_setting_that_was_given_but_where_things_are_kept(tmp_path: Path, digits: bool) -> None:
    flags = ["--home=x", "--database=sqlite:///y.db", "--examples.keep=false", "--training.method=wa"]
    flags += ["--gate", '[{"check": "new_class_accuracy", "limit": 0.2}]', "--training.image_size=24"]
    given = resolve(flags, {"LIFELIST_SERVING__TOP_K": "3"}, tmp_path)
    _write_settings(tmp_path, given, digits=digits)
    found = load([], {}, tmp_path)
    assert (found.training.method, found.training.image_size, found.serving.top_k) == ("wa", 24, 3)
    assert found.gate == given.settings.gate
    assert (found.home, found.database, found.examples.keep) == (tmp_path / "data", "", True)
    assert found.training.flip is not digits


def test_a_demo_never_replaces_a_folder_that_it_did_not_make(birds: Path, free_port: int) -> None:
    (birds / "lifelist-demo").mkdir()
    (birds / "lifelist-demo" / "mine.txt").touch()
    command = [sys.executable, "-m", "lifelist.deploy.cli", "demo", "--port", str(free_port)]
    done = subprocess.run(command, cwd=birds, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "was not made by this demo" in done.stderr
    assert (birds / "lifelist-demo" / "mine.txt").exists()


# ------------------------------------------------------------------------------- a client that believes nothing

RIGHT: dict[str, Any] = {
    "version": 1,
    "images": [{"prediction_id": "p", "classes": [{"id": 1, "name": "heron", "score": 0.9}]}],
}


class Liar:
    """Stands for a server, since ours gives no wrong answers to check the checking with."""

    def __init__(self) -> None:
        liar = self
        self.status, self.answer = 200, json.dumps(RIGHT)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(liar.status)
                self.end_headers()
                self.wfile.write(liar.answer.encode())

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(str(tmp_path / "registry"))
    tiny_version(made, ["heron", "wren"], live=True)
    return made


def first_of(traffic: Traffic) -> Sent:
    """What came of the first request."""
    with traffic:
        deadline = time.monotonic() + 30
        while not traffic.sent:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return traffic.sent[0]


def changed(**fields: Any) -> str:
    """The right answer, but for one thing of the class that it names."""
    return json.dumps(
        RIGHT | {"images": [{"prediction_id": "p", "classes": [{**RIGHT["images"][0]["classes"][0], **fields}]}]}
    )


@pytest.mark.parametrize(
    ("status", "answer", "found"),
    [
        (200, changed(name="ostrich"), "version 1 does not know"),
        (200, changed(id=4711), "version 1 does not know"),
        (200, json.dumps(RIGHT | {"version": 9}), "names version 9"),
        (200, "not JSON", "cannot be checked"),
        (200, "{}", "cannot be checked"),
        (503, '{"error": "busy"}', "503"),
    ],
)
def test_every_kind_of_wrong_answer_is_a_finding(
    liar: Liar, registry: Registry, status: int, answer: str, found: str
) -> None:
    liar.status, liar.answer = status, answer
    sent = first_of(Traffic(liar.url, registry, [("heron", png(np.zeros((8, 8, 3), np.uint8)))], clients=1))
    assert found in (sent.failure or sent.inconsistency or "")


def test_a_right_answer_is_no_finding(liar: Liar, registry: Registry) -> None:
    manifest = registry.manifest(1)
    liar.answer = changed(id=manifest.classes[0].id, name=manifest.classes[0].name)
    sent = first_of(Traffic(liar.url, registry, [("heron", png(np.zeros((8, 8, 3), np.uint8)))], clients=1))
    assert sent.failure is None
    assert sent.inconsistency is None
    assert sent.right
