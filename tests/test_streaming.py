"""Images that memory should not hold stay in a file: the same images, the same bits, within a limit on memory."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from parts import flip_one_bit
from parts_rollout import learn, prepared
from parts_training import TINY, digits, noise, tasks
from test_resume import everything, interrupted

from lifelist.benchmarks.streaming import Asked, Child, Kind, draw
from lifelist.deploy import examples, material
from lifelist.deploy.cli import main
from lifelist.exporter.errors import Corrupt, Failed
from lifelist.training import evaluate, increment, memory, network, pixels
from lifelist.training.data import colour_statistics, read
from lifelist.training.experiment import run_experiment
from lifelist.training.job import Task, read_task, write_task
from lifelist.training.loop import start
from lifelist.training.memory import free_memory
from lifelist.training.pixels import Collector, Pixels, batches
from lifelist.training.sources import encoded

MIB = 2**20


def collected(images: torch.Tensor, folder: Path | None = None, room: int = 0) -> Pixels:
    """The same images in a file, unless there is room for them."""
    collector = Collector(images.shape[1], folder, room)
    for image in images.numpy():
        collector.add(image)
    return collector.pixels()


def in_memory(found: Pixels) -> bool:
    """Whether the numbers are not in a mapped file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        start, end = (int(address, 16) for address in span.split("-"))
        if start <= found.base.data_ptr() < end:
            return inode == "0"
    raise AssertionError("nowhere")


# ------------------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize("room", [0, 2**30], ids=["in a file", "in memory"])
def test_pixels_are_picked_alike_wherever_they_are(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "PASS", 13 * 192)  # of 40 images, 13 at a time, the last comes alone
    plain = noise(40)
    found = collected(plain, room=room)
    assert in_memory(found) == bool(room)
    some = torch.tensor([7, 3, 3, 39, 0])
    mask = plain[:, 0, 0, 0] > 99
    picked = found.take(mask).take(some[:4] % 5).take(slice(1, 3))
    for ours, wanted in (
        (found[:], plain),
        (found[some], plain[some]),
        (found[mask], plain[mask]),
        (found.take(some)[:], plain[some]),
        (found.take(slice(-3, None))[torch.tensor([2, 0])], plain[[39, 37]]),
        (picked[:], plain[mask][some[:4] % 5][1:3]),
        (found.to(torch.device("cpu")).base, plain),
        (torch.cat(list(batches(found))), plain),
    ):
        assert torch.equal(ours, wanted)
    assert picked.base is found.base  # no pixel was copied
    assert (len(picked), picked.shape, picked.nbytes) == (2, (2, 8, 8, 3), 2 * 192)
    assert collected(plain[:0], room=room).shape == (0, 8, 8, 3)
    assert colour_statistics(found.take(some)) == colour_statistics(plain[some])


def test_images_go_to_a_file_once_they_are_too_many_and_leave_nothing_behind(tmp_path: Path) -> None:
    plain = noise(40)
    for room, held in ((40 * 192, True), (40 * 192 - 1, False)):
        found = collected(plain, tmp_path, room)
        assert in_memory(found) == held
        assert torch.equal(found[:], plain)
        assert list(tmp_path.iterdir()) == []  # the file has no name


def test_a_disk_that_does_not_take_them_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Failed, match=rf"192 bytes so far, are more than the 5 .*{tmp_path}/file does not take them"):
        collected(noise(1), tmp_path / "file", room=5)


def test_what_is_read_is_the_same_in_a_file(tmp_path: Path) -> None:
    streamed = read("digits", TINY, folder=tmp_path, room=50_000).images
    assert not in_memory(streamed.pixels)
    held = digits().images
    assert streamed.ids == held.ids
    assert torch.equal(streamed.labels, held.labels)
    assert torch.equal(streamed.pixels[:], held.pixels[:])


# ----------------------------------------------------------------------------------------------------------- the job


def streamed(task: Task) -> Task:
    return replace(task, images=replace(task.images, pixels=collected(task.images.pixels[:])))


@pytest.mark.parametrize("method", ["bic", "eeil", "ridge"])
def test_an_increment_of_streamed_images_has_the_bits_of_one_in_memory_resumed_too(tmp_path: Path, method: str) -> None:
    task = tasks()[1][0]
    task = replace(task, options=replace(task.options, method=method, epochs=3, flip=True))
    write_task(tmp_path / "plain", task)
    write_task(tmp_path / "streamed", streamed(task))
    names = ("pixels.npy", "images.safetensors", "job.json")
    assert all((tmp_path / "plain" / n).read_bytes() == (tmp_path / "streamed" / n).read_bytes() for n in names)
    assert not in_memory(read_task(tmp_path / "plain").images.pixels)
    if method != "ridge":  # which trains no epoch to stop after
        interrupted(tmp_path / "streamed", 2)
    increment.run(tmp_path / "streamed")
    direct = increment.learn(task)  # from pixels in memory
    assert everything(tmp_path / "streamed")["checkpoint.safetensors"] == direct.checkpoint
    assert json.loads((tmp_path / "streamed" / "result" / "result.json").read_text())["exemplars"] == {
        str(class_id): list(ids) for class_id, ids in direct.exemplars.items()
    }


def test_a_bit_that_fell_over_in_the_pixels_is_found_before_they_are_looked_at(tmp_path: Path) -> None:
    write_task(tmp_path, tasks()[0][0])
    flip_one_bit(tmp_path / "pixels.npy")
    with pytest.raises(Corrupt, match=r"pixels\.npy has sha256"):
        read_task(tmp_path)


def test_pixels_that_cannot_be_an_array_of_images_are_refused_without_unpickling(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(Corrupt, match="is not an array of images"):
        pixels.from_npy(tmp_path / "a.npy")


def test_half_a_file_of_a_writer_that_was_killed_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".pixels.npy.abc").write_bytes(b"half")
    write_task(tmp_path, tasks()[0][0])
    assert not list(tmp_path.glob(".*"))


def test_an_experiment_whose_images_stay_in_a_file_ends_as_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path) -> list[bytes]:
        options = replace(TINY, epochs=1)
        steps = run_experiment("digits", options, base_classes=8, classes_per_increment=2, folder=folder).steps
        return [step.checkpoint for step in steps]

    held = run(tmp_path / "held")
    monkeypatch.setattr(pixels, "free_memory", lambda: 0)
    assert run(tmp_path / "streamed") == held


def test_a_servers_increment_is_given_its_images_in_a_file_under_the_home_if_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = prepared(tmp_path)
    monkeypatch.setattr(pixels, "free_memory", lambda: 0)
    given: list[Task] = []
    gathered = material.gathered

    def seen(*arguments: object) -> object:
        found = gathered(*arguments)  # type: ignore[arg-type]
        given.append(found[0])
        return found

    monkeypatch.setattr(material, "gathered", seen)
    assert learn(workshop, "blue").state == "done"
    assert [in_memory(task.images.pixels) for task in given] == [False]


def test_the_gate_judges_by_all_images_however_few_are_decoded_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = []
    for lot in (256, 3):
        monkeypatch.setattr(examples, "LOT", lot)
        facts.append(learn(prepared(tmp_path / str(lot)), "blue").facts["gate"])
    assert facts[0] == facts[1]


def test_large_images_go_through_a_network_few_at_a_time_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network.build("resnet32", classes=3, image_size=8)
    run = start(TINY, mean=(0.5,) * 3, std=(0.5,) * 3)
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    monkeypatch.setattr(evaluate, "LARGEST", 5 * 8**2)
    found = evaluate.features(net, Pixels(noise(12)), run)
    assert sizes == [5, 5, 2]
    monkeypatch.undo()
    torch.testing.assert_close(found, evaluate.features(net, noise(12), run))


# -------------------------------------------------------------------------------------------------------- the memory


def a_machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in ({"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8000 * 1024),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "5000000\n",  # of the group around it
                "sys/fs/cgroup/a/memory.current": "3000000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 400000\n",  # which can be taken back
            },
            2_400_000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/\n4:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4000000\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1000000\n",
            },
            3_000_000,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.current": "2000\n",
            },
            0,
        ),
    ],
    ids=["the machine's", "a group's, version 2", "a group's, version 1", "none left"],
)
def test_free_memory_is_what_the_machine_and_its_groups_leave(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert free_memory(a_machine(tmp_path, files)) == free


@pytest.mark.parametrize(("kind", "field"), [(resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")])
def test_free_memory_is_no_more_than_a_limit_of_the_process_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, field: str
) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda k: (5_000_000 if k == kind else resource.RLIM_INFINITY, 0))
    assert free_memory(a_machine(tmp_path, {"proc/self/status": f"{field}:\t 1000 kB\n"})) == 5_000_000 - 1_024_000


@pytest.fixture(scope="module")
def own() -> int:
    """Bytes that a program with torch takes before it has read an image."""
    code = (
        "import pyarrow.parquet; from lifelist.training import data, evaluate, loop, memory; "
        "print(memory.private_memory())"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_of_a_parquet_file_a_small_part_is_held_at_a_time(tmp_path: Path) -> None:
    file, lot = tmp_path / "all.parquet", np.random.default_rng(0)
    table = pyarrow.table({"image": [lot.bytes(10_000) for _ in range(2000)], "label": [k % 3 for k in range(2000)]})
    pyarrow.parquet.write_table(table, file, row_group_size=200, compression="none", use_dictionary=False)
    del table
    before = pyarrow.total_allocated_bytes()
    held = [pyarrow.total_allocated_bytes() - before for _ in encoded(file)]
    assert len(held) == 2000
    assert max(held) < file.stat().st_size / 4


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_300_mb_of_images_train_within_150_mb_which_kill_a_loader_that_holds_them(
    own: int, tmp_path: Path, kind: Kind
) -> None:
    asked = Asked(decoded_bytes=300 * MIB, limit_bytes=own + 150 * MIB, image_size=64, kind=kind, repeats=1, threads=1)
    assert asked.images == 300 * MIB // (3 * 64**2)
    draw(tmp_path / "images", asked)
    with Child("held", tmp_path / "images", asked) as held, Child("streamed", tmp_path / "images", asked) as streamed:
        assert "MemoryError" in str(held.error())
        assert streamed.answer()["images_per_second"] > 0
        assert streamed.asked_for("epoch")["images_per_second"] > 0
        if kind == "folder":  # once read, images are the same from either
            assert streamed.asked_for("features")["images_per_second"] > 0
        assert streamed.finish()["private_bytes"] < asked.limit_bytes


def test_a_limit_that_all_images_fit_in_is_said_to_show_nothing(tmp_path: Path, own: int) -> None:
    asked = Asked(decoded_bytes=MIB, limit_bytes=own + 300 * MIB, image_size=64, repeats=1, threads=1)
    draw(tmp_path / "images", asked)
    with Child("held", tmp_path / "images", asked) as held:
        assert held.error() is None


def test_the_bench_ends_with_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    line = "bench streaming --decoded-gb 0.01 --limit-gb 2 --image-size 32 --repeats 1"
    assert main(line.split()) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    promised = ("ratio", "ratio_from_disk", "ratio_features", "images_per_second", "peak_private_bytes")
    assert all(found[name] > 0 for name in promised)
    assert not found["held_all_dies"]
    assert "lives, so the limit is too high to show anything" in printed.err
