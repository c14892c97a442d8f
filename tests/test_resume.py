"""A run that is killed and started again ends with the same bits as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts_training import TINY, tasks
from torch.nn import functional

from lifelist.exporter.errors import Failed
from lifelist.training import increment
from lifelist.training.data import Images
from lifelist.training.job import Task, read_result, write_task
from lifelist.training.loop import Event
from lifelist.training.pixels import Pixels

CHILD = """
import json, sys, torch
from pathlib import Path
from lifelist.training.increment import run
torch.set_num_threads(1)
run(Path(sys.argv[1]), lambda event: print(json.dumps(event), flush=True))
"""


def an_increment(method: str = "eeil", **changes: object) -> Task:
    """The second increment of a chain, with every source of chance switched on."""
    options = replace(TINY, method=method, epochs=4, flip=True, colour=True, gradient_noise=True, **changes)  # type: ignore[arg-type]
    return replace(tasks()[1][0], options=options)


def killed(folder: Path, phase: str, epoch: int, delay_s: float) -> None:
    """Run the increment in a process of its own, and SIGKILL it that long after an epoch."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        event = json.loads(line)
        if (event.get("phase"), event.get("epoch")) == (phase, epoch):
            time.sleep(delay_s)
            break
    os.kill(child.pid, signal.SIGKILL)
    child.stdout.read()
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL, "it ended before it could be killed"


def everything(folder: Path) -> dict[str, object]:
    """What must not depend on a kill: bytes of weights and means, and the result but for its time."""
    result = json.loads((folder / "result" / "result.json").read_text())
    del result["seconds"]
    names = ("checkpoint.safetensors", "means.safetensors")
    return {"result": result} | {name: (folder / "result" / name).read_bytes() for name in names}


def test_a_run_that_was_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    task = an_increment()
    for name in ("killed", "whole"):
        write_task(tmp_path / name, task)
    for phase, epoch, delay_s in (("main", 1, 0.02), ("main", 4, 0.0), ("balanced", 1, 0.01)):
        killed(tmp_path / "killed", phase, epoch, delay_s)
        assert not (tmp_path / "killed" / "result" / "result.json").exists()
    torch.set_num_threads(1)
    told: list[Event] = []
    increment.run(tmp_path / "killed", told.append)
    assert ("main", 1) not in [(e.get("phase"), e.get("epoch")) for e in told]  # it went on, and did not start anew
    increment.run(tmp_path / "whole")
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "killed" / "events.jsonl").read_text().splitlines()]
    epochs = [(e["phase"], e["epoch"]) for e in lines if e["kind"] == "epoch"]
    assert epochs == [("main", k) for k in range(1, 5)] + [("balanced", 1), ("balanced", 2)]  # each once, in order


class Stop(Exception):
    """Ends a run in the middle, where a SIGKILL would cost an interpreter's start."""


def interrupted(folder: Path, after: int, error: type[BaseException] = Stop) -> None:
    """Run until that many epochs are told."""
    seen = 0

    def tell(event: Event) -> None:
        nonlocal seen
        seen += event["kind"] == "epoch"
        if seen == after:
            raise error

    with pytest.raises(error):
        increment.run(folder, tell)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("bic", {}),
        ("icarl", {"network": "resnet32-icarl"}),
        ("wa", {"network": "resnet32"}),
        ("finetune", {"schedule": "paper"}),
    ],
)
def test_interrupted_after_any_epoch_every_method_ends_with_the_same_bits(
    tmp_path: Path, method: str, changes: dict[str, object]
) -> None:
    task = an_increment(method, **changes)
    write_task(tmp_path / "whole", task)
    increment.run(tmp_path / "whole")
    for after in (1, 3):
        write_task(tmp_path / str(after), task)
        interrupted(tmp_path / str(after), after)
        increment.run(tmp_path / str(after))
        assert everything(tmp_path / str(after)) == everything(tmp_path / "whole")


def test_dropout_resumes_too(tmp_path: Path) -> None:
    base = tasks()[0][0]
    options = replace(TINY, network="mobilenet_v3_small", image_size=8, epochs=3)
    for name in ("whole", "stopped"):
        write_task(tmp_path / name, replace(base, options=options))
    torch.manual_seed(1)
    increment.run(tmp_path / "whole")
    torch.manual_seed(2)  # what else this process drew does not matter
    interrupted(tmp_path / "stopped", 1)
    torch.rand(5)
    increment.run(tmp_path / "stopped")
    assert everything(tmp_path / "stopped") == everything(tmp_path / "whole")


def test_training_leaves_the_random_numbers_of_its_caller_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    write_task(tmp_path, tasks()[0][0])
    increment.run(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    for name in ("whole", "stopped"):
        write_task(tmp_path / name, an_increment("bic"))
    increment.run(tmp_path / "whole")
    interrupted(tmp_path / "stopped", 2, KeyboardInterrupt)
    increment.run(tmp_path / "stopped")
    assert everything(tmp_path / "stopped") == everything(tmp_path / "whole")


def test_a_finished_run_does_nothing_when_it_is_run_again(tmp_path: Path) -> None:
    write_task(tmp_path, tasks()[0][0])
    increment.run(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    told: list[Event] = []
    increment.run(tmp_path, told.append)
    assert told == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before
    assert read_result(tmp_path).class_ids == (0, 1, 2)


def test_an_epoch_of_other_options_is_refused_and_says_what_to_remove(tmp_path: Path) -> None:
    write_task(tmp_path, an_increment("bic"))
    interrupted(tmp_path, 1)
    write_task(tmp_path, an_increment("bic", seed=1))
    with pytest.raises(Failed, match=r"another increment, or of other options; remove .*epochs to start anew"):
        increment.run(tmp_path)


def test_an_epoch_that_was_saved_and_not_told_is_told_by_the_run_that_resumes(tmp_path: Path) -> None:
    write_task(tmp_path, an_increment("bic"))
    interrupted(tmp_path, 2)
    told = tmp_path / "events.jsonl"
    told.write_text(told.read_text().splitlines()[0] + "\n")  # as if killed between the two
    increment.run(tmp_path)
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3, 4]


def test_what_a_killed_writer_left_behind_is_cleared_and_half_a_line_is_cut_off(tmp_path: Path) -> None:
    write_task(tmp_path, an_increment("bic"))
    interrupted(tmp_path, 1)
    half = tmp_path / "epochs" / ".main.safetensors.abc"
    half.write_bytes(b"half")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "epo')
    increment.run(tmp_path)
    assert not half.exists()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines if "epoch" in json.loads(line)] == [1, 2, 3, 4]


def test_a_batch_shared_between_cores_resumes_with_the_same_bits_too(tmp_path: Path) -> None:
    task = replace(tasks()[0][0], options=replace(TINY, batch_size=64))
    larger = functional.interpolate(task.images.pixels[:].permute(0, 3, 1, 2), size=24).permute(0, 2, 3, 1)
    images = Images(Pixels(larger), task.images.labels, task.images.ids)
    task = replace(task, images=images, options=replace(task.options, image_size=24))
    for name in ("whole", "stopped"):
        write_task(tmp_path / name, task)
    torch.set_num_threads(2)
    try:
        increment.run(tmp_path / "whole")
        interrupted(tmp_path / "stopped", 1)
        increment.run(tmp_path / "stopped")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert everything(tmp_path / "stopped") == everything(tmp_path / "whole")
