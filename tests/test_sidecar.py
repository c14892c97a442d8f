"""The trainer under a real Ray: a process of its own, below serving's priority, that a SIGKILL does not stop."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from parts_training import TINY, tasks

from lifelist.training import increment
from lifelist.training.job import write_task

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
import ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
from lifelist.training import sidecar
folder = Path(sys.argv[1])
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
print(json.dumps({"first": first, "second": second, "niceness": niceness, "policies": policies}))
ray.kill(sidecar.trainer(), no_restart=True)
ray.shutdown()
"""


def test_a_killed_trainer_comes_back_by_itself_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    task = replace(tasks()[0][0], options=replace(TINY, epochs=60))
    for name in ("beside", "here"):
        write_task(tmp_path / name, task)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "beside")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["first"] != told["second"]
    assert told["niceness"]["trainer"] > told["niceness"]["others"]
    assert told["policies"] == {"trainer": os.SCHED_IDLE, "others": os.SCHED_OTHER}
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "beside" / "events.jsonl").read_text().splitlines()]
    assert len(epochs) < 2 * 60  # it went on, and did not start anew
    threads = json.loads((tmp_path / "beside" / "result" / "result.json").read_text())["software"]["device"]
    if threads == f"cpu, {torch.get_num_threads()} threads":  # bits may differ where the work is cut otherwise
        increment.run(tmp_path / "here")
        weights = [(tmp_path / name / "result" / "checkpoint.safetensors").read_bytes() for name in ("beside", "here")]
        assert weights[0] == weights[1]


ENDED = """
import json, sys
from pathlib import Path
import ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
from lifelist.deploy import worker
from lifelist.training import sidecar
def there():
    return any(actor["name"] == sidecar.NAME for actor in ray.util.list_named_actors(all_namespaces=True))
told = []
worker.end_trainer()  # there is none, and that is no error
ray.get(sidecar.trainer().process_id.remote())
told.append(there())
worker.end_trainer()
told.append(there())
try:
    worker.train_beside(Path(sys.argv[1]), lambda: None)
except Exception as error:
    told += [type(error).__name__, there()]
print(json.dumps(told))
ray.shutdown()
"""


def test_a_trainer_is_ended_by_its_name_and_after_a_training_that_failed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDED, str(tmp_path / "nothing")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    first, second, _, last = json.loads(ran.stdout.splitlines()[-1])
    assert (first, second, last) == (True, False, False)
