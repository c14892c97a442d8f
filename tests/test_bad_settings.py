"""Settings that cannot work are refused before any work, with what would be right."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parts_rollout import NAMES, add, pictures, prepared, settings
from parts_training import TINY, few
from pydantic import ValidationError

from lifelist.deploy import base, examples, rollout
from lifelist.deploy.settings import ExampleOptions
from lifelist.deploy.workshop import open_workshop
from lifelist.exporter.errors import BadSetting
from lifelist.serving.options import LARGEST_TOP_K, ServingOptions
from lifelist.training import data, experiment, increment
from lifelist.training.exemplars import shares
from lifelist.training.experiment import run_experiment
from lifelist.training.loop import Event
from lifelist.training.methods import METHODS
from lifelist.training.options import FITTED_QUOTA, TrainingOptions, check, uncorrected
from lifelist.training.rebalance import LEAST_HOLDOUT


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 100_000}, "image_size should be at most 4,096, not 100,000"),
        ({"image_size": -8}, "image_size should be at least 8, not -8"),
        ({"epochs": 10**6}, "epochs should be at most 100,000, not 1,000,000"),
        ({"epochs": -1}, "epochs should be at least 0, not -1"),
        ({"batch_size": 10**6}, "batch_size should be at most 65,536, not 1,000,000"),
        ({"batch_size": -1}, "batch_size should be at least 0"),
        ({"learning_rate": 1000.0}, "learning_rate should be at most 100, not 1,000"),
        ({"learning_rate": -0.1}, "learning_rate should be at least 0, not -0.1"),
        ({"memory_total": 10**10}, "memory_total should be at most 100,000,000, not 10,000,000,000"),
        ({"memory_per_class": 10**9}, "memory_per_class should be at most 1,000,000"),
        ({"resize_to": 10**5}, "resize_to should be at most 8,192"),
        ({"seed": 2**70}, "seed should be at most"),
    ],
)
def test_absurd_values_are_refused_with_the_limit(wrong: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        replace(TINY, **wrong)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), 10.0**9])
def test_a_time_out_of_range_is_refused_with_the_limit(value: float) -> None:
    with pytest.raises(ValidationError, match=r"read_timeout_s\n.*(greater than 0|less than or equal to 86400)"):
        ServingOptions(read_timeout_s=value)


def test_no_more_classes_are_answered_by_default_than_a_query_may_ask_for() -> None:
    assert ServingOptions(top_k=LARGEST_TOP_K).top_k == 10_000
    with pytest.raises(ValidationError, match=r"top_k\n.*less than or equal to 10000"):
        ServingOptions(top_k=LARGEST_TOP_K + 1)


def options(**changes: Any) -> TrainingOptions:
    return TrainingOptions(**changes)


@pytest.mark.parametrize(
    ("changes", "classes", "images", "message"),
    [
        (
            {"method": "wa", "memory_total": 9},
            10,
            None,
            "memory_total 9 is too small .*'wa'.*at least 10, or 0",
        ),
        (
            {"method": "bic", "memory_total": 19},
            10,
            None,
            r"an exemplar and a hold-out .*least 20 \(200 for",
        ),
        ({"method": "bic", "memory_per_class": 1}, 10, None, r"memory_per_class 1 .*at least 2 \(20 for two hold-out"),
        ({"batch_size": 64}, 2, 63, "batch_size 64 is larger than the 63 images to train on; use at most 63, or 0"),
    ],
)
def test_a_memory_or_a_batch_that_cannot_work_says_what_would(
    changes: Mapping[str, Any], classes: int, images: int | None, message: str
) -> None:
    with pytest.raises(BadSetting, match=message):
        check(options(**changes), classes=classes, images=images)


@pytest.mark.parametrize(
    ("changes", "classes", "images"),
    [
        ({"method": "wa", "memory_total": 10}, 10, None),
        ({"method": "bic", "memory_total": 20}, 10, None),
        ({"method": "bic", "memory_total": 0}, 10, None),  # no memory, and not by mistake
        ({"method": "finetune", "memory_total": 1}, 10, None),  # replays nothing
        ({"method": "joint", "memory_total": 1}, 10, None),  # keeps all
        ({"batch_size": 64}, 2, 64),
        ({"batch_size": 0}, 2, 3),
    ],
)
def test_what_can_work_is_allowed(changes: Mapping[str, Any], classes: int, images: int | None) -> None:
    check(options(**changes), classes=classes, images=images)


def test_the_budget_that_is_named_for_a_correction_is_the_least_that_allows_one() -> None:
    def held(quota: int) -> int:
        return shares(options(memory_per_class=quota), 1, reserved=True)[1]

    assert held(FITTED_QUOTA - 1) < LEAST_HOLDOUT <= held(FITTED_QUOTA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_total": 199}, "memory_total 199 keeps fewer than two .* 10 known .* Use at least 200, or method wa"),
        ({"memory_per_class": 19}, "memory_per_class 19 keeps fewer than two .* Use at least 20, or method wa"),
        ({"memory_total": 0}, "memory_total 0 keeps fewer than two hold-out images"),
    ],
)
def test_a_memory_too_small_for_a_correction_is_allowed_and_told(changes: Mapping[str, Any], message: str) -> None:
    check(options(**changes), classes=10)
    assert re.match(message, uncorrected(options(**changes), 10) or "")


@pytest.mark.parametrize(
    "changes",
    [{"memory_total": 200}, {"memory_per_class": 20}, *({"method": m, "memory_total": 20} for m in ("wa", "auto"))],
)
def test_a_memory_is_enough_where_a_correction_can_be_fitted_or_is_not_needed(changes: Mapping[str, Any]) -> None:
    assert uncorrected(options(**changes), 10) is None


def test_an_experiment_tells_before_it_trains_that_its_corrections_will_not_be_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*given: object) -> None:
        raise StopIteration

    monkeypatch.setattr(increment, "run", stop)
    for quota, warned in ((19, True), (20, False)):  # eight of ten classes are known before the last increment
        told: list[Event] = []
        small = replace(TINY, memory_total=8 * quota)
        with pytest.raises(StopIteration):
            run_experiment(few()[0], small, base_classes=6, classes_per_increment=2, on_event=told.append)
        assert [
            event["what"] == "memory.no-correction" and "8 known classes" in event["message"] for event in told
        ] == ([True] if warned else [])


def test_a_base_and_an_increment_tell_before_they_train_that_no_correction_will_be_fitted(tmp_path: Path) -> None:
    for name in NAMES[:2]:
        (tmp_path / "data" / name).mkdir(parents=True)
        for file, content in pictures(name, 12):
            (tmp_path / "data" / name / file).write_bytes(content)
    told: list[tuple[str, Any]] = []
    made = settings(tmp_path / "home", memory_total=39)
    base.make_base(made, tmp_path / "data", lambda kind, facts: told.append((kind, facts)))
    kinds = [kind for kind, _ in told]
    assert (
        "keeps fewer than two hold-out images of each of 2 known classes" in told[kinds.index("warning")][1]["message"]
    )
    assert kinds.index("warning") < kinds.index("epoch")
    workshop = open_workshop(made)
    add(workshop, ["blue"])
    for method, warned in (("bic", ["memory.no-correction"]), ("wa", [])):
        started = rollout.start(workshop, method=method)
        assert [event.data["what"] for event in workshop.store.events(started.id, kind="warning")] == warned
        workshop.store.request_cancel(started.id)


@pytest.mark.parametrize(("method", "warned"), [("bic", ["examples.no-correction"]), ("eeil", [])])
def test_an_increment_tells_that_nothing_is_held_out_for_a_correction(
    tmp_path: Path, method: str, warned: list[str]
) -> None:
    workshop = open_workshop(settings(tmp_path, examples=ExampleOptions(holdout_share=0)))
    add(workshop, NAMES[:2])
    started = rollout.start(workshop, method=method)
    assert [event.data["what"] for event in workshop.store.events(started.id, kind="warning")] == warned


@pytest.mark.parametrize("method", METHODS)
def test_an_experiment_whose_memory_will_not_last_is_refused_at_its_start(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six images are enough for the base and the first increment."""

    def stop(*given: object) -> None:
        raise StopIteration

    monkeypatch.setattr(increment, "run", stop)
    small = replace(TINY, method=method, memory_total=6, batch_size=0)
    row = METHODS[method]
    uses_memory = row.replays and not (row.keeps_all or row.frozen)
    with pytest.raises(BadSetting if uses_memory else StopIteration):
        run_experiment(few()[0], small, base_classes=2, classes_per_increment=1)


def test_an_experiment_with_too_large_a_batch_for_a_later_increment_is_refused_at_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(experiment, "next_task", None)  # nothing is trained
    with pytest.raises(BadSetting, match="batch_size 100 is larger than the 64 images"):  # the base alone has 128
        run_experiment(few()[0], replace(TINY, method="finetune", batch_size=100), base_classes=4)
    with pytest.raises(TypeError):
        run_experiment(few()[0], replace(TINY, method="replay", batch_size=100), base_classes=4)


def test_a_memory_that_is_too_small_is_refused_before_an_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "decode", None)
    with pytest.raises(BadSetting, match="memory_total 5 is too small"):
        data.read("digits", replace(TINY, memory_total=5))


def test_a_task_refuses_them_as_the_last_resort() -> None:
    dataset, roles = few()
    groups = [tuple(range(10))]
    given = (dataset, roles, groups, [])
    with pytest.raises(BadSetting, match="memory_total 5"):
        experiment.next_task(*given, replace(TINY, memory_total=5))
    with pytest.raises(BadSetting, match="batch_size 281 is larger than the 280 images"):
        experiment.next_task(*given, replace(TINY, batch_size=281))


def test_a_base_is_refused_before_an_image_is_taken(tmp_path: Path) -> None:
    for name in NAMES[:3]:
        (tmp_path / "data" / name).mkdir(parents=True)
        for file, content in pictures(name, 4):
            (tmp_path / "data" / name / file).write_bytes(content)
    for wrong, message in (({"memory_total": 5}, "memory_total 5 .*at least 6"), ({"batch_size": 13}, "the 12 images")):
        made = settings(tmp_path / "home", **wrong)
        with pytest.raises(BadSetting, match=message):
            base.make_base(made, tmp_path / "data")
        assert not made.examples_folder.exists()


def test_an_increment_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, memory_total=5)
    add(workshop, ["blue"])
    with pytest.raises(BadSetting, match=r"memory_total 5 is too small for method 'bic' with 3 classes.*at least 6"):
        rollout.start(workshop)
    rollout.start(workshop, method="wa")  # five images are enough for three exemplars
    large = replace(workshop, settings=settings(tmp_path, batch_size=1000))
    examples.add(workshop, "red", pictures("red", 10, first=50))
    with pytest.raises(BadSetting, match=r"batch_size 1000 is larger than the .* images to train on"):
        rollout.start(large, ["red"])
    assert len(workshop.store.rollouts()) == 2
