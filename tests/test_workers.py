"""Several workers that train one increment: over torch.distributed alone, then over a real Ray Train."""

import functools
import json
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

from lifelist.training import increment
from lifelist.training.job import Task, write_task
from lifelist.training.options import TrainingOptions

WORKER = """
import json, sys, torch
from datetime import timedelta
from pathlib import Path
from torch import distributed
from lifelist.training import increment
torch.set_num_threads(1)
def say(event):
    print(json.dumps(event), flush=True)
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
    assert silence == [{"kind": "end"}]  # only the lead tells


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
    victims, heirs = Pair(), Pair()
    try:
        *_, error, _ = victims.run(tmp_path / "killed", kill_after=1)[0]
        assert (error["kind"], error["is"]) == ("error", "Unavailable")
        assert error["says"].startswith("another worker of this increment is gone")
        assert not (tmp_path / "killed" / "result" / "result.json").exists()
        heirs.run(tmp_path / "killed")
    finally:
        victims.end()
        heirs.end()
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    told = [json.loads(line) for line in (tmp_path / "killed" / "events.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in told if event["kind"] == "epoch"] == [1, 2]
