"""A real `lifelist serve` as a process of its own: Ray, Ray Serve, HAProxy, replicas. For the tests that need it all.

`server` in conftest.py is one that a whole run shares; a test that breaks things starts one of its own with `started`.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from parts import encoded, tiny_images

from lifelist.deploy import ground
from lifelist.exporter.registry import Registry

LIFELIST = [sys.executable, "-m", "lifelist.deploy.cli"]


@dataclass
class Server:
    """A started server. `process` is `lifelist serve` itself; the rest of it is found by its mark."""

    home: Path
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path  # both streams of the process
    grpc_port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def registry(self) -> Registry:
        return Registry(str(self.home / "registry"))

    def http(self, timeout: float = 30) -> httpx.Client:
        """A client; trust_env off, so that no proxy of the environment stands in between."""
        return httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)

    def get(self, path: str) -> Any:
        with self.http() as http:
            return http.get(path).json()

    def record(self) -> ground.Record:
        found = ground.read(self.home)
        assert found is not None
        return found

    def first_port(self) -> int:
        """Of its block."""
        started_with = Path(f"/proc/{ground.processes(self.record().nonce)[0]}/environ").read_bytes().split(b"\0")
        found = dict(variable.partition(b"=")[::2] for variable in started_with)
        return int(found[b"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"]) - 1

    def replicas(self) -> dict[str, dict[str, Any]]:
        """How each replica stands, by name."""
        return {row["replica"]: row for row in self.get("/v1/health/ready").get("replicas", [])}

    def promote(self, version: int) -> httpx.Response:
        with self.http(120) as http:
            return http.post(f"/v1/versions/{version}:promote", json={"force": True})

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, number: signal.Signals = signal.SIGINT, timeout_s: float = 60) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def launch(home: Path, *flags: str, port: int | None = None) -> Server:
    """`lifelist serve`, not waited for."""
    home.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    log = home / "server.log"
    arguments = [*LIFELIST, "serve", "--home", str(home), "--port", str(port), *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=home)
    return Server(home, port, process, log)


def wait_until_ready(server: Server, timeout_s: float = 200) -> None:
    deadline = time.monotonic() + timeout_s
    while "listening at" not in server.text():
        assert server.process.poll() is None, server.text()
        assert time.monotonic() < deadline, server.text()
        time.sleep(0.1)


@contextlib.contextmanager
def started(home: Path, *flags: str, port: int | None = None) -> Iterator[Server]:
    """A server that answers. However the test ends, so does the server, and nothing of it is left.

    Its replicas do not wait for late queries when it ends (`launch` alone leaves that as it is): four seconds less.
    """
    server = launch(home, "--serving.drain-s", "0", *flags, port=port)
    try:
        wait_until_ready(server)
        yield server
    finally:
        if server.process.poll() is None:
            server.end()
        ground.clear(home)  # nothing to do, unless the test killed it


def eventually(claim: Any, timeout_s: float = 30) -> Any:
    """What `claim()` gives once it is true; it may fail until then."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if found := claim():
                return found
            problem: Any = "it stays false"
        except (httpx.HTTPError, KeyError, ValueError, AssertionError) as error:
            problem = error
        assert time.monotonic() < deadline, problem
        time.sleep(0.05)


@dataclass
class Load:
    """Clients that ask all the time, with little rests, and check each answer against the version that it names."""

    server: Server
    clients: int = 4
    rest_s: float = 0.005  # between two queries: what starts, or steps back behind queries, needs the cores too
    answered: list[tuple[float, int, float]] = field(default_factory=list)  # (time, version, seconds)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        for k in range(self.clients):
            self._threads.append(threading.Thread(target=self._ask, args=(k,), daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def versions(self) -> set[int]:
        """The versions that answered."""
        return {version for _, version, _ in self.answered}

    def after(self, moment: float) -> set[int]:
        """The versions that answered requests which were sent after that moment (time.time())."""
        return {version for at, version, _ in self.answered if at > moment}

    def first(self, version: int, moment: float) -> float:
        """When, after that moment, the version first answered (time.time()); waits until it has."""
        return float(
            eventually(lambda: min((at + s for at, v, s in self.answered if v == version and at + s > moment)))
        )

    def _ask(self, client: int) -> None:
        known: dict[int, dict[int, str]] = {}
        images = [encoded(image) for image in tiny_images()]
        with self.server.http() as http:
            turn = client
            while not self._stop.wait(self.rest_s):
                turn += 1
                began = time.time()
                try:
                    many = [("images", (f"{k}.png", images[(turn + k) % len(images)])) for k in range(1 + turn % 3)]
                    answer = http.post("/v1/classify?top_k=16", files=many)
                    assert answer.status_code == 200, f"{answer.status_code} {answer.text[:200]}"
                    version = self._checked(answer, len(many), known)
                    self.answered.append((began, version, time.time() - began))
                except (httpx.HTTPError, AssertionError) as error:
                    self.failures.append(f"{type(error).__name__}: {error}")

    def _checked(self, answer: httpx.Response, count: int, known: dict[int, dict[int, str]]) -> int:
        """The version that answered, after making sure that it, and no other, can have said that."""
        found = answer.json()
        version: int = found["version"]
        if version not in known:
            known[version] = {entry.id: entry.name for entry in self.server.registry.manifest(version).answerable}
        assert answer.headers["x-lifelist-version"] == str(version)
        assert len(found["images"]) == count
        for image in found["images"]:
            said = {entry["id"]: entry["name"] for entry in image["classes"]}
            assert said == known[version], f"version {version} knows {known[version]}, not {said}"
        return version


def listeners(process_ids: Sequence[int]) -> set[tuple[str, int]]:
    """(address, port) of every IPv4 and IPv6 socket on which one of the processes listens."""
    inodes = set()
    for process_id in process_ids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{process_id}/fd"):
                with contextlib.suppress(OSError):
                    inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(f"/proc/{process_id}/fd/{name}")))
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                address, port = local.split(":")
                raw = b"".join(bytes.fromhex(address[k : k + 8])[::-1] for k in range(0, len(address), 8))
                found.add((socket.inet_ntop(family, raw), int(port, 16)))
    return found
