"""Whole experiments without a server, and the ten lines of Python in the docs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts_training import TINY, bic, few, tasks
from PIL import Image

from lifelist.exporter.errors import BadInput, BadSetting
from lifelist.training import evaluate
from lifelist.training.data import GATE, HOLDOUT
from lifelist.training.experiment import Result, groups_of, run_experiment, shuffled
from lifelist.training.increment import learn
from lifelist.training.job import read_task
from lifelist.training.loop import Event

QUICK = replace(TINY, epochs=1, batch_size=128, memory_total=200)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[Event], Path]:
    """All digits in a base of three and increments of one and of six, on disk."""
    folder = tmp_path_factory.mktemp("experiment")
    told: list[Event] = []
    found = run_experiment("digits", QUICK, classes_per_increment=[1, 6], folder=folder, on_event=told.append)
    return found, told, folder


def test_a_whole_experiment_of_uneven_increments_gives_an_accuracy_matrix(
    uneven: tuple[Result, list[Event], Path],
) -> None:
    found, told, _ = uneven
    assert [len(group) for group in found.groups] == [3, 1, 6]
    matrix = found.matrix()
    assert [len(row) for row in matrix] == [1, 2, 3]
    assert all(value is not None and 0 <= value <= 1 for row in matrix for value in row)
    assert [(e["increment"], e["increments"]) for e in told if e["kind"] == "epoch"] == [(0, 3), (1, 3), (2, 3)]
    json.dumps(found.as_json())


def test_the_table_has_a_line_for_each_increment_and_says_what_it_shows(
    uneven: tuple[Result, list[Event], Path],
) -> None:
    lines = uneven[0].table().splitlines()
    assert lines[0].split()[:5] == ["after", "classes", "base", "inc", "1"]
    assert [line.split()[0] for line in lines[1:4]] == ["base", "inc", "inc"]
    assert lines[3].split()[:3] == ["inc", "2", "10"]
    assert "method bic, answers by linear, seed 0" in lines[-2]
    assert re.search(r"last [\d.]+, average of all increments, base included, [\d.]+, forgetting -?[\d.]+", lines[-1])


def test_an_increment_gets_of_old_classes_what_the_one_before_kept_and_nothing_else(
    uneven: tuple[Result, list[Event], Path],
) -> None:
    found, _, folder = uneven
    arrived: dict[str, int] = {}
    for k in range(3):
        task = read_task(folder / f"increment-{k}")
        kept = {i for ids in found.steps[k - 1].exemplars.values() for i in ids} if k else set()
        held = {i for ids in found.steps[k - 1].holdout.values() for i in ids} if k else set()
        old = {c.id for c in task.old}
        rows = zip(task.images.ids, task.images.labels.tolist(), task.roles.tolist(), strict=True)
        for image_id, label, role in rows:
            assert arrived.setdefault(image_id, role) == role
            if label in old and role != GATE:
                assert image_id in (held if role == HOLDOUT else kept)
        assert kept | held <= set(task.images.ids)


def test_an_experiment_that_was_interrupted_goes_on_where_it_stood(
    uneven: tuple[Result, list[Event], Path], tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        if event["increment"] == 1:
            raise Stop

    with pytest.raises(Stop):
        run_experiment("digits", QUICK, classes_per_increment=[1, 6], folder=tmp_path, on_event=stop)
    told: list[Event] = []
    found = run_experiment("digits", QUICK, classes_per_increment=[1, 6], folder=tmp_path, on_event=told.append)
    assert {e["increment"] for e in told if e["kind"] == "epoch"} == {1, 2}  # the base was done
    journal = (tmp_path / "increment-1" / "events.jsonl").read_text()
    assert journal.count('"kind": "epoch"') == 1  # told again, but not trained again
    assert found.matrix() == uneven[0].matrix()
    assert found.steps[-1].checkpoint == uneven[0].steps[-1].checkpoint
    with pytest.raises(BadInput, match=r"holds another experiment \(options differ\)"):
        run_experiment("digits", replace(QUICK, seed=3), classes_per_increment=[1, 6], folder=tmp_path)


def test_a_folder_is_not_continued_with_another_order_of_classes_or_other_images(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        raise Stop

    def write(folder: Path, levels: dict[str, int]) -> Path:
        for name, level in levels.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for k in range(12):
                Image.new("RGB", (8, 8), (level, 20 * k, 0)).save(folder / name / f"{k}.png")
        return folder

    data, place = write(tmp_path / "data", {"a": 10, "b": 99}), tmp_path / "kept"
    with pytest.raises(Stop):
        run_experiment(data, replace(QUICK, batch_size=0), classes_per_increment=1, folder=place, on_event=stop)
    assert json.loads((place / "experiment.json").read_text())["names"] == ["a", "b"]
    write(data, {"b": 98})
    with pytest.raises(BadInput, match=r"holds another experiment \(images differ\)"):
        run_experiment(data, replace(QUICK, batch_size=0), classes_per_increment=1, folder=place)
    write(data, {"b": 99})
    (data / "a").rename(data / "c")
    with pytest.raises(BadInput, match=r"holds another experiment \(names, images differ\)"):
        run_experiment(data, replace(QUICK, batch_size=0), classes_per_increment=1, folder=place)


def test_b16_the_headline_is_the_last_value_not_the_best() -> None:
    steps = tuple(learned for _, learned in bic())
    found = Result(TINY, tuple("0123456"), ((0, 1, 2), (3, 4), (5, 6)), steps)
    assert found.accuracies("linear")[-1] == steps[-1].evaluation["linear"]["all"]
    last = f"last {100 * steps[-1].evaluation['linear']['all']:.1f}"
    assert last in found.table()


def test_i4_answers_are_named_so_that_no_figure_is_taken_for_another() -> None:
    steps = tuple(learned for _, learned in bic())
    found = Result(TINY, tuple("0123456"), ((0, 1, 2), (3, 4), (5, 6)), steps)
    for title in ("linear", "uncorrected", "nearest mean", "average of all increments, base included"):
        assert title in found.table()


def test_a_drawn_order_of_classes_keeps_every_name_with_its_images(tmp_path: Path) -> None:
    dataset, _ = few()
    found = run_experiment("digits", QUICK, classes_per_increment=5, order=shuffled(QUICK.seed), folder=tmp_path)
    assert sorted(found.names) == sorted(dataset.names) != list(found.names)
    task = read_task(tmp_path / "increment-1")
    where = {
        image_id: dataset.names[label]
        for image_id, label in zip(dataset.images.ids, dataset.images.labels.tolist(), strict=True)
    }
    name_of = {c.id: c.name for c in (*task.old, *task.new)}
    checked = 0
    for image_id, label in zip(task.images.ids, task.images.labels.tolist(), strict=True):
        if image_id in where:
            assert name_of[label] == where[image_id]
            checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("per", "base", "sizes"),
    [
        (2, 0, [2, 2, 2, 2, 2]),
        (3, 0, [3, 3, 3, 1]),
        (2, 6, [6, 2, 2]),
        (10, 0, [10]),
        (2, 10, [10]),
        ([1, 7], 0, [2, 1, 7]),
        ([1, 7], 2, [2, 1, 7]),
    ],
)
def test_classes_are_cut_into_groups(per: int | list[int], base: int, sizes: list[int]) -> None:
    found = groups_of(range(10), per, base)
    assert [len(group) for group in found] == sizes
    assert [c for group in found for c in group] == list(range(10))


@pytest.mark.parametrize(("per", "base"), [(0, 0), ([5, 5], 0), ([9, 9], 1), (2, 11), ([3, 3], 3)])
def test_groups_that_do_not_add_up_say_so(per: int | list[int], base: int) -> None:
    with pytest.raises(BadSetting, match=r"at least 1, not 0|do not add up to the 10 classes|at most 10"):
        groups_of(range(10), per, base)


@pytest.mark.parametrize(
    ("per", "base", "message"),
    [
        (99, 0, "classes_per_increment 99 is more than the 10 classes of the data; use at most 10"),
        (99, 6, "classes_per_increment 99 is more than the 4 classes that a base of 6 leaves; use at most 4"),
        (2, 9, "classes_per_increment 2 is more than the 1 class that a base of 9 leaves; use at most 1"),
        (2, 50, "base_classes should be at most 10, the classes of the data, not 50"),
        ([2], 50, "base_classes should be at most 10, the classes of the data, not 50"),
    ],
)
def test_more_classes_than_there_are_is_refused_with_the_most_there_can_be(
    per: int | list[int], base: int, message: str
) -> None:
    with pytest.raises(BadSetting, match=message):
        groups_of(range(10), per, base)


def test_forgetting_is_what_was_lost_of_the_best() -> None:
    assert evaluate.forgetting([[0.9], [0.7, 1.0], [0.8, 0.6, 1.0]]) == pytest.approx((0.1 + 0.4) / 2)
    assert evaluate.forgetting([[0.9]]) is None


def test_accuracy_is_counted_by_class_and_group() -> None:
    predicted, rows = torch.tensor([0, 0, 1, 2, 2, 0]), torch.tensor([0, 0, 1, 2, 2, 2])
    found = evaluate.accuracy(predicted, rows, (7, 3, 9, 4), n=2)
    assert found["all"] == pytest.approx(5 / 6, abs=1e-6)
    assert (found["old"], found["new"]) == (1.0, pytest.approx(2 / 3, abs=1e-6))
    assert found["per_class"] == {"7": 1.0, "3": 1.0, "9": pytest.approx(2 / 3, abs=1e-6), "4": None}


def test_the_ten_lines_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block.replace("image_size=16", "image_size=8, epochs=1"), names)
    found = names["result"]
    assert isinstance(found, Result)
    assert [len(group) for group in found.groups] == [6, 2, 2]


def test_the_doc_lists_every_method_and_every_number_that_has_a_test() -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    from lifelist.training.methods import METHODS

    assert all(f"| `{name}` |" in page for name in METHODS)
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    tested = {n.upper() for name in re.findall(r"def test((?:_[bei]\d+)+)_", text) for n in name.strip("_").split("_")}
    wanted = {f"B{k}" for k in range(1, 21)} | {f"E{k}" for k in range(1, 7)} | {f"I{k}" for k in range(1, 15)}
    assert wanted <= tested


def test_what_an_experiment_keeps_is_what_the_next_increment_would_be_given() -> None:
    found = tasks(replace(QUICK, batch_size=16), groups=((0, 1), (2,)), per_class=15)
    assert learn(found[1][0]).checkpoint == found[1][1].checkpoint
