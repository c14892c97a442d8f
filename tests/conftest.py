"""What tests of several files share."""

import os
from collections.abc import Iterator

import parts_server
import pytest
from parts import tiny_version
from parts_server import Server, started

from lifelist.exporter.registry import Registry

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: its threads share two cores with servers here


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with two replicas, whose version 1 is tiny. For all tests of a run that leave it in good order."""
    home = tmp_path_factory.mktemp("server")
    tiny_version(Registry(str(home / "registry")), live=True)
    with started(home, "--serving.replicas", "2") as made:
        yield made


@pytest.fixture
def free_port() -> int:
    """A port of loopback that nobody listens at."""
    return parts_server.free_port()
