"""What the README tells a new user to type works as it stands there."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parent.parent / "README.md"
BIN = Path(sys.executable).parent


def five_commands() -> list[str]:
    """The console block after the mark in the README."""
    text = README.read_text()
    block = text[text.index("<!-- tests/test_readme.py runs these five -->") :]
    found = re.search(r"```console\n(.*?)```", block, re.S)
    assert found is not None
    return [line.removeprefix("$ ") for line in found.group(1).splitlines()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/base/<two birds>/*.png and photos/heron/*.png: each bird a colour, with noise."""
    rng = np.random.default_rng(0)
    for folder, colour in {"base/robin": (200, 60, 40), "base/wren": (120, 90, 40), "heron": (90, 120, 200)}.items():
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for k in range(1, 31):
            pixels = np.clip(rng.normal(colour, 25, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / folder / f"{k:02}.png")
    return tmp_path


@pytest.fixture
def environment(free_port: int) -> dict[str, str]:
    """As a user's, with the package's commands on the path, and a port of its own."""
    return os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "LIFELIST_SERVING__PORT": str(free_port),
    }


@pytest.fixture
def user(photos: Path, environment: dict[str, str]) -> Iterator["User"]:
    """Someone who types into a shell in the folder that has photos/."""
    someone = User(photos, environment)
    yield someone
    someone.leave()


class User:
    """Runs commands one after the other; one that ends in & stays until `leave`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.background: subprocess.Popen[str] | None = None

    def types(self, line: str) -> str:
        """What the command prints; a server is waited for."""
        words = shlex.split(line.removesuffix("&"))
        if line.endswith("&"):
            log = self.folder / "server.log"
            with log.open("w") as out:
                self.background = subprocess.Popen(
                    words, cwd=self.folder, env=self.environment, stdout=out, stderr=subprocess.STDOUT, text=True
                )
            deadline = time.monotonic() + 120
            while "listening at" not in log.read_text():
                assert self.background.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            return log.read_text()
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def leave(self) -> None:
        """ctrl-C to the server."""
        if self.background is not None:
            self.background.send_signal(signal.SIGINT)
            assert self.background.wait(60) == 0, (self.folder / "server.log").read_text()


def test_the_five_commands_serve_a_users_own_images_and_teach_a_new_class(user: User) -> None:
    base, serve, classify, examples, increment = five_commands()
    assert "version 1" in user.types(base)
    assert "version 1" in user.types(serve)
    before = answer(user.types(classify))
    assert "robin" in before
    assert "heron" not in before
    assert "heron" in user.types(examples)
    assert "heron" in answer(user.types(classify))
    assert "done" in user.types(increment)
    assert answer(user.types(classify)).startswith("heron")


def answer(printed: str) -> str:
    """What `lifelist classify FILE` says of the file."""
    file, said = printed.split(": ", 1)
    assert file == "photos/heron/01.png"
    return said
