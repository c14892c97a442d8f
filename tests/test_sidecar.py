"""The trainer under a real Ray: a process of its own, below serving's priority, that a SIGKILL does not stop."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parts_training import TINY, bic

from lifelist.training import increment
from lifelist.training.job import Task, write_task

STORY = """
import json, os, signal, sys, time
from pathlib import Path
import ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
from lifelist.deploy import worker
from lifelist.training import sidecar
folder = Path(sys.argv[1])
def there():
    return any(actor["name"] == sidecar.NAME for actor in ray.util.list_named_actors(all_namespaces=True))

worker.end_trainer()  # there is none, and that is no error
trainer = sidecar.trainer()
first = ray.get(trainer.process_id.remote())
running = trainer.train.remote(str(folder))
events = folder / "events.jsonl"
while not (events.exists() and '"epoch": 2' in events.read_text()):
    time.sleep(0.01)
os.kill(first, signal.SIGKILL)
ray.get(running, timeout=200)
second = ray.get(sidecar.trainer().process_id.remote())
niceness = {
    "trainer": os.getpriority(os.PRIO_PROCESS, second),
    "others": ray.get(ray.remote(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote()),
}
policies = {
    "trainer": os.sched_getscheduler(second),
    "others": ray.get(ray.remote(lambda: os.sched_getscheduler(0)).remote()),
}

lives = [there()]
worker.end_trainer()
lives.append(there())
try:
    worker.train_beside(folder / "nothing", lambda: None)
except Exception as error:
    lives += [type(error).__name__, there()]
print(json.dumps({"first": first, "second": second, "niceness": niceness, "policies": policies, "lives": lives}))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def task() -> Task:
    return replace(bic()[0][0], options=replace(TINY, epochs=60))


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Path:
    """The folder of an increment that a trainer beside takes up; it is killed in the middle of that."""
    folder = tmp_path_factory.mktemp("sidecar") / "beside"
    write_task(folder, task)
    return folder


@pytest.fixture(scope="module")
def told(beside: Path) -> dict[str, Any]:
    """Seen: a trainer that is killed while it trains, then ended by its name; then one whose training fails."""
    command = [sys.executable, "-c", STORY, str(beside)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_a_killed_trainer_comes_back_by_itself_and_ends_with_the_same_bits(
    told: dict[str, Any], task: Task, beside: Path, tmp_path: Path
) -> None:
    assert told["first"] != told["second"]
    assert told["niceness"]["trainer"] > told["niceness"]["others"]
    assert told["policies"] == {"trainer": os.SCHED_IDLE, "others": os.SCHED_OTHER}
    epochs = [json.loads(line)["epoch"] for line in (beside / "events.jsonl").read_text().splitlines()]
    assert len(epochs) < 2 * 60  # it went on, and did not start anew
    threads = json.loads((beside / "result" / "result.json").read_text())["software"]["device"]
    if threads == f"cpu, {torch.get_num_threads()} threads":  # bits may differ where the work is cut otherwise
        write_task(tmp_path, task)
        increment.run(tmp_path)
        weights = [(folder / "result" / "checkpoint.safetensors").read_bytes() for folder in (beside, tmp_path)]
        assert weights[0] == weights[1]


def test_a_trainer_is_ended_by_its_name_and_after_a_training_that_failed(told: dict[str, Any]) -> None:
    first, second, _, last = told["lives"]
    assert (first, second, last) == (True, False, False)


def test_the_trainer_rests_after_each_layer_and_on_the_way_back_and_computes_the_same() -> None:
    told = json.loads(subprocess.check_output([sys.executable, "-c", RESTS], text=True))
    assert told["rests"] >= 2 * told["layers"] > 2 * told["rests before"]
    assert told["same"]


RESTS = """
import json, resource, torch
from torch import nn
from lifelist.training import sidecar

torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 2))
images = torch.randn(8, 3, 8, 8)

def rests(): return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

def passed():
    network.zero_grad()
    before = rests()
    network(images).sum().backward()
    return rests() - before, [parameter.grad.clone() for parameter in network.parameters()]

torch.set_num_threads(1)
passed()
before, first = passed()
sidecar._step_back(1)
after, second = passed()
same = all(torch.equal(one, other) for one, other in zip(first, second))
print(json.dumps({"layers": len(network), "rests before": before, "rests": after, "same": same}))
"""
