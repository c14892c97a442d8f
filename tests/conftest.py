"""What tests of several files share."""

import logging
import os
import signal
from collections.abc import Iterator

import parts_server
import pytest
from parts import tiny_version
from parts_server import Server, started

from lifelist.exporter.registry import Registry

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: its threads share two cores with servers here
# A shell that runs us with `&` has ctrl-C ignored, and so would every program that a test starts, and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
