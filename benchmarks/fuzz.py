"""Many bad requests to a running server: no 5xx, no answer that is not JSON, no dead process, no memory that grows.

    python -m lifelist.benchmarks.fuzz http://127.0.0.1:8000 --grpc 127.0.0.1:8001 --inputs 50000 --seed 0

Over HTTP, and over gRPC if told where. Meant, and no failure, are a 503 that says when to come again, a 501 for what
the Open Inference Protocol has and the server does not, a 504 for a query whose own time is over, and the same over
gRPC. Give it a server of its own: what happens to be sound among the requests is done. The last line is JSON; the exit
code is 1 if anything failed.
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

import grpc
from google.protobuf.message import DecodeError

from lifelist.benchmarks import fuzz_inputs, fuzz_protocol
from lifelist.benchmarks.fuzz_inputs import Request
from lifelist.benchmarks.fuzz_protocol import Call
from lifelist.exporter.errors import BadInput

CLIENTS = 4
PATIENCE_S = 60
LEAVES_S = 0.3  # after which a client leaves whose request may have no end
SETTLED = 0.2  # of the inputs have been sent when memory is measured first: caches are full, code is loaded
GROWTH = 1.1, 32 * 2**20  # a process may grow by this factor and these bytes meanwhile
COMPILED_IN = b"<html><body><h1>"  # how HAProxy's own pages begin, which answer what it cannot read as HTTP
ANSWERING = ("ray::ServeRepli", "haproxy")  # as the kernel cuts names; a trainer comes, grows and goes
MARK = b"X_LIFELIST_SERVER="  # in the environment of every process of a server
OVER_HTTP = (*fuzz_inputs.GENERATORS, *fuzz_protocol.GENERATORS)
OVER_GRPC = tuple(fuzz_protocol.CALLS)
ITS_OWN_TIME = "of the parameter timeout"  # has passed, which a query may give: 504 and DEADLINE_EXCEEDED
# fmt: off
MEANT = {  # codes over gRPC that say what is wrong with a call; all others are the server's own faults
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED,
}
# fmt: on


@dataclass
class Found:
    """What came of it. A failure is the seed and the number of its request, and what was wrong with the answer."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # of HTTP or gRPC; 0: closed without an answer
    failures: list[str] = field(default_factory=list)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)  # process → bytes when settled, and at the end
    seconds: float = 0.0

    def line(self) -> dict[str, Any]:
        """The summary."""
        grown = [after / before for before, after in self.memory.values()]
        return {
            "inputs": self.sent,
            "failures": len(self.failures),
            "statuses": dict(sorted(self.statuses.items())),
            "memory_mib": {name: [size >> 20 for size in sizes] for name, sizes in self.memory.items()},
            "memory_ratio": round(max(grown, default=1.0), 3),
            "processes": len(self.memory),
            "seconds": round(self.seconds, 1),
        }


def run(
    url: str,
    inputs: int,
    seed: int = 0,
    *,
    only: Sequence[str],
    grpc_address: str = "",
    clients: int = CLIENTS,
    tell: Callable[[str], None] = lambda line: None,
) -> Found:
    """Send `inputs` requests, made by the generators that `only` names; the same seed sends the same ones.

    grpc_address  HOST:PORT, if some are for gRPC
    """
    found, began = Found(), time.monotonic()
    settled = int(inputs * SETTLED)
    before: dict[int, tuple[str, int]] = {}
    for first, last in itertools.pairwise([0, settled, *range(settled + 5000, inputs, 5000), inputs]):
        _send(url, grpc_address, range(first, last), seed, only, clients, found)
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


def chosen(names: str, *, grpc: bool) -> tuple[str, ...]:
    """The generators of that names, with commas; all if there are none. BadInput if one is not there."""
    there = OVER_HTTP + OVER_GRPC if grpc else OVER_HTTP
    found = tuple(name for name in names.split(",") if name)
    if unknown := [name for name in found if name not in there]:
        raise BadInput(
            f"there is no generator {unknown[0]!r}{'' if grpc else ' over HTTP'}; there are {', '.join(there)}"
        )
    return found or there


def made(seed: int, number: int, only: Sequence[str] = OVER_HTTP + OVER_GRPC) -> tuple[str, Request | Call]:
    """The request of that number, and its generator; each by itself, so that one can be sent again."""
    generators: dict[str, Any] = fuzz_inputs.GENERATORS | fuzz_protocol.GENERATORS | fuzz_protocol.CALLS
    name = only[number % len(only)]
    return name, generators[name](random.Random(f"{seed} {number}"))


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


def _send(
    url: str, grpc_address: str, numbers: range, seed: int, only: Sequence[str], clients: int, found: Found
) -> None:
    """Send these, several at a time."""
    waiting, lock = iter(numbers), threading.Lock()

    def next_number() -> int | None:
        with lock:
            return next(waiting, None)

    def client() -> None:
        with _Connection(url) as connection, grpc.insecure_channel(grpc_address) as channel:  # opened when it is used
            while (number := next_number()) is not None:
                name, request = made(seed, number, only)
                status, problem = called(channel, request) if isinstance(request, Call) else connection.ask(request)
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

    def ask(self, request: Request) -> tuple[str, str]:
        """The status, 0 if there was no answer; and what is wrong with it, if anything is."""
        for fresh in (self.socket is None, True):
            try:
                status, problem = self._ask(request)
                return str(status), problem
            except (ConnectionError, http.client.HTTPException) as error:
                self._close()
                if fresh:  # else it was closed as idle: once more
                    return "0", f"the connection broke: {error!r}" if request.whole else ""
            except TimeoutError:
                self._close()
                return "0", f"no answer in {PATIENCE_S} s" if request.whole else ""
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
    later = answer.status == 503 and answer.headers["Retry-After"]
    too_late = answer.status == 504 and ITS_OWN_TIME.encode() in body
    if answer.status >= 500 and not (later or too_late or answer.status == 501):
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


def called(channel: grpc.Channel, call: Call) -> tuple[str, str]:
    """The code of a call over gRPC, and what is wrong with it, if anything is."""
    ways = ("stream" if many else "unary" for many in call.streams)
    method = getattr(channel, "_".join(ways))(call.path)
    compression = grpc.Compression.Gzip if call.compressed else None
    try:
        answer = method(
            iter(call.messages) if call.streams[0] else call.messages[0],
            metadata=call.metadata,
            timeout=PATIENCE_S,
            compression=compression,
        )
        if call.path not in fuzz_protocol.answers():
            return "OK", f"there is no {call.path}, and it answers"
        for data in answer if call.streams[1] else [answer]:
            fuzz_protocol.answers()[call.path].FromString(data)
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        meant = code in MEANT or (code == grpc.StatusCode.DEADLINE_EXCEEDED and ITS_OWN_TIME in details)
        return code.name, "" if meant and details else f"{code.name} {details[:200]!r}"
    except DecodeError as error:
        return "OK", f"the answer is no message: {error}"
    return "OK", ""


def main(arguments: Iterator[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m lifelist.benchmarks.fuzz", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--grpc", default="", help="HOST:PORT; none: over HTTP alone")
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="generators, with commas: " + ", ".join(OVER_HTTP + OVER_GRPC))
    asked = parser.parse_args(None if arguments is None else list(arguments))
    found = run(
        asked.url.rstrip("/"),
        asked.inputs,
        asked.seed,
        only=chosen(asked.only, grpc=bool(asked.grpc)),
        grpc_address=asked.grpc,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    for failure in found.failures[:100]:
        print(failure)
    print(json.dumps({"bench": "fuzz", "seed": asked.seed} | found.line()))
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
