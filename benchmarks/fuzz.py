"""Many bad requests to a running server: no 5xx, no answer that is not JSON, no dead process, no memory that grows.

    python -m lifelist.benchmarks.fuzz http://127.0.0.1:8000 --inputs 50000 --seed 0

A 503 that says when to come again is meant, and no failure. Give it a server of its own: what happens to be sound among
the requests is done. The last line is JSON; the exit code is 1 if anything failed.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifelist.benchmarks.fuzz_inputs import GENERATORS, Request

CLIENTS = 4
PATIENCE_S = 60
LEAVES_S = 0.3  # after which a client leaves whose request may have no end
SETTLED = 0.2  # of the inputs have been sent when memory is measured first: caches are full, code is loaded
GROWTH = 1.1, 32 * 2**20  # a process may grow by this factor and these bytes meanwhile
COMPILED_IN = b"<html><body><h1>"  # how HAProxy's own pages begin, which answer what it cannot read as HTTP
ANSWERING = ("ray::ServeRepli", "haproxy")  # as the kernel cuts names; a trainer comes, grows and goes
MARK = b"X_LIFELIST_SERVER="  # in the environment of every process of a server


@dataclass
class Found:
    """What came of it. A failure is the seed and the number of its request, and what was wrong with the answer."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)  # 0: closed without an answer
    failures: list[str] = field(default_factory=list)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)  # process → bytes when settled, and at the end
    seconds: float = 0.0

    def line(self) -> dict[str, Any]:
        """The summary."""
        grown = [after / before for before, after in self.memory.values()]
        return {
            "inputs": self.sent,
            "failures": len(self.failures),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "memory_ratio": round(max(grown, default=1.0), 3),
            "processes": len(self.memory),
            "seconds": round(self.seconds, 1),
        }


def run(
    url: str,
    inputs: int,
    seed: int = 0,
    *,
    only: Sequence[str] = tuple(GENERATORS),
    clients: int = CLIENTS,
    tell: Callable[[str], None] = lambda line: None,
) -> Found:
    """Send `inputs` requests, made by the generators that `only` names; the same seed sends the same ones."""
    found, began = Found(), time.monotonic()
    settled = int(inputs * SETTLED)
    before: dict[int, tuple[str, int]] = {}
    for first, last in itertools.pairwise([0, settled, *range(settled + 5000, inputs, 5000), inputs]):
        _send(url, range(first, last), seed, only, clients, found)
        now = memory(url)
        if last == settled:
            before = now
        rate = found.sent / (time.monotonic() - began)
        total = sum(size for _, size in now.values()) / 2**20
        tell(f"{found.sent:,} of {inputs:,}: {len(found.failures)} failures, {rate:.0f}/s, {total:,.0f} MiB")
    for process_id, (name, size) in before.items():
        if process_id not in now:
            found.failures.append(f"process {process_id} ({name}) is no more")
            continue
        after = now[process_id][1]
        found.memory[f"{name} {process_id}"] = size, after
        if after > size * GROWTH[0] + GROWTH[1]:
            found.failures.append(f"process {process_id} ({name}) grew from {size:,} to {after:,} bytes")
    found.seconds = time.monotonic() - began
    return found


def made(seed: int, number: int, only: Sequence[str] = tuple(GENERATORS)) -> tuple[str, Request]:
    """The request of that number, and its generator; each by itself, so that one can be sent again."""
    lot = random.Random(f"{seed} {number}")
    name = only[number % len(only)]
    return name, GENERATORS[name](lot)


def memory(url: str) -> dict[int, tuple[str, int]]:
    """Name and resident bytes of the processes that answer, by process id; none if they are on another machine."""
    with urllib.request.urlopen(f"{url}/v1/health/ready", timeout=PATIENCE_S) as answer:
        replicas = json.load(answer)["replicas"]
    own = [replica["process_id"] for replica in replicas]
    mark = _mark(own[0])
    others = [int(name) for name in os.listdir("/proc") if name.isdecimal()] if mark else []
    found = {}
    for process_id in {*own, *(other for other in others if _mark(other) == mark)}:
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another's
            status = dict(
                line.split(":\t")
                for line in Path(f"/proc/{process_id}/status").read_text().splitlines()
                if ":\t" in line
            )
            if "VmRSS" in status and status["Name"].startswith(ANSWERING):
                found[process_id] = status["Name"], int(status["VmRSS"].split()[0]) * 1024
    return found


def _mark(process_id: int) -> bytes:
    try:
        variables = Path(f"/proc/{process_id}/environ").read_bytes().split(b"\0")
    except OSError:
        return b""
    return next((variable for variable in variables if variable.startswith(MARK)), b"")


# ----------------------------------------------------------------------------------------------------------- sending


def _send(url: str, numbers: range, seed: int, only: Sequence[str], clients: int, found: Found) -> None:
    """Send these, several at a time."""
    waiting, lock = iter(numbers), threading.Lock()

    def next_number() -> int | None:
        with lock:
            return next(waiting, None)

    def client() -> None:
        with _Connection(url) as connection:
            while (number := next_number()) is not None:
                name, request = made(seed, number, only)
                status, problem = connection.ask(request)
                with lock:
                    found.sent += 1
                    found.statuses[status] += 1
                    if problem:
                        found.failures.append(f"seed {seed}, input {number} ({name}): {problem}")

    with ThreadPoolExecutor(clients) as pool:
        for client_ in [pool.submit(client) for _ in range(clients)]:
            client_.result()


class _Connection:
    """A connection that is kept as long as HTTP allows, and is made anew after whatever breaks it."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.address = parts.hostname or "127.0.0.1", parts.port or 80
        self.socket: socket.socket | None = None

    def __enter__(self) -> "_Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def ask(self, request: Request) -> tuple[int, str]:
        """The status, 0 if there was no answer; and what is wrong with it, if anything is."""
        for fresh in (self.socket is None, True):
            try:
                return self._ask(request)
            except (ConnectionError, http.client.HTTPException) as error:
                self._close()
                if fresh:  # else it was closed as idle: once more
                    return 0, f"the connection broke: {error!r}" if request.whole else ""
            except TimeoutError:
                self._close()
                return 0, f"no answer in {PATIENCE_S} s" if request.whole else ""
        raise AssertionError

    def _ask(self, request: Request) -> tuple[int, str]:
        if self.socket is None:
            self.socket = socket.create_connection(self.address)
        self.socket.settimeout(PATIENCE_S if request.whole else LEAVES_S)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused in the middle: the answer is there
            self.socket.sendall(request.wire())
        answer = http.client.HTTPResponse(self.socket, method=request.method.decode() or None)
        answer.begin()
        stream = answer.headers.get_content_type() == "text/event-stream"
        body = b"" if stream else answer.read()
        if stream or answer.will_close or not request.whole:
            self._close()
        return answer.status, "" if not request.whole and answer.status < 500 else _problem(answer, body)

    def _close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def _problem(answer: http.client.HTTPResponse, body: bytes) -> str:
    """What is wrong with an answer: a 5xx that is not meant, or an error that is not said in JSON."""
    if answer.status >= 500 and not (answer.status == 503 and answer.headers["Retry-After"]):
        return f"{answer.status} {body[:200]!r}"
    if answer.status < 400 or body.startswith(COMPILED_IN):
        return ""
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    return (
        "" if isinstance(said, dict) and said.get("error") else f"{answer.status} without a JSON error: {body[:200]!r}"
    )


def main(arguments: Iterator[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m lifelist.benchmarks.fuzz", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(GENERATORS), help="generators, with commas")
    asked = parser.parse_args(None if arguments is None else list(arguments))
    found = run(
        asked.url.rstrip("/"), asked.inputs, asked.seed, only=asked.only.split(","),
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    for failure in found.failures[:100]:
        print(failure)
    print(json.dumps({"bench": "fuzz", "seed": asked.seed} | found.line()))
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
