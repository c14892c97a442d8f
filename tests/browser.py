"""A real Chromium, driven by its DevTools protocol: pages are loaded, looked into, clicked and photographed."""

import base64
import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="there is no chromium, chromium-browser or google-chrome on PATH (Debian: apt install chromium)",
)


class Page:
    """One tab. What it logs as an error is in `problems`."""

    def __init__(self, socket: Any) -> None:
        self.problems: list[str] = []
        self._loaded: set[str] = set()
        self._socket, self._numbers, self._session = socket, itertools.count(1), ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol, and its answer."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        while True:
            said = json.loads(self._socket.recv(60))
            if said.get("id") == number:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]
            self._note(said)

    def _note(self, event: Any) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Page.lifecycleEvent" and told["name"] == "load":
            self._loaded.add(told["loaderId"])
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(one.get("value", one.get("description"))) for one in told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def view(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """How large the window is, and which colours the system has."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Go to an address; its files are there afterwards, and its scripts have begun."""
        loader = self.call("Page.navigate", url=url)["loaderId"]
        while loader not in self._loaded:  # asking the page itself could meet the old one, on its way out
            self._note(json.loads(self._socket.recv(60)))

    def reload(self) -> None:
        """The same address once more; as `open`."""
        self.open(self.run("location.href"))

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def each(self, selector: str, script: str) -> list[Any]:
        """What an expression of `e` gives for every element that the selector finds."""
        found = self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {script})")
        assert isinstance(found, list)
        return found

    def wait(self, script: str, timeout_s: float = 20, until: Callable[[Any], bool] = bool) -> Any:
        """The value of an expression once it is true."""
        deadline = time.monotonic() + timeout_s
        while not until(found := self.run(script)):
            assert time.monotonic() < deadline, f"{script} stays {found!r}; {self.problems}"
            time.sleep(0.05)
        return found

    def text(self, selector: str) -> str:
        """What a person reads there."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """A click, as a script makes it."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def key(self, name: str, code: int = 0) -> None:
        """A key is pressed and let go."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if name == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **text)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A picture of what is seen, or of the whole page."""
        shown = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        picture = Image.open(io.BytesIO(base64.b64decode(shown["data"])))
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


@contextlib.contextmanager
def browsing() -> Iterator[Page]:
    """A tab of a Chromium of its own, which is gone afterwards with all that it kept."""
    assert CHROMIUM
    flags = (*FLAGS, *(("--no-sandbox",) if os.geteuid() == 0 else ()))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments = [CHROMIUM, *flags, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(
                _address(Path(folder), process), max_size=None, max_queue=None, close_timeout=1, proxy=None
            ) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(20)


def _address(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    file, deadline = folder / "DevToolsActivePort", time.monotonic() + 60
    while not (file.exists() and len(lines := file.read_text().split()) == 2):
        assert process.poll() is None, f"chromium ended with {process.returncode}"
        assert time.monotonic() < deadline, "chromium does not start"
        time.sleep(0.05)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
