"""A real server that trains with two workers, whose trainer is killed while they train."""

from pathlib import Path

import pytest
from parts_server import Load, Server, eventually, started
from test_faults_ray import EPOCHS, begin, check_done, kill, prepare, progress

from lifelist.deploy import ground
from lifelist.deploy.store import Store


def workers(server: Server) -> set[int]:
    """The processes of Ray Train's workers."""
    lines = {number: Path(f"/proc/{number}/cmdline") for number in ground.processes(server.record().nonce)}
    return {n for n, line in lines.items() if line.exists() and line.read_bytes().startswith(b"ray::RayTrainWorker")}


@pytest.mark.timeout(300)
def test_a_trainer_killed_while_it_has_workers_resumes_with_others_while_live_answers(tmp_path: Path) -> None:
    prepare(tmp_path)
    with started(tmp_path, "--training-workers", "2") as server, Load(server, clients=1, rest_s=0.02) as load:
        increment = begin(server, "blue", "yellow")
        eventually(lambda: progress(server, increment) >= 3, 90)
        first = workers(server)
        assert len(first) == 2
        kill(server, "ray::Trainer")
        eventually(lambda: not first & workers(server), 20)
        check_done(server, increment, "blue", "yellow")
        eventually(lambda: not workers(server))
        assert load.failures == []
        assert len(load.answered) > 20
        manifest = server.registry.manifest(server.get("/v1/versions")["live"])
        assert manifest.software["workers"] == "2"
    store = Store(f"sqlite:///{tmp_path / 'lifelist.db'}")
    epochs = [event.data["epoch"] for event in store.events(increment) if event.kind == "epoch"]
    assert epochs == sorted(epochs)  # it went on, and did not begin again
    assert set(epochs) == set(range(1, EPOCHS + 1))
