"""The ground that a server stands on: its lock on `home`, its ports, its private folder; and what a dead one left."""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lifelist.deploy import haproxy
from lifelist.exporter.errors import BadSetting, Conflict, Unavailable
from lifelist.serving.addresses import is_loopback
from lifelist.serving.options import ServingOptions

FIRST, LAST, BLOCK = 30000, 32700, 200  # ports; below the range from which systems give out their own
MARK = "X_LIFELIST_SERVER"  # in the environment of every process of a server: its nonce


@dataclass(frozen=True, slots=True)
class Record:
    """What a running server writes down in <home>/server.json, for the command line and for its successor."""

    process_id: int
    nonce: str
    host: str
    port: int
    folder: str  # private; sockets and HAProxy's configuration
    ray: str = ""  # address of its Ray cluster, once it runs


@dataclass(frozen=True, slots=True)
class Block:
    """Two hundred ports that no other server uses; held by a socket on the first, which dies with this process."""

    first: int
    guard: socket.socket

    def variables(self) -> dict[str, str]:
        """The ports as Ray Serve reads them. Without them two servers could answer each other's queries."""
        return {
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self.first + 1),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(self.first + 2),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self.first + 3),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self.first + 4),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(self.first + 10),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(self.first + 105),
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(self.first + 105),
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(self.first + BLOCK),
        }


@contextlib.contextmanager
def lock(home: Path) -> Iterator[None]:
    """Have `home` to ourselves. Conflict if a server that runs has it; the lock of one that was killed is free."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            record = read(home)
            who = f"process {record.process_id}, at port {record.port}" if record else "another process"
            raise Conflict(
                f"{home} is being served already, by {who}; end that one, or give --home another folder"
            ) from None
        yield


def check_port(host: str, port: int, flag: str = "--port", command: str = "lifelist serve") -> None:
    """Conflict if something listens there, naming the flag of a command for another; BadSetting if we could not."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise BadSetting(f"serving.host {host!r} is no address of this machine: {error.strerror}") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended are no obstacle
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Conflict(
                    f"port {port} on {host} is in use by another program; end it, or choose another port: "
                    f"{command} {flag} {port + 1 if port < 65535 else port - 1}"
                ) from None
            raise BadSetting(f"cannot listen at {host}, port {port}: {error.strerror}") from error


def on_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(is_loopback(str(address[0])) for *_, address in found)


def take_block() -> Block:
    """The first free block of ports; Unavailable if there is none."""
    for first in range(FIRST, LAST, BLOCK):
        guard = _bound(first)
        if guard is None:
            continue
        if all(_is_free(port) for port in range(first + 1, first + BLOCK)):
            return Block(first, guard)
        guard.close()
    raise Unavailable(f"no {BLOCK} free ports in a row from {FIRST} to {LAST}; end a program that uses them")


def _bound(port: int) -> socket.socket | None:
    guard = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        guard.bind(("127.0.0.1", port))
    except OSError:
        guard.close()
        return None
    return guard


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def private_folder(binary: str) -> Path:
    """A folder for sockets that only we may enter, with the launcher that Ray starts in place of `binary` (HAProxy)."""
    # /tmp: a socket's path may have 107 characters, and Ray adds some seventy
    folder = Path(tempfile.mkdtemp(prefix="lifelist-", dir="/tmp"))
    launcher = folder / "haproxy"
    program = Path(__file__).with_name("haproxy.py")
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{program}" "{binary}" "$@"\n')
    launcher.chmod(stat.S_IRWXU)
    return folder


def read(home: Path) -> Record | None:
    """What the latest server of `home` wrote down, whether it runs or not."""
    try:
        return Record(**json.loads((home / "server.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write(home: Path, record: Record) -> None:
    """Write down which server this is."""
    draft = home / ".server.json"
    draft.write_text(json.dumps(asdict(record), indent=2) + "\n")
    draft.replace(home / "server.json")


def clear(home: Path) -> None:
    """Remove what the server in the record left behind: its processes, its folder, the record. Call it in the lock."""
    if (record := read(home)) is not None:
        end_all(record.nonce)
        if Path(record.folder).name.startswith("lifelist-"):
            shutil.rmtree(record.folder, ignore_errors=True)
    (home / "server.json").unlink(missing_ok=True)


def end_all(nonce: str, patience_s: float = 10) -> None:
    """Kill every process of the server with that nonce, but for this one, and wait until they are gone."""
    deadline = time.monotonic() + patience_s
    while found := processes(nonce):
        for process_id in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise Unavailable(f"processes {found} of an earlier server do not end")
        time.sleep(0.05)


def processes(nonce: str) -> list[int]:
    """The processes of the server with that nonce, but for this one. On systems without /proc: none are found."""
    return [process_id for process_id in _all_processes() if f"{MARK}={nonce}" in _started_with(process_id)]


def missing(nonce: str, programs: Sequence[str]) -> list[str]:
    """Those of the programs that do not run, or no longer, as part of the server with that nonce."""
    if not Path("/proc/self").exists():
        return []
    running = {_name(process_id) for process_id in processes(nonce)}
    return [program for program in programs if program not in running]


def _name(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/comm").read_text().strip()
    except OSError:
        return ""


def _started_with(process_id: int) -> list[str]:
    """What a process of ours was started with; empty for one that has ended or is another's."""
    try:
        return Path(f"/proc/{process_id}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _all_processes() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
    return []


def environment(block: Block, folder: Path, nonce: str, options: ServingOptions) -> Mapping[str, str]:
    """The environment that Ray and Ray Serve read when they are imported and started; docs/serving.md explains it."""
    return block.variables() | {
        MARK: nonce,
        # HTTP: HAProxy in front, straight to the replicas, whose code runs on their main loop
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",  # handles work from threads, too; queries do not use them
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "lifelist.serving.direct.middleware",  # queries pass Ray by
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # a log line for each query to a Python process; we count ourselves
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / "haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # three failures, and HAProxy is started anew
        "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",  # else another program could share our port, unseen
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(options.drain_s),
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(options.max_body_bytes + 2**20),  # the rest of a message is small
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(options.max_header_bytes + haproxy.RESERVED),
        # a client from which nothing comes though something should, after the answer of 408 too
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(math.ceil(options.stall_timeout_s) + 2),
        haproxy.HEAD_TIMEOUT: str(options.head_timeout_s),
        haproxy.BODY_TIMEOUT: str(math.ceil(options.read_timeout_s)),
        # Ray: nobody without the token runs anything; replicas see the GPU without reserving it
        "RAY_AUTH_MODE": "token",
        # 0: as Ray does it by itself there, whatever it starts listens on loopback, open pages of metrics included
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": str(int(options.ray_everywhere)),
        "RAY_worker_niceness": "0",  # 15 is Ray's own choice; a server that answers is no background job
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }
