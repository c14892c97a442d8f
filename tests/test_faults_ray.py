"""A real server under load while processes of it are really killed: trainer, worker, then all of Ray at once.

One server for the whole file, and one story of five increments, of 3, 1, 2, 1 and 1 classes: each part begins where the
one before it ended. Replicas that are killed
in a swap are in test_swap.py, carriers between any two steps in test_faults.py.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parts_rollout import LENIENT, learn, pictures, settings
from parts_server import Load, Server, eventually, launch, started, wait_until_ready

from lifelist.deploy import ground
from lifelist.deploy.store import Store
from lifelist.deploy.workshop import open_workshop

EPOCHS = 18  # of some tenths of a second each: time enough to be killed in


def prepare(home: Path) -> None:
    """A base of two colours, and settings for increments that take some seconds and pass their gate."""
    base = open_workshop(settings(home, network="resnet32", epochs=4))
    assert learn(base, "red", "green").state == "done"
    base.store.close()
    (home / "lifelist.toml").write_text(
        "\n".join(
            [
                "[training]",
                'network = "resnet32"',
                "image_size = 8",
                f"epochs = {EPOCHS}",
                "batch_size = 16",
                "memory_total = 60",
                "flip = false",
                "crop = false",
                *(
                    f'[[gate]]\ncheck = "{check.check}"'
                    + (f"\nlimit = {check.limit}" if check.limit is not None else "")
                    for check in LENIENT
                ),
            ]
        )
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("faults")
    prepare(home)
    with started(home) as server:
        yield server


def begin(server: Server, *names: str) -> int:
    """Post the classes' pictures and start an increment of them; its number."""
    with server.http(120) as http:
        for name in names:
            files = [("images", file) for file in pictures(name)]
            added = http.post("/v1/examples", data={"class": name}, files=files)
            assert (added.status_code, added.json()["accepted"]) == (200, 20), added.text
            assert added.json()["class"]["state"] == "enrolled"
        headers = {"Idempotency-Key": f"learn {' '.join(names)}"}
        asked = http.post("/v1/increments", json={"classes": names}, headers=headers)
        assert asked.status_code == 202, asked.text
        return int(asked.json()["id"])


def progress(server: Server, increment: int) -> int:
    """The epoch that an increment has reached."""
    found = server.get(f"/v1/increments/{increment}")
    assert found["state"] not in ("failed", "rejected", "cancelled"), found["reason"]
    return 0 if found["progress"] is None else int(found["progress"]["epoch"])


def ended(server: Server, increment: int) -> dict[str, Any] | None:
    found = server.get(f"/v1/increments/{increment}")
    return found if found["state"] in ("done", "failed", "rejected", "cancelled") else None


def kill(server: Server, title: str, but: int | None = None) -> int:
    """SIGKILL the one Ray process whose title begins so, other than `but`, which may still be dying; its id."""
    (process_id,) = [
        number
        for number in ground.processes(server.record().nonce)
        if number != but and Path(f"/proc/{number}/cmdline").read_bytes().startswith(title.encode())
    ]
    os.kill(process_id, signal.SIGKILL)
    return process_id


def check_done(server: Server, increment: int, *names: str) -> None:
    found = eventually(lambda: ended(server, increment), 120)
    assert found["state"] == "done", found["reason"]
    live = server.registry.manifest(found["version"])
    assert [entry.name for entry in live.trained][-len(names) :] == list(names)
    assert live.version == server.get("/v1/versions")["live"]
    versions = server.registry.versions()
    assert [server.registry.verify(number) for number in versions] == [[]] * len(versions)


def test_a_trainer_killed_in_mid_epoch_resumes_while_live_answers_everything(running: Server) -> None:
    with Load(running, clients=1, rest_s=0.02) as load:
        increment = begin(running, "blue", "yellow", "cyan")
        eventually(lambda: progress(running, increment) >= 3, 60)
        kill(running, "ray::Trainer")
        check_done(running, increment, "blue", "yellow", "cyan")
        assert load.failures == []
        assert len(load.answered) > 20
    store = Store(f"sqlite:///{running.home / 'lifelist.db'}")
    epochs = [event.data["epoch"] for event in store.events(increment) if event.kind == "epoch"]
    assert epochs == sorted(epochs)  # it went on, and did not begin again
    assert set(epochs) == set(range(1, EPOCHS + 1))


def test_a_worker_killed_while_it_carries_an_increment_is_back_and_carries_it_on(running: Server) -> None:
    with Load(running, clients=1, rest_s=0.02) as load:
        increment = begin(running, "pink")
        eventually(lambda: progress(running, increment) >= 3, 60)
        first = kill(running, "ray::Worker")
        eventually(lambda: kill(running, "ray::Worker", but=first))  # and again, as soon as it is back
        check_done(running, increment, "pink")
        assert load.failures == []
    store = Store(f"sqlite:///{running.home / 'lifelist.db'}")
    attempts = {step.state: step.attempts for step in store.steps(increment)}
    assert attempts["intake"] == 1
    assert attempts["train"] >= 2
    epochs = [event.data["epoch"] for event in store.events(increment) if event.kind == "epoch"]
    assert epochs == list(range(1, EPOCHS + 1))  # each line of the trainer, who lived, was carried once


def test_a_cancelled_increment_ends_its_trainer_and_leaves_live_alone(running: Server) -> None:
    increment = begin(running, "white")
    eventually(lambda: progress(running, increment) >= 3, 60)
    live = running.registry.ref("live")
    with running.http() as http:
        assert http.post(f"/v1/increments/{increment}:cancel").status_code == 202
    found = eventually(lambda: ended(running, increment), 30)
    assert found["state"] == "cancelled"
    assert running.registry.ref("live") == live

    def trainers() -> list[int]:
        numbers = ground.processes(running.record().nonce)
        return [n for n in numbers if Path(f"/proc/{n}/cmdline").read_bytes().startswith(b"ray::Trainer")]

    eventually(lambda: not trainers())


def test_after_all_of_ray_is_killed_a_new_start_answers_and_carries_the_increment_on(running: Server) -> None:
    increment = begin(running, "black", "orange")
    eventually(lambda: progress(running, increment) >= 3, 60)
    kept = len(Store(f"sqlite:///{running.home / 'lifelist.db'}").classes())
    nonce = running.record().nonce
    running.process.kill()
    ground.end_all(nonce)
    running.process.wait(10)
    again = launch(running.home, port=running.port)
    running.process, running.log = again.process, again.log  # ended by the fixture
    wait_until_ready(running)
    with Load(running, clients=1, rest_s=0.02) as load:
        check_done(running, increment, "black", "orange")
        assert load.failures == []
    store = Store(f"sqlite:///{running.home / 'lifelist.db'}")
    epochs = [event.data["epoch"] for event in store.events(increment) if event.kind == "epoch"]
    assert epochs == sorted(epochs)
    assert len(store.classes()) == kept
    with running.http(120) as http:  # the cancelled one's images are still there, and the next increment works
        asked = http.post("/v1/increments", json={})
        assert [c["name"] for c in asked.json()["classes"]] == ["white"], asked.text
    check_done(running, asked.json()["id"], "white")
    check_done(running, begin(running, "grey"), "grey")
    assert [
        len(found["classes"]) for found in running.get("/v1/increments")["increments"] if found["state"] == "done"
    ] == [
        2,
        3,
        1,
        2,
        1,
        1,
    ]  # the base, then five in a row on one server
