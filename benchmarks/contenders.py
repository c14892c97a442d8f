"""The servers that are compared: how each is started, what it is sent, and how its answers are read."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from lifelist.benchmarks.models import Model
from lifelist.exporter.errors import Conflict, Failed

Kind = Literal["tensor", "file"]
START_S = 180
BOUNDARY = "lifelist-bench"


@dataclass(frozen=True, slots=True)
class Sent:
    """One request, as it goes over the wire."""

    body: bytes
    headers: Mapping[str, str]
    path: str


@dataclass(frozen=True, slots=True)
class Contender:
    """A row of the table."""

    name: str
    command: Callable[[Model, str, int, Path], Sequence[str]]  # (model, precision, port, folder) → what starts it
    sent: Callable[[Model, Kind, Sequence[int]], Sent]  # (model, kind, numbers of images) → a request
    pattern: str  # Lua: captures the id of the best class of each image, or a list of such ids
    ready: str = "/"  # answers 200 once it serves
    how: str = ""  # in what form images travel, for the table
    end_s: float = 60  # that it may take to end, before it is killed


def raw_bytes(path: str) -> Callable[[Model, Kind, Sequence[int]], Sent]:
    """A tensor of any number of images, or one image file, as it is; several files in a form."""

    def sent(model: Model, kind: Kind, numbers: Sequence[int]) -> Sent:
        if kind == "tensor":
            pixels = model.pixels[list(numbers)]
            shape = ",".join(map(str, pixels.shape))
            return Sent(pixels.tobytes(), {"Content-Type": "application/octet-stream", "X-Tensor-Shape": shape}, path)
        files = [model.files[number] for number in numbers]
        if len(files) > 1:
            return form(path, files)
        return Sent(files[0], {"Content-Type": "application/octet-stream"}, path)

    return sent


def form(path: str, files: Sequence[bytes]) -> Sent:
    """Files in a form (multipart/form-data), each in the field `images`."""
    parts = []
    for number, data in enumerate(files):
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{number}"\r\n'
        parts.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n")
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    return Sent(body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, path)


def _lifelist(model: Model, precision: str, port: int, folder: Path) -> Sequence[str]:
    return [
        sys.executable, "-m", "lifelist.deploy.cli", "serve", "--home", str(folder), "--registry", model.registry,
        "--port", str(port), "--serving.provider", "cpu", "--serving.precision", precision,
    ]  # fmt: skip


def _bare(model: Model, precision: str, port: int, folder: Path) -> Sequence[str]:
    return [sys.executable, "-m", "lifelist.benchmarks.bare", model.registry, str(model.version), str(port), precision]


LIFELIST = Contender(
    name="Lifelist",
    command=_lifelist,
    sent=raw_bytes("/v1/classify?top_k=1"),
    pattern=r'"classes":%[{"id":(%d+)',
    ready="/v1/health/ready",
    how="raw bytes, several files in a form",
)
BARE = Contender(
    name="bare uvicorn",
    command=_bare,
    sent=raw_bytes("/"),
    pattern=r'"id":(%d+)',
    how="raw bytes, several files in a form",
)


@contextlib.contextmanager
def started(contender: Contender, model: Model, precision: str, flags: Sequence[str] = ()) -> Iterator[str]:
    """The URL of a server that was just started and that answers, for the time of a `with` block; then it is gone.

    flags: more words for its command. Conflict if something answered at its port before, or if what answers is not what
    was started; Failed, with what it printed, if it does not come up.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "home"
        folder.mkdir()
        command = [*contender.command(model, precision, port, folder), *flags]
        with running(command, port, contender.ready, folder, contender.end_s) as url:
            yield url


@contextlib.contextmanager
def running(command: Sequence[str], port: int, ready: str, folder: Path, end_s: float = 60) -> Iterator[str]:
    """The same for any command whose server listens at `port`, and answers at the path `ready` once it serves."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        if _answers(url, ready):
            raise Conflict(f"something answers at {url} already; end it")
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
            env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_S
            while not _answers(url, ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise Failed(f"{' '.join(command[:4])} … did not start: {log.read()[-2000:]}")
                time.sleep(0.1)
            _check_owner(process.pid, port)
            yield url
        finally:
            _end(process, end_s)


def _check_owner(process_id: int, port: int) -> None:
    """Conflict if what listens at the port is not a descendant of what was started."""
    found, ours = set[int](), None
    while ours is None:
        found = set(_listeners(port))
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # one ended just now: look again
            ours = any(_descends(owner, process_id) for owner in found)
    if not ours:
        raise Conflict(f"port {port} is answered by processes {sorted(found)}, of another server")


def _listeners(port: int) -> Iterator[int]:
    """The processes that listen at a port of this machine."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and not sockets.isdisjoint(_open_files(process)):
            yield int(process.name)


def _open_files(process: Path) -> Iterator[str]:
    """What a process has open, as /proc/PID/fd names it; what it closes meanwhile is left out."""
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for file in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                yield os.readlink(file)


def _descends(process_id: int, ancestor: int) -> bool:
    """Whether a process is that one, was started by it, or is in its session."""
    while process_id > 1:
        if process_id == ancestor or os.getsid(process_id) == ancestor:
            return True
        status = Path(f"/proc/{process_id}/stat").read_text()
        process_id = int(status.rpartition(")")[2].split()[1])
    return False


def _answers(url: str, path: str) -> bool:
    try:
        return httpx.get(url + path, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end(process: "subprocess.Popen[bytes]", end_s: float) -> None:
    """Ask it to end, and then see to it that its whole session is gone."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(end_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
