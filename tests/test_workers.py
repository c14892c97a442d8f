"""Several workers that train one increment: over torch.distributed alone, then over a real Ray Train."""

import functools
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parts_server import free_port
from parts_training import TINY, tasks
from test_resume import everything

from lifelist.serving.addresses import is_loopback
from lifelist.training import increment
from lifelist.training.job import Task, write_task
from lifelist.training.options import TrainingOptions
from lifelist.training.sidecar import NICENESS

WORKER = """
import json, sys, torch
from datetime import timedelta
from pathlib import Path
from torch import distributed
from lifelist.training import checkpoint, increment
torch.set_num_threads(1)
def say(event):
    print(json.dumps(event), flush=True)
whole = checkpoint.write_atomically
def write(path, data):
    say({"kind": "write", "path": str(path)})
    whole(path, data)
checkpoint.write_atomically = write
def draw(module, given):
    if type(module) is torch.nn.Dropout and module.training:
        say({"kind": "draw", "seed": torch.initial_seed()})
torch.nn.modules.module.register_module_forward_pre_hook(draw)
for line in sys.stdin:
    job = json.loads(line)
    address = f"tcp://127.0.0.1:{job['port']}"
    distributed.init_process_group(
        "gloo", init_method=address, rank=job["rank"], world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        increment.run(Path(job["folder"]), say)
    except Exception as error:
        say({"kind": "error", "is": type(error).__name__, "says": str(error)})
    distributed.destroy_process_group()
    say({"kind": "end"})
"""

# 140 images in batches of 70, each large enough for two shares: the last of an epoch, too.
SHARED = replace(TINY, image_size=16, batch_size=70, flip=True)


@functools.cache
def chain() -> list[Task]:
    """A base of three classes, and an increment of two."""
    return [task for task, _ in tasks(SHARED, groups=((0, 1, 2), (3, 4)))]


class Pair:
    """Two workers of one thread each, which take one increment after the other."""

    def __init__(self) -> None:
        self.both = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            for _ in range(2)
        ]

    def run(self, folder: Path, kill_after: int = 0) -> list[list[dict[str, Any]]]:
        """Run the increment; what each of them says. Kill the second as soon as the lead tells of that epoch."""
        port = free_port()
        for rank, worker in enumerate(self.both):
            assert worker.stdin is not None
            worker.stdin.write(json.dumps({"rank": rank, "port": port, "folder": str(folder)}) + "\n")
        said: list[list[dict[str, Any]]] = [[], []]
        for worker, events in zip(self.both, said, strict=True):
            assert worker.stdout is not None
            for line in worker.stdout:
                events.append(json.loads(line))
                if events[-1]["kind"] == "end":
                    break
                if events[-1].get("epoch") == kill_after:
                    self.both[1].kill()
        return said

    def end(self) -> None:
        for worker in self.both:
            worker.kill()
            worker.communicate()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.end()


def alone(folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        increment.run(folder)
    finally:
        torch.set_num_threads(1)


def outcome(folder: Path) -> dict[str, Any]:
    """Everything but what says by whom it was computed."""
    found: dict[str, Any] = everything(folder)
    found["result"]["software"].pop("workers", None)
    del found["result"]["software"]["device"]
    return found


@pytest.mark.parametrize(
    ("options", "cores"),
    [
        pytest.param(SHARED, 2, id="bic"),
        pytest.param(replace(SHARED, method="eeil", gradient_noise=True, epochs=1), 2, id="eeil"),
        pytest.param(replace(SHARED, batch_size=32, epochs=1), 1, id="batches too small to share"),
    ],
)
def test_two_workers_end_with_the_bits_of_one_that_has_as_many_cores(
    tmp_path: Path, pair: Pair, options: TrainingOptions, cores: int
) -> None:
    for name in ("together", "alone"):
        write_task(tmp_path / name, replace(chain()[1], options=options))
    said, silence = pair.run(tmp_path / "together")
    alone(tmp_path / "alone", cores)
    assert outcome(tmp_path / "together") == outcome(tmp_path / "alone")
    result = json.loads((tmp_path / "together" / "result" / "result.json").read_text())
    assert result["software"]["workers"] == "2"
    assert [e["epoch"] for e in said if e.get("phase") == "main"] == list(range(1, options.epochs + 1))
    assert silence == [{"kind": "end"}]  # only the lead writes and tells


def test_a_rest_too_small_to_share_changes_the_result_by_rounding_only(tmp_path: Path, pair: Pair) -> None:
    """The last batch of 12 is computed by one thread there and by two here: other kernels, other last digits."""
    options = replace(SHARED, batch_size=64, epochs=1)
    for name in ("together", "alone"):
        write_task(tmp_path / name, replace(chain()[1], options=options))
    pair.run(tmp_path / "together")
    alone(tmp_path / "alone", 2)
    losses = [
        json.loads((tmp_path / name / "events.jsonl").read_text().splitlines()[0])["loss"]
        for name in ("together", "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_workers_draw_dropout_each_for_itself_and_resume_with_the_same_bits_after_a_loss(
    tmp_path: Path, pair: Pair
) -> None:
    task = replace(chain()[0], options=replace(SHARED, network="mobilenet_v3_small"))
    for name in ("whole", "killed"):
        write_task(tmp_path / name, task)
    said = pair.run(tmp_path / "whole")
    seeds = [{event["seed"] for event in one if event["kind"] == "draw"} for one in said]
    assert len(seeds[0]) == len(seeds[1]) == 2  # one an epoch
    assert not seeds[0] & seeds[1]
    victims = Pair()
    try:
        *_, error, _ = victims.run(tmp_path / "killed", kill_after=1)[0]
    finally:
        victims.end()
    assert (error["kind"], error["is"]) == ("error", "Unavailable")
    assert error["says"].startswith("another worker of this increment is gone")
    assert not (tmp_path / "killed" / "result" / "result.json").exists()
    pair.run(tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    told = [json.loads(line) for line in (tmp_path / "killed" / "events.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in told if event["kind"] == "epoch"] == [1, 2]


def test_a_server_trains_with_as_many_workers_as_are_set(tmp_path: Path) -> None:
    code = (  # a process of its own, since it steps back for good
        "import pathlib, sys; from lifelist.deploy import worker; from lifelist.deploy.settings import Settings; "
        "made = worker.Worker(Settings(home=pathlib.Path(sys.argv[1]), training_workers=2)); "
        "print(made.workshop.train.func.__name__, made.workshop.train.keywords)"
    )
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert told.stdout == "train_beside {'workers': 2}\n"


STORY = """
import json, os, signal, sys, time
from pathlib import Path
from lifelist.deploy import ground
sys.path.append(sys.argv[3])
from parts_server import listeners
os.environ |= {ground.MARK: sys.argv[1], "RAY_worker_niceness": "0", "HOME": sys.argv[2]}
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as the server sets it: Ray's own sockets are on loopback
import ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
from lifelist.deploy import worker
from lifelist.exporter.errors import Cancelled
from lifelist.training import sidecar

def processes(*titles):
    found = {number: Path(f"/proc/{number}/cmdline") for number in ground.processes(sys.argv[1])}
    return [n for n, line in found.items() if line.exists() and line.read_bytes().startswith(titles)]

def reached(folder, epoch):
    events = folder / "events.jsonl"
    return events.exists() and f'"epoch": {epoch},' in events.read_text()

@ray.remote(num_cpus=2)
class Replica:  # holds every CPU, as serving's do
    def here(self):
        return True

replica = Replica.remote()
ray.get(replica.here.remote())
told = {}

killed, cancelled, broken = (Path(sys.argv[2]) / name for name in ("killed", "cancelled", "broken"))
def kill():
    if "workers" not in told and reached(killed, 2):
        told["workers"] = workers = processes(b"ray::RayTrainWorker")
        told["listening"] = sorted(listeners(workers))
        told["steps back"] = []
        for number in workers:
            threads = [int(thread.name) for thread in Path(f"/proc/{number}/task").iterdir()]
            nicest = max(os.getpriority(os.PRIO_PROCESS, thread) for thread in threads)
            told["steps back"].append(nicest - os.getpriority(os.PRIO_PROCESS, number))
        told["passive"] = [
            b"OMP_WAIT_POLICY=passive" in Path(f"/proc/{n}/environ").read_bytes().split(b"\\0") for n in workers
        ]
        os.kill(workers[-1], signal.SIGKILL)
    elif "orphans" not in told and reached(killed, 7):
        told["orphans"] = processes(b"ray::RayTrainWorker")
        (trainer,) = processes(b"ray::Trainer")
        os.kill(trainer, signal.SIGKILL)
worker.train_beside(killed, kill, workers=2)
from ray.util import placement_group_table
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    told["heirs"] = processes(b"ray::RayTrainWorker")
    told["places"] = [row["state"] for row in placement_group_table().values() if row["state"] != "REMOVED"]
    if not told["heirs"] + told["places"]:
        break
    time.sleep(0.1)

def cancel():
    if reached(cancelled, 1):
        raise Cancelled("by a test")
try:
    worker.train_beside(cancelled, cancel, workers=2)
except Cancelled:
    deadline = time.monotonic() + 30
    titles = (b"ray::RayTrain", b"ray::Train", b"ray::Placement", b"ray::Sync")
    while (left := processes(*titles)) and time.monotonic() < deadline:
        time.sleep(0.1)
    told["left"] = [Path(f"/proc/{n}/cmdline").read_text() for n in left]

try:
    worker.train_beside(broken, lambda: None, workers=2)
except Exception as error:
    told["error"] = [type(error).__name__, str(error)]
print(json.dumps(told))
ray.shutdown()
"""


EPOCHS = 14


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three increments by two workers of a real Ray, in a cluster whose CPUs are taken: of the first a worker is killed
    and later the trainer, the second is cancelled, the third cannot be trained. What was seen, and in which folder."""
    home = tmp_path_factory.mktemp("ray")
    for name in ("killed", "cancelled", "broken"):
        epochs = 60 if name == "cancelled" else EPOCHS  # longer than it takes until somebody looks
        write_task(home / name, replace(chain()[1], options=replace(SHARED, epochs=epochs)))
    (home / "broken" / "images.json").write_bytes(b"[]")
    command = [sys.executable, "-c", STORY, secrets.token_hex(8), str(home), str(Path(__file__).parent)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found | {"home": home}


def test_ray_train_ends_with_the_bits_of_one_worker_though_a_worker_and_the_trainer_are_killed_in_mid_epoch(
    story: dict[str, Any], tmp_path: Path
) -> None:
    killed = story["home"] / "killed"
    write_task(tmp_path, replace(chain()[1], options=replace(SHARED, epochs=EPOCHS)))
    alone(tmp_path, 2)
    assert outcome(killed) == outcome(tmp_path)
    assert json.loads((killed / "result" / "result.json").read_text())["software"]["workers"] == "2"
    told = [json.loads(line) for line in (killed / "events.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in told if e["kind"] == "epoch"] == list(range(1, EPOCHS + 1))  # none anew once told


def test_workers_of_ray_train_step_back_behind_serving_and_leave_nothing_behind(story: dict[str, Any]) -> None:
    assert len(story["workers"]) == 2
    assert story["steps back"] == [NICENESS, NICENESS]
    assert story["passive"] == [True, True]
    assert not (story["home"] / "killed" / "ray").exists()
    assert not (story["home"] / "ray_results").exists()


def test_workers_on_one_machine_listen_on_loopback_alone(story: dict[str, Any]) -> None:
    assert len(story["listening"]) >= 4  # each for Ray, and for the other
    assert [place for place in story["listening"] if not is_loopback(place[0])] == []


def test_a_killed_trainer_leaves_no_worker_and_no_place_that_others_wait_for(story: dict[str, Any]) -> None:
    assert len(story["orphans"]) == 2
    assert story["heirs"] == []
    assert story["places"] == []


def test_a_cancelled_increment_ends_its_workers_too(story: dict[str, Any]) -> None:
    assert story["left"] == []
    assert not (story["home"] / "cancelled" / "result" / "result.json").exists()


def test_what_training_raises_in_a_worker_arrives_as_itself(story: dict[str, Any]) -> None:
    kind, message = story["error"]
    assert kind == "Corrupt"
    assert "images.json has sha256" in message
