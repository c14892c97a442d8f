"""Servers and networks on bad days: a relay that breaks connections, and an HTTP server that does what it is told to.

The second stands in for a server: what matters is how a client takes what a real one does rarely, and not on command.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler"], None]


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Scripted:
    """Where it listens, and what it has seen."""

    url: str
    seen: list[Seen] = field(default_factory=list)
    at: list[float] = field(default_factory=list)  # time.monotonic() of each request
    busy: int = 0
    busiest: int = 0  # most requests at once


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    acts: Iterator[Act]
    record: Scripted
    lock: threading.Lock

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with self.lock:
            self.record.at.append(time.monotonic())
            self.record.seen.append(Seen(self.command, self.path, dict(self.headers), body))
            self.record.busy += 1
            self.record.busiest = max(self.record.busiest, self.record.busy)
            act = next(self.acts)
        try:
            act(self)
        finally:
            with self.lock:
                self.record.busy -= 1

    do_GET = do_POST = _any

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


def answers(value: Any, status: int = 200, /, **headers: str) -> Act:
    """Answer with JSON, or with text as it is."""

    def act(handler: Handler) -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        handler.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), text)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def refuses(status: int, sentence: str = "no", **headers: str) -> Act:
    """Answer with an error as Lifelist words it."""
    return answers({"error": sentence}, status, **headers)


def hangs_up(handler: Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def after(seconds: float, act: Act) -> Act:
    """Do it later; the client may have gone by then."""

    def later(handler: Handler) -> None:
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            act(handler)

    return later


@contextlib.contextmanager
def scripted(*acts: Act, port: int = 0) -> Iterator[Scripted]:
    """A server that does these in turn, and the last one for ever."""

    def for_ever() -> Iterator[Act]:
        yield from acts
        while True:
            yield acts[-1]

    record = Scripted("")
    members = {"acts": for_ever(), "record": record, "lock": threading.Lock()}
    server = ThreadingHTTPServer(("127.0.0.1", port), type("_Handler", (Handler,), members))
    server.daemon_threads = True
    record.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield record
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Cutter:
    """A TCP relay that breaks each connection after so many bytes of answer: a network as it is on a bad day."""

    def __init__(self, port: int, after: int) -> None:
        self.target, self.after, self.cuts = port, after, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # until it is closed
            while True:
                threading.Thread(target=self._relay, args=(self.listener.accept()[0],), daemon=True).start()

    def _relay(self, caller: socket.socket) -> None:
        with caller, socket.create_connection(("127.0.0.1", self.target)) as server, contextlib.suppress(OSError):
            threading.Thread(target=self._forward, args=(caller, server), daemon=True).start()
            left = self.after
            while data := server.recv(min(65536, left)):
                caller.sendall(data)
                left -= len(data)
                if not left:
                    self.cuts += 1
                    caller.shutdown(socket.SHUT_RDWR)  # closing alone would wait for the thread that reads
                    return

    def _forward(self, caller: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := caller.recv(65536):
                server.sendall(data)
