"""The demo on somebody's own images, and the client of it that checks every answer."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from parts import png, tiny_version
from PIL import Image

from lifelist.deploy.traffic import Sent, Traffic
from lifelist.exporter.registry import Registry

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
    ]
    done = subprocess.run(command, cwd=birds, capture_output=True, text=True, timeout=280)
    process_id = int(re.findall(r"kill -INT (\d+)", done.stdout)[0])
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"2 classes learned under [\d,]+ requests; 0 failed, 0 inconsistent\.", done.stdout)
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
