"""The story of one increment: the folder's contract, increments of every shape, and the quality of what is learnt."""

import dataclasses
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from parts_training import TINY, bic, few, tasks

from lifelist.exporter.errors import BadInput, Corrupt
from lifelist.training import increment
from lifelist.training.data import TRAINING, Images, colour_statistics
from lifelist.training.increment import learn
from lifelist.training.job import Class, Task, read_result, read_task, write_result, write_task
from lifelist.training.loop import Event, Phase
from lifelist.training.methods import METHODS

# ------------------------------------------------------------------------------------------------------ the folder


def test_a_folder_holds_what_the_contract_says(tmp_path: Path) -> None:
    task, _ = bic()[2]
    write_task(tmp_path, task)
    told: list[Event] = []
    increment.run(tmp_path, told.append)

    job = json.loads((tmp_path / "job.json").read_text())
    assert job.keys() == {
        "options",
        "old",
        "new",
        "refreshed",
        "heads",
        "teacher_sha256",
        "statistics_sha256",
        "pretrained",
        "bias",
        "mean",
        "std",
        "sha256",
    }
    assert job["old"][4] == {"id": 4, "name": "four"}
    assert job["heads"] == [3, 2]
    assert job["teacher_sha256"] == hashlib.sha256((tmp_path / "teacher.safetensors").read_bytes()).hexdigest()

    means = safetensors.torch.load_file(tmp_path / "result" / "means.safetensors")
    assert means["ids"].tolist() == list(range(7))
    torch.testing.assert_close(means["means"].norm(dim=1), torch.ones(7))

    result = json.loads((tmp_path / "result" / "result.json").read_text())
    assert result["heads"] == [3, 2, 2]
    assert result["bias"].keys() == {"alpha", "beta", "first_row", "last_row"}
    assert set(result["exemplars"]) == set(result["holdout"]) == {str(k) for k in range(7)}
    assert result["evaluation"].keys() == {"linear", "linear_uncorrected", "nearest_mean"}
    assert result["evaluation"]["linear"].keys() == {"all", "old", "new", "per_class", "confusion"}
    assert result["answers_by"] == "linear"
    assert result["embedding_dim"] == 64
    assert torch.__version__.startswith(result["software"]["torch"])
    assert (result["mean"], result["std"]) == (job["mean"], job["std"])

    epochs = [event for event in told if event["kind"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2]
    assert epochs[0].keys() == {
        "kind",
        "phase",
        "epoch",
        "epochs",
        "loss",
        "seconds",
        "images_per_second",
        "seconds_left",
    }
    assert epochs[0]["loss"].keys() == {"classify_new", "distil_new", "classify_old", "distil_old"}
    assert epochs[-1]["seconds_left"] == 0
    assert [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()] == told


def test_a_task_and_a_result_come_back_from_the_folder_as_they_were(tmp_path: Path) -> None:
    task, learned = bic()[2]
    write_task(tmp_path, task)
    found = read_task(tmp_path)
    assert found.fingerprint == task.fingerprint
    assert torch.equal(found.images.pixels[:], task.images.pixels[:])
    increment.run(tmp_path)
    result = read_result(tmp_path)
    assert torch.equal(result.means, learned.means)
    same = [f.name for f in dataclasses.fields(learned) if f.name not in ("means", "seconds")]
    assert {name: getattr(result, name) for name in same} == {name: getattr(learned, name) for name in same}


def test_the_result_of_another_task_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    task, learned = bic()[1]
    write_task(tmp_path, task)
    increment.run(tmp_path)
    told: list[Event] = []
    increment.run(tmp_path, told.append)
    assert told == []  # finished
    write_task(tmp_path, replace(task, options=replace(task.options, seed=5)))
    increment.run(tmp_path, told.append)
    assert [event["epoch"] for event in told if event["kind"] == "epoch"] == [1, 2]
    assert read_result(tmp_path).checkpoint != learned.checkpoint


def test_e1_the_main_phase_distils_every_head_of_the_teacher_on_replayed_and_new_images() -> None:
    for k, sizes in ((1, [3]), (2, [3, 2])):
        task, _ = bic()[k]
        task = replace(task, options=replace(task.options, method="eeil"))
        seen: list[Phase] = []

        def record(student: object, phase: Phase, run: object, seen: list[Phase] = seen) -> None:
            seen.append(phase)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(increment, "train", record)
            patch.setattr("lifelist.training.rebalance.train", record)
            learn(task)
        main, balanced = seen
        n = sum(sizes)
        assert [h.stop - h.start for h in main.heads] == sizes
        assert main.heads[-1].stop == main.n == n
        assert main.teacher is not None
        assert main.teacher.network.classes == n
        assert main.teacher.bias == task.bias
        replayed = torch.bincount(main.rows)
        assert len(replayed) == n + 2
        assert replayed[n:].tolist() == [int(task.of(c.id, TRAINING).sum()) for c in task.new]
        assert bool((replayed[:n] > 0).all())
        assert balanced.heads[-1].stop == balanced.n == n + 2


@pytest.mark.parametrize("name", ["images.safetensors", "images.json", "teacher.safetensors"])
def test_a_file_that_is_not_what_was_written_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    write_task(tmp_path, bic()[1][0])
    damaged = bytearray((tmp_path / name).read_bytes())
    damaged[-1] ^= 1
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(Corrupt, match=rf"{name} has sha256 .* job.json pinned"):
        increment.run(tmp_path)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "means.safetensors"])
def test_a_result_that_is_not_what_was_written_is_refused(tmp_path: Path, name: str) -> None:
    task, learned = bic()[1]
    write_result(tmp_path, learned, task.fingerprint)
    (tmp_path / "result" / name).write_bytes(b"another")
    with pytest.raises(Corrupt, match=rf"{name} has sha256 .* result.json pinned"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("written", "said"),
    [("{", "not JSON"), ("[]", "a JSON object, not list"), ("{}", "which files"), ('{"sha256": {}}', "not describe")],
)
def test_broken_json_is_named(tmp_path: Path, written: str, said: str) -> None:
    for file in ("job.json", "result/result.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(written)
    with pytest.raises(Corrupt, match=f"job.json .*{said}"):
        read_task(tmp_path)
    with pytest.raises(Corrupt, match=f"result.json .*{said}"):
        read_result(tmp_path)


def test_a_folder_that_lacks_a_file_says_which(tmp_path: Path) -> None:
    write_task(tmp_path, bic()[1][0])
    (tmp_path / "images.json").unlink()
    with pytest.raises(BadInput, match=r"not a whole increment: .*images.json does not exist"):
        increment.run(tmp_path)
    with pytest.raises(BadInput, match="no result yet"):
        read_result(tmp_path)


def test_mean_and_spread_are_those_of_the_bases_training_images_and_stay() -> None:
    (base, first), (_, second), (_, third) = bic()
    training = base.images.pixels[base.roles == 0]
    assert (first.mean, first.std) == colour_statistics(training)
    assert (second.mean, third.std) == (first.mean, first.std)


# ------------------------------------------------------------------------------------------------- what is refused


def test_i6_a_class_that_is_known_cannot_come_again_as_a_new_one() -> None:
    task, _ = bic()[1]
    with pytest.raises(BadInput, match=r"class id stands twice.*\(0, 1, 2, 2\)"):
        replace(task, new=(Class(2, "two"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, new=()), "at least one new class"),
        (lambda t: replace(t, teacher=None), "3 old classes need a teacher.*got no teacher"),
        (lambda t: replace(t, heads=(2,)), r"heads that sum to as many.*\(2,\)"),
        (lambda t: replace(t, new=(*t.new, Class(9, "nine"))), r"no training images of 9 \(nine\); add images"),
        (lambda t: replace(t, new=t.new[:1]), r"images of classes \[4\].*names \(0, 1, 2, 3\)"),
        (lambda t: replace(t, options=replace(t.options, image_size=16)), r"uint8 N×16×16×3.*not torch.uint8"),
        (lambda t: replace(t, roles=t.roles[1:]), "differ in number"),
        (lambda t: replace(t, roles=t.roles + 7), r"roles are 0 \(training\).*got \[7"),
        (
            lambda t: replace(t, images=Images(t.images.pixels, t.images.labels, t.images.ids[:1] * len(t.images))),
            "plays one role",
        ),
    ],
)
def test_an_increment_that_does_not_fit_together_says_why(change: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        change(bic()[1][0])  # type: ignore[operator]


# ---------------------------------------------------------------------------------------- increments of any shape


@pytest.mark.parametrize("method", METHODS)
def test_b20_i7_every_method_takes_uneven_increments_and_one_class_and_little_memory(method: str) -> None:
    options = replace(TINY, method=method, epochs=1, memory_total=40, batch_size=8)
    found = tasks(options, groups=((0, 1, 2), (3,), (4, 5, 6, 7, 8, 9)), per_class=15)
    for task, learned in found:
        assert learned.class_ids == task.class_ids
        assert learned.means.shape == (len(task.class_ids), 64)
        assert learned.means.isfinite().all()
        kept = sum(len(ids) for ids in (*learned.exemplars.values(), *learned.holdout.values()))
        assert method == "joint" or kept <= 40
    assert found[-1][1].heads == (3, 1, 6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_without_any_memory(method: str) -> None:
    options = replace(TINY, method=method, epochs=1, memory_total=0, batch_size=8)
    task, learned = tasks(options, groups=((0, 1), (2,)), per_class=15)[1]
    row = METHODS[method]
    assert row.keeps_all or not any(learned.exemplars.values())
    assert row.keeps_all or row.frozen or any("no exemplar" in warning for warning in learned.warnings)
    assert learned.means.isfinite().all()
    assert learned.evaluation["linear"]["all"] is not None
    assert task.old


def test_a_base_of_one_class_and_increments_of_one_class_work() -> None:
    for method in ("bic", "eeil", "icarl"):
        found = tasks(replace(TINY, method=method, epochs=1, batch_size=8), groups=((0,), (1,), (2,)), per_class=15)
        assert found[-1][1].evaluation["linear"]["per_class"].keys() == {"0", "1", "2"}


def test_class_ids_need_not_be_in_order_and_rows_follow_arrival() -> None:
    number = torch.tensor([70, 3, 12, 5, 41])

    def renamed(task: Task) -> Task:
        images = Images(task.images.pixels, number[task.images.labels], task.images.ids)
        old, new = (tuple(Class(int(number[c.id]), c.name) for c in group) for group in (task.old, task.new))
        return replace(task, images=images, old=old, new=new)

    (base, _), (task, plain) = bic()[:2]
    first, second = learn(renamed(base)), learn(renamed(task))
    assert first.class_ids == (70, 3, 12)
    assert second.class_ids == (70, 3, 12, 5, 41)
    assert second.checkpoint == plain.checkpoint
    assert second.exemplars == {int(number[c]): ids for c, ids in plain.exemplars.items()}
    per_class = second.evaluation["linear"]["per_class"]
    assert per_class == {str(int(number[int(c)])): v for c, v in plain.evaluation["linear"]["per_class"].items()}


def test_results_are_the_same_every_time_on_a_cpu() -> None:
    task, learned = bic()[1]
    assert learn(task).checkpoint == learned.checkpoint
    assert learn(replace(task, options=replace(task.options, seed=1))).checkpoint != learned.checkpoint


def test_bfloat16_and_any_torchvision_network_train() -> None:
    options = replace(TINY, network="mobilenet_v3_small", image_size=8, precision="bf16", epochs=1, batch_size=8)
    learned = tasks(options, groups=((0, 1), (2,)), per_class=15)[1][1]
    assert learned.embedding_dim == 1024
    assert learned.software["precision"] == "bf16"


def test_the_images_of_these_tests_have_all_three_roles() -> None:
    assert torch.bincount(few()[1].long()).tolist() == [280, 40, 80]
