"""What tests of several files share."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parts_server
import pytest
from parts import tiny_version
from parts_server import Server, started

from lifelist.deploy.store import Store
from lifelist.exporter.registry import Registry

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: its threads share two cores with servers here
# A shell that runs us with `&` has ctrl-C ignored, and so would every program that a test starts, and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# `pytest -n 2` (make test) runs two files at once. Those with the shared server are one file to it: all in one process,
# so that one server is started, and in this order (serve kills replicas, and others then have other ports). They come
# first, then others of few but long tests: both processes end at about the same time.
SHARING = ("auth", "bad_requests", "classes_live", "client", "fuzz", "limits", "oip_clients", "serve", "soak")
LONG = (
    *("workers", "faults_ray", "streaming", "demo", "bench_serving", "fallen", "bench_stages"),
    *("bench_accuracy", "readme", "faults", "sidecar", "bench_training"),
)


def _place(file: Path) -> int:
    first, name = (*SHARING, *LONG), file.stem.removeprefix("test_")
    return first.index(name) if name in first else len(first)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path))


@pytest.fixture(autouse=True)
def _named_if_sharing(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames and not hasattr(request.module, "server"):
        assert _place(request.path) < len(SHARING), f"it uses the shared server: name its file in SHARING of {__file__}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "those that share the server" if _place(Path(file)) < len(SHARING) else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A new database."""
    return Store(f"sqlite:///{tmp_path / 'lifelist.db'}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with two replicas and gRPC, whose version 1 is tiny. For tests that leave it in good order."""
    home = tmp_path_factory.mktemp("server")
    tiny_version(Registry(str(home / "registry")), live=True)
    grpc_port = parts_server.free_port()
    with started(home, "--serving.replicas", "2", "--serving.grpc-port", str(grpc_port)) as made:
        made.grpc_port = grpc_port
        yield made


@pytest.fixture
def free_port() -> int:
    """A port of loopback that nobody listens at."""
    return parts_server.free_port()


OURS = logging.getLogger("lifelist")
BEFORE = OURS.handlers, OURS.propagate, OURS.level  # any command: fixtures of a module run some, too


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that is run in this process sets up logging, as a program may; the next test finds it as it was."""
    yield
    OURS.handlers, OURS.propagate = BEFORE[:2]
    OURS.setLevel(BEFORE[2])
