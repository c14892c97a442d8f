"""Method "auto": which row is taken for what is there, and that it is said."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts_rollout import add, prepared
from parts_rollout import learn as carried
from parts_training import TINY, few, tasks

from lifelist.deploy import operator, rollout
from lifelist.deploy.naming import names
from lifelist.deploy.report_page import write
from lifelist.deploy.terminal import Follower
from lifelist.deploy.workshop import STATISTICS
from lifelist.exporter.errors import BadSetting
from lifelist.training import auto
from lifelist.training.auto import FEW_IMAGES, RULES, Situation, choose, resolve, situation_of
from lifelist.training.data import HOLDOUT, TRAINING
from lifelist.training.experiment import run_experiment
from lifelist.training.increment import learn
from lifelist.training.job import Task
from lifelist.training.loop import Event
from lifelist.training.methods import METHODS, NAMES
from lifelist.training.options import TrainingOptions

PLENTY = Situation(
    n=10,
    m=2,
    scarcest="heron",
    fewest=80,
    pretrained=False,
    exemplars=20,
    holdout=3,
    statistics=True,
    seconds=300,
    limit_s=0,
)
AUTO = replace(TINY, method="auto", epochs=1)


@pytest.mark.parametrize(
    ("changes", "method", "reason"),
    [
        ({}, "bic", "hold-out images for bias correction (3 of each class)"),
        ({"fewest": 3}, "ridge", "class 'heron' has too few training images to train a network on (3)"),
        ({"fewest": FEW_IMAGES}, "bic", ""),
        ({"fewest": 3, "n": 0, "statistics": False, "exemplars": 0}, "ridge", "class 'heron' has too few"),
        ({"fewest": 3, "statistics": False, "exemplars": 0}, "bic", ""),  # a frozen backbone has nothing to answer by
        ({"fewest": 3, "statistics": False}, "ridge", "class 'heron' has too few"),  # exemplars will do
        ({"m": 0, "fewest": 0}, "bic", ""),  # no new class at all
        ({"pretrained": True}, "ridge", "the backbone was pretrained"),
        ({"pretrained": True, "n": 0}, "ridge", "the backbone was pretrained"),
        ({"limit_s": 60}, "ridge", "would take about 300 s, and may take 60 s"),
        ({"limit_s": 600}, "bic", ""),
        ({"limit_s": 60, "n": 0}, "bic", "a base is plain classification"),  # ridge would train it just as long
        ({"exemplars": 0}, "ridge", "no exemplar of some old class"),
        (
            {"exemplars": 0, "statistics": False, "holdout": 0},
            "wa",
            "too few hold-out images of a class for bias correction (0); weight aligning",
        ),
        ({"holdout": 1, "statistics": False}, "wa", "bias correction (1); weight aligning"),
        ({"holdout": 1}, "ridge", "bias correction (1), and statistics"),
        (
            {"n": 0, "holdout": 0},
            "bic",
            "a base is plain classification, and there are enough images of each class (80 or more)",
        ),
    ],
)
def test_the_first_rule_that_holds_picks_the_method_and_says_why(
    changes: dict[str, object], method: str, reason: str
) -> None:
    found, because = choose(replace(PLENTY, **changes))  # type: ignore[arg-type]
    assert found == method
    assert reason in because


def test_the_last_rule_always_holds_and_every_rule_names_a_row() -> None:
    assert RULES[-1].holds(replace(PLENTY, n=0, m=0, fewest=0, exemplars=0, holdout=0, statistics=False))
    assert {rule.method for rule in RULES} <= set(METHODS)


def given(groups: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3, 4))) -> Task:
    """The second increment of digits whose first was by ridge."""
    return tasks(replace(TINY, method="ridge", epochs=1), groups=groups)[-1][0]


def test_a_situation_is_what_the_task_brings() -> None:
    task = given()
    kept = task.of(3, TRAINING).nonzero()[7:, 0].tolist()  # but 7 of the images of digit 3
    keep = [k for k in range(len(task.images)) if k not in kept]
    images = task.images.take(torch.tensor(keep))
    fewer = replace(task, images=images, roles=task.roles[keep])
    found = situation_of(fewer)
    assert (found.n, found.m, found.scarcest, found.fewest) == (3, 2, fewer.new[0].name, 7)
    assert found.exemplars == min(int(fewer.of(c, TRAINING).sum()) for c in (0, 1, 2))
    assert found.holdout == min(int(fewer.of(c, HOLDOUT).sum()) for c in range(5))
    assert found.statistics
    assert not situation_of(replace(fewer, statistics=None)).statistics
    assert (found.pretrained, found.seconds, found.limit_s) == (False, 0, 0)
    assert situation_of(replace(fewer, pretrained="imagenet.safetensors")).pretrained
    assert situation_of(replace(fewer, options=replace(TINY, memory_total=0))).exemplars == 0


def test_a_method_that_is_named_is_taken_without_a_reason() -> None:
    task = given()
    for name in METHODS:
        assert resolve(replace(task, options=replace(TINY, method=name))) == (name, "")


def test_the_estimate_grows_with_images_epochs_and_pixels_and_is_asked_for_only_with_a_limit() -> None:
    task = given()
    once, twice = (auto.seconds(replace(task, options=replace(TINY, epochs=epochs))) for epochs in (10, 20))
    assert twice == pytest.approx(2 * once)
    images = int((task.roles == TRAINING).sum())
    forward = 2 * 69e6 * (8 / 32) ** 2  # ResNet-32 has 69 M multiply-adds on 32×32 pixels
    schedule = METHODS["bic"].schedules["short"].increment
    smaller = sum(zoom**2 for zoom in schedule.zooms) / len(schedule.zooms)
    assert once == pytest.approx(4 * forward * images * 10 * smaller / auto.SPEED["cpu"], rel=0.02)
    hurried = replace(task, options=replace(AUTO, time_limit_s=1e-3))
    assert resolve(hurried)[0] == "ridge"
    assert resolve(replace(task, options=replace(AUTO, time_limit_s=1e6)))[0] == "bic"


def test_auto_is_an_option_like_any_method_and_its_limit_is_checked() -> None:
    assert (*METHODS, "auto") == NAMES
    assert TrainingOptions.from_dict(AUTO.as_dict()) == AUTO
    with pytest.raises(BadSetting, match=r"'autom'.*ridge, auto.*mean 'auto'"):
        TrainingOptions(method="autom")
    with pytest.raises(BadSetting, match=r"time_limit_s should be at least 0, not -1"):
        TrainingOptions(time_limit_s=-1)
    with pytest.raises(BadSetting, match=r"time_limit_s should be a number, not inf"):
        TrainingOptions(time_limit_s=float("inf"))


def test_an_increment_by_auto_is_the_same_as_by_the_method_that_it_picks() -> None:
    task = replace(given(), options=AUTO)
    events: list[Event] = []
    learned = learn(task, on_event=events.append)
    assert (learned.method, learned.reason) == resolve(task)
    assert events[0] == {"kind": "method", "method": learned.method, "reason": learned.reason}
    named = learn(replace(task, options=replace(AUTO, method=learned.method)))
    assert (named.checkpoint, named.exemplars) == (learned.checkpoint, learned.exemplars)
    assert (named.method, named.reason) == (learned.method, "")


def test_in_an_experiment_each_increment_is_picked_for_afresh(tmp_path: Path) -> None:
    dataset, _ = few(30)
    short = (dataset.images.labels != 4).logical_or((dataset.images.labels == 4).cumsum(0) <= 6)  # six images of 4
    images = dataset.images.take(short)
    dataset = dataclasses.replace(dataset, images=images, test=dataset.test[short])
    events: list[Event] = []
    options = replace(AUTO, memory_total=400)
    result = run_experiment(
        dataset, options, base_classes=3, classes_per_increment=[1, 1, 5], folder=tmp_path, on_event=events.append
    )
    assert [step.method for step in result.steps] == ["bic", "bic", "ridge", "ridge"]
    assert "class 'four' has too few training images to train a network on (4)" in result.steps[2].reason
    assert [e["increment"] for e in events if e["kind"] == "method"] == [0, 1, 2, 3]
    assert "method auto (bic, bic, ridge, ridge), answers by linear" in result.table()
    told = result.as_json()["steps"][2]
    assert (told["method"], told["reason"]) == (result.steps[2].method, result.steps[2].reason)


# ----------------------------------------------------------------------------------------------------- on a server


def test_a_rollout_by_auto_tells_what_it_took_and_the_version_is_of_that_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop = prepared(tmp_path)
    ended = carried(workshop, "blue", method="auto")
    assert (ended.state, ended.method) == ("done", "auto")
    live = workshop.live
    assert live is not None
    assert live.method in METHODS
    assert live.method == ended.facts["method"] == ended.row
    assert operator.describe(workshop, ended, names(workshop, live))["method"] == live.method
    (event,) = [e for e in workshop.store.events(ended.id) if e.kind == "method"]
    assert event.data == {"method": live.method, "reason": ended.facts["method_reason"]}
    Follower()(event.kind, event.data)
    assert capsys.readouterr().err == f"method: {live.method}, because {ended.facts['method_reason']}\n"
    page = tmp_path / "page.html"
    write(workshop, ended.id, page)
    assert ended.facts["method_reason"] in page.read_text()


def test_an_increment_by_auto_that_waits_can_be_looked_at(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["yellow"])
    queued = rollout.start(workshop, ["yellow"], "auto")
    assert (queued.row, operator.describe(workshop, queued, names(workshop, None))["method"]) == ("auto", "auto")
    assert write(workshop, queued.id, tmp_path / "page.html").exists()


def test_statistics_are_a_file_of_the_version_and_the_next_increment_goes_on_from_them(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, memory_total=60)
    first = carried(workshop, "blue", method="ridge")
    assert first.state == "done"
    assert any("exemplars stand for" in warning for warning in first.facts["warnings"])  # the base was by bic
    one = workshop.live
    assert one is not None
    second = carried(workshop, "yellow", "cyan", method="ncm")
    assert second.state == "done"
    assert second.facts["warnings"] == []
    two = workshop.live
    assert two is not None
    assert (one.method, two.method) == ("ridge", "ncm")
    assert two.file(STATISTICS).size > one.file(STATISTICS).size
    assert workshop.registry.verify(two.version) == []
    third = carried(workshop, "pink", method="wa")  # trains the backbone: they are of no use any more
    assert third.state == "done"
    assert workshop.live is not None
    assert all(entry.name != STATISTICS for entry in workshop.live.files)
