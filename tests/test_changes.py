"""Classes that an operator renames, retires, merges: by versions that share the model, and by increments after them.

The workshop's version 1 knows red (1) and green (2), trained; most tests enrol blue (3) upon it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts_rollout import add, learn, pictures, prepared

from lifelist.deploy import changes, enrol, examples, rollout, withdrawn
from lifelist.deploy.naming import Names, names
from lifelist.deploy.records import KnownClass
from lifelist.deploy.settings import ExampleOptions
from lifelist.deploy.workshop import CHECKPOINT, EVALUATION, Workshop, memory, open_workshop
from lifelist.exporter import session
from lifelist.exporter.errors import Conflict, LifelistError, Missing, Unavailable
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.preprocess import decode
from lifelist.monitoring import feedback
from lifelist.serving.prediction import Prediction
from lifelist.training.job import read_task


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Version 2, live, has blue enrolled."""
    made = prepared(tmp_path)
    add(made, ["blue"])
    assert enrol.enrol(made) is not None
    return made


def live(workshop: Workshop) -> Manifest:
    found = workshop.live
    assert found is not None
    return found


def change(workshop: Workshop, which: str, /, **wanted: Any) -> Manifest:
    """A change as the operator makes it, of a class that is named."""
    return changes.change(workshop, meant(workshop, which).id, wanted)  # type: ignore[arg-type]


def meant(workshop: Workshop, name: str | int) -> KnownClass:
    return names(workshop, workshop.live).meant(name)


def answered(workshop: Workshop, name: str, answer: str = "nearest_mean") -> set[str]:
    """What live says to new pictures of a class."""
    loaded = session.load(workshop.registry, live(workshop).version)
    images = np.stack([decode(data, loaded.manifest.preprocess) for _, data in pictures(name, 10, first=200)])
    logits, embedding = loaded.run(images)
    found = loaded.nearest_mean(embedding, 1) if answer == "nearest_mean" else loaded.linear(logits, 1)
    titles = {entry.id: entry.name for entry in loaded.manifest.classes}
    return {titles[ranking[0][0]] for ranking in found}


def known(workshop: Workshop) -> list[tuple[str, str]]:
    return [(entry.name, entry.state) for entry in live(workshop).classes]


# ---- names


def test_a_renamed_class_is_the_same_one_under_its_old_name_too(workshop: Workshop) -> None:
    before = live(workshop)
    version = change(workshop, "red", name=" crimson ")
    assert (version.kind, version.parent, version.default_answer) == ("change", 2, "nearest_mean")
    assert version.file(session.MODEL) == before.file(session.MODEL)
    assert (version.results, version.gate) == (before.results, before.gate)
    assert (version.classes[0].name, version.classes[0].aliases) == ("crimson", ("red",))
    assert {meant(workshop, name).id for name in ("red", "crimson", "1", " crimson")} == {1}
    assert meant(workshop, 1) == KnownClass(1, "crimson")
    sent = examples.add(workshop, "red", pictures("red", 5, first=50))
    assert {result.status for result in sent} == {"accepted"}
    assert examples.pending(workshop, live(workshop))[0] == KnownClass(1, "crimson")
    assert [c.id for c in workshop.store.classes()] == [1, 2, 3]


def test_a_rollback_takes_a_rename_back_and_going_forward_brings_it_again(workshop: Workshop) -> None:
    change(workshop, "red", name="crimson")
    withdrawn.make_live(workshop, 2)
    assert meant(workshop, 1).name == "red"
    with pytest.raises(Missing, match="no class is named 'crimson'"):
        meant(workshop, "crimson")
    withdrawn.make_live(workshop, 3)
    assert meant(workshop, "red") == KnownClass(1, "crimson")
    history = changes.describe(workshop, 1)["history"]
    assert [(event["version"], event["after"].get("name")) for event in history] == [
        (1, "red"), (3, "crimson"), (2, "red"), (3, "crimson")
    ]  # fmt: skip
    assert history[1]["before"] == {"aliases": [], "name": "red"}


def test_aliases_are_given_and_taken_as_a_whole(workshop: Workshop) -> None:
    change(workshop, "blue", aliases=["azure", "navy", "azure", "blue"])
    assert live(workshop).classes[2].aliases == ("azure", "navy")
    assert meant(workshop, "navy").id == 3
    change(workshop, "navy", aliases=["azure"], name="cobalt")
    assert live(workshop).classes[2].aliases == ("azure",)
    assert meant(workshop, "blue").id == 3  # the name under which it came is its own for good
    assert enrol.enrol(workshop) is None


def test_what_says_nothing_new_makes_no_version(workshop: Workshop) -> None:
    assert change(workshop, "red", name="red", retired=False, merged_into=None, aliases=[]) == live(workshop)
    assert workshop.registry.versions() == [1, 2]


def test_a_name_that_live_gave_to_another_class_does_not_stop_an_enrolment(workshop: Workshop) -> None:
    change(workshop, "red", name="cyan")
    withdrawn.make_live(workshop, 2)
    add(workshop, ["cyan"])  # a class of its own, since nobody is called so now
    assert enrol.enrol(workshop) is not None
    withdrawn.make_live(workshop, 3)
    examples.add(workshop, "cyan", pictures("red", 5, first=50))
    rollout.start(workshop, [4])
    assert rollout.carry_all(workshop)[-1].state == "done"
    assert [entry.name for entry in live(workshop).classes] == ["cyan", "green", "cyan (4)", "blue"]


# ---- what cannot be


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (None, {"id": 9, "retired": True}, Missing, "no class has id 9; ids go up to 3"),
        (None, {"id": 1, "name": "green"}, Conflict, "the name 'green' is that of class 2, 'green'"),
        (None, {"id": 1, "aliases": ["blue"]}, Conflict, "the name 'blue' is that of class 3"),
        ({"id": 2, "name": "lime", "aliases": []}, {"id": 1, "name": "green"}, Conflict, "is that of class 2, 'lime'"),
        ({"id": 1, "retired": True}, {"id": 2, "retired": True}, Conflict, "'green' is the last one with a row"),
        ({"id": 1, "retired": True}, {"id": 2, "merged_into": 3}, Conflict, "'green' is the last one with a row"),
        ({"id": 3, "merged_into": 1}, {"id": 1, "retired": True}, Conflict, r"\['blue'\] are merged into .*'red'"),
        ({"id": 3, "merged_into": 1}, {"id": 1, "merged_into": 2}, Conflict, r"classes \['blue'\] are merged into"),
        ({"id": 3, "merged_into": 1}, {"id": 2, "merged_into": 3}, Conflict, "into 'blue', which is merged itself"),
        ({"id": 3, "merged_into": 1}, {"id": 3, "retired": True}, Conflict, "'blue' is merged into class 1; .*un-"),
        ({"id": 3, "retired": True}, {"id": 2, "merged_into": 3}, Conflict, "into 'blue', which is retired"),
        (None, {"id": 2, "merged_into": 2}, Conflict, "'green' cannot be merged into itself"),
        (None, {"id": 2, "merged_into": 7}, Missing, "no class has id 7"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_changes_nothing(
    first: dict[str, Any] | None, second: dict[str, Any], error: type[LifelistError], message: str, workshop: Workshop
) -> None:
    for wanted in filter(None, (first,)):
        changes.change(workshop, wanted.pop("id"), wanted)  # type: ignore[arg-type]
    before = workshop.registry.ref("live")
    class_id = second["id"]
    with pytest.raises(error, match=message):
        changes.change(workshop, class_id, {k: v for k, v in second.items() if k != "id"})  # type: ignore[arg-type]
    assert workshop.registry.ref("live") == before


def test_a_class_that_live_does_not_know_cannot_be_changed(workshop: Workshop) -> None:
    withdrawn.make_live(workshop, 1)
    with pytest.raises(Conflict, match="version 1, which is live, does not know class 'blue'"):
        changes.change(workshop, 3, {"name": "azure"})
    assert changes.describe(workshop, 3)["state"] == "pending"


def test_a_change_of_an_expected_version_is_refused_if_another_is_live(workshop: Workshop) -> None:
    with pytest.raises(Conflict, match="version 2 is live, and you expected 1"):
        changes.change(workshop, 1, {"name": "crimson"}, expected_version=1)
    assert changes.change(workshop, 1, {"name": "crimson"}, expected_version=2).version == 3


# ---- at once


def test_a_retired_class_is_not_answered_and_takes_no_images_until_it_is_restored(workshop: Workshop) -> None:
    assert answered(workshop, "red") == answered(workshop, "red", "linear") == {"red"}
    version = change(workshop, "red", retired=True)
    assert (dict(version.results), version.gate) == ({}, ())
    assert all(entry.name != EVALUATION for entry in version.files)
    assert "red" not in answered(workshop, "red") | answered(workshop, "red", "linear")
    with pytest.raises(Conflict, match="class 'red' is retired; restore it first: `lifelist classes restore 1`"):
        examples.add(workshop, "red", pictures("red", 1, first=50))
    with pytest.raises(Conflict, match="class 'red' is retired; restore it first"):
        rollout.start(workshop, ["red"])
    assert enrol.enrol(workshop) is None
    change(workshop, "red", retired=False)
    assert answered(workshop, "red") == {"red"}


def test_images_for_a_merged_class_are_its_targets(workshop: Workshop) -> None:
    change(workshop, "blue", merged_into=1)
    assert answered(workshop, "blue") == {"red"}
    sent = examples.add(workshop, "blue", [*pictures("blue", 1, first=50), *pictures("blue", 1)])
    assert [result.status for result in sent] == ["accepted", "duplicate"]
    assert [e.class_id for e in examples.kept(workshop.store) if e.sha256 == sent[0].sha256] == [1]
    assert examples.pending(workshop, live(workshop)) == [KnownClass(1, "red")]
    assert [c.id for c in [meant(workshop, "blue")]] == [3]
    change(workshop, "blue", merged_into=None)
    assert answered(workshop, "blue") == {"blue"}


def test_an_enrolment_keeps_what_is_said_of_other_classes(workshop: Workshop) -> None:
    change(workshop, "red", name="crimson")
    change(workshop, "blue", retired=True)
    add(workshop, ["yellow"])
    assert enrol.enrol(workshop) is not None
    found = [(entry.name, entry.retired) for entry in live(workshop).classes]
    assert found == [("crimson", False), ("green", False), ("blue", True), ("yellow", False)]
    assert "blue" not in answered(workshop, "blue")


def test_a_change_and_an_enrolment_at_once_lose_neither(workshop: Workshop) -> None:
    add(workshop, ["yellow"])
    calls: list[int] = []

    def swap(version: int, expected: int | None) -> None:
        calls.append(version)
        if len(calls) == 1:
            enrol.enrol(workshop)
        workshop.swap(version, expected)

    change(replace(workshop, swap=swap), "red", name="crimson")
    assert [entry.name for entry in live(workshop).classes] == ["crimson", "green", "blue", "yellow"]
    assert len(calls) == 2


def test_a_change_that_could_not_go_live_is_taken_up_again(workshop: Workshop) -> None:
    def refuse(version: int, expected: int | None) -> None:
        raise Unavailable("no replica lives")

    for _ in range(2):
        with pytest.raises(Unavailable):
            change(replace(workshop, swap=refuse), "red", name="crimson")
    assert change(workshop, "red", name="crimson").version == 3
    assert workshop.registry.versions() == [1, 2, 3]


def test_feedback_counts_merged_classes_as_one_in_the_versions_that_say_so(workshop: Workshop) -> None:
    change(workshop, "blue", merged_into=1)
    labels = [(2, 1, 3), (3, 1, 3), (3, 1, 1), (3, 2, 3), (4, 1, 2)]
    for number, (version, predicted, truth) in enumerate(labels):
        made = Prediction(version, predicted, "linear", 1000.0)
        feedback.record(workshop.store, f"p{number}", made, truth, label_days=90, at=1001.0)
    change(workshop, "green", retired=True)
    found = feedback.figures(workshop.store, workshop.registry, 0, 2000)
    of_all = {(one.version, one.group): (one.right, one.total) for one in found if one.group in ("all", "unseen")}
    assert of_all == {(2, "all"): (0, 1), (3, "all"): (2, 3), (4, "unseen"): (0, 1)}


# ---- the next increment


def test_the_id_of_a_class_that_is_gone_is_never_given_to_another(workshop: Workshop) -> None:
    change(workshop, "blue", retired=True)  # the newest one
    change(workshop, "red", retired=True)
    assert learn(workshop, "yellow").state == "done"
    assert [(entry.id, entry.name) for entry in live(workshop).former] == [(1, "red"), (3, "blue")]
    withdrawn.make_live(workshop, 1)  # which knows neither blue nor yellow
    workshop = open_workshop(workshop.settings)
    add(workshop, ["cyan"])
    assert enrol.enrol(workshop) is not None
    assert [(known.id, known.name) for known in workshop.store.classes()] == [
        (1, "red"), (2, "green"), (3, "blue"), (4, "yellow"), (5, "cyan")
    ]  # fmt: skip
    versions = [workshop.registry.manifest(number) for number in workshop.registry.versions()]
    said = {(entry.id, entry.name) for version in versions for entry in version.entries}
    assert said == {(known.id, known.name) for known in workshop.store.classes()}


def test_the_next_increment_goes_on_without_a_retired_class(workshop: Workshop) -> None:
    change(workshop, "red", retired=True)
    ended = learn(workshop, "yellow")
    assert ended.state == "done", ended.reason
    assert known(workshop) == [("green", "trained"), ("yellow", "trained"), ("blue", "enrolled")]
    version = live(workshop)
    assert [(entry.name, entry.retired) for entry in version.former] == [("red", True)]
    assert [entry.increment for entry in version.classes] == [0, 1, 2]
    assert set(memory(workshop.registry, version)["exemplars"]) == {"2", "4"}
    kept = examples.counts(workshop.store, 1)
    assert (kept["training"], kept["holdout"]) == (0, 0)
    assert answered(workshop, "green", "linear") == {"green"}
    with pytest.raises(Conflict, match="an increment has learned without class 'red', and no image of it to train on"):
        change(workshop, "red", retired=False)
    assert changes.describe(workshop, 1)["state"] == "former"
    assert learn(workshop, "cyan").state == "done"  # and so on
    assert [entry.name for entry in live(workshop).former] == ["red"]
    withdrawn.make_live(workshop, 2)
    assert answered(workshop, "red") == {"red"}


def test_the_row_that_stays_is_the_teachers_to_the_bit(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, examples=ExampleOptions(keep=True))
    assert learn(workshop, "blue").state == "done"
    before = live(workshop)
    change(workshop, "red", retired=True)
    add(workshop, ["yellow"])
    rollout.start(workshop)
    ended = rollout.carry_all(workshop)[-1]
    assert ended.state == "done", ended.reason
    task = read_task(workshop.folder(ended.id))
    assert ([c.name for c in task.old], task.heads) == (["green", "blue"], (1, 1))
    assert before.bias is not None
    assert task.bias is not None
    assert (task.bias.first_row, task.bias.last_row) == (1, 2)
    import safetensors.numpy

    whole = safetensors.numpy.load(workshop.registry.read(before, CHECKPOINT))
    given = safetensors.numpy.load(task.teacher or b"")
    np.testing.assert_array_equal(given["head.weight"], whole["head.weight"][1:])
    np.testing.assert_array_equal(given["head.bias"], whole["head.bias"][1:])
    assert [c.increment for c in live(workshop).classes] == [0, 1, 2]


def test_a_retired_class_of_which_images_are_kept_comes_back_by_its_mean_after_an_increment(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, examples=ExampleOptions(keep=True))
    change(workshop, "red", name="crimson", retired=True)
    assert learn(workshop, "blue").state == "done"
    assert [(e.name, e.aliases) for e in live(workshop).former] == [("crimson", ("red",))]
    version = change(workshop, "crimson", retired=False)
    assert (version.former, version.default_answer) == ((), "nearest_mean")
    assert known(workshop)[-1] == ("crimson", "enrolled")
    assert live(workshop).classes[-1].aliases == ("red",)
    assert answered(workshop, "red") == {"crimson"}
    assert enrol.enrol(workshop) is None
    rollout.start(workshop, ["red"])
    ended = rollout.carry_all(workshop)[-1]
    assert ended.state == "done", ended.reason
    assert known(workshop) == [("green", "trained"), ("blue", "trained"), ("crimson", "trained")]
    assert live(workshop).classes[-1].id == 1


def test_the_next_increment_learns_the_images_of_a_merged_class_as_its_targets(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, examples=ExampleOptions(keep=True))
    assert learn(workshop, "blue").state == "done"
    exemplars = memory(workshop.registry, live(workshop))["exemplars"]
    change(workshop, "blue", merged_into=1)
    ended = learn(workshop, "yellow")
    assert ended.state == "done", ended.reason
    assert known(workshop) == [("red", "trained"), ("green", "trained"), ("yellow", "trained")]
    assert [(e.name, e.merged_into) for e in live(workshop).former] == [("blue", 1)]
    task = read_task(workshop.folder(ended.id))
    labels = dict(zip(task.images.ids, task.images.labels.tolist(), strict=True))
    assert {labels[digest] for digest in exemplars["3"]} == {1}
    assert task.refreshed == {1: len(exemplars["3"])}
    assert answered(workshop, "blue", "linear") == answered(workshop, "red", "linear") == {"red"}
    now = memory(workshop.registry, live(workshop))["exemplars"]
    assert set(now) == {"1", "2", "4"}
    assert set(now["1"]) & set(exemplars["3"])
    assert answered(workshop, "blue") == {"red"}
    assert learn(workshop, "cyan").state == "done"
    assert read_task(workshop.folder(ended.id + 1)).refreshed == {}  # they were news once
    change(workshop, "blue", merged_into=None)
    assert known(workshop)[-1] == ("blue", "enrolled")
    assert answered(workshop, "blue") == {"blue"}
    rollout.start(workshop, ["blue"])
    ended = rollout.carry_all(workshop)[-1]
    assert ended.state == "done", ended.reason
    assert known(workshop)[-1] == ("blue", "trained")
    assert answered(workshop, "blue", "linear") == {"blue"}


def test_an_enrolled_class_that_was_merged_is_learned_with_its_target(workshop: Workshop) -> None:
    change(workshop, "blue", merged_into=1)
    started = rollout.start(workshop)
    assert started.class_ids == (1,)
    assert rollout.carry_all(workshop)[-1].state == "done"
    assert known(workshop) == [("red", "trained"), ("green", "trained")]
    assert answered(workshop, "blue", "linear") == {"red"}
    assert examples.pending(workshop, live(workshop)) == []


def test_a_frozen_backbones_sums_are_merged_too(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, method="ridge")
    assert learn(workshop, "blue", method="ridge").state == "done"
    change(workshop, "blue", merged_into=1)
    change(workshop, "green", retired=True)
    ended = learn(workshop, "yellow", method="ridge")
    assert ended.state == "done", ended.reason
    assert known(workshop) == [("red", "trained"), ("yellow", "trained")]
    assert answered(workshop, "blue", "linear") == answered(workshop, "red", "linear") == {"red"}


@pytest.mark.parametrize("at_step", ["train", "swap"])
def test_what_is_said_while_an_increment_runs_is_in_what_it_brings(at_step: str, workshop: Workshop) -> None:
    done: list[str] = []

    def say() -> None:
        if not done:
            done.append(at_step)
            change(plain, "red", name="crimson")
            change(plain, "green", retired=True)

    def train(folder: Path, look: Any) -> None:
        if at_step == "train":
            say()
        plain.train(folder, look)

    def swap(version: int, expected: int | None) -> None:
        if at_step == "swap":
            say()
        plain.swap(version, expected)

    plain = workshop
    ended = learn(replace(workshop, train=train, swap=swap), "yellow")
    assert (ended.state, ended.reason) == ("done", None)
    found = [(entry.name, entry.state, entry.retired) for entry in live(workshop).classes]
    assert found == [
        ("crimson", "trained", False), ("green", "trained", True), ("yellow", "trained", False),
        ("blue", "enrolled", False),
    ]  # fmt: skip
    assert "green" not in answered(workshop, "green", "linear") | answered(workshop, "green")
    assert meant(workshop, "red").name == "crimson"


def test_a_class_that_is_restored_while_an_increment_learns_without_it_is_enrolled_upon_what_that_brings(
    workshop: Workshop,
) -> None:
    change(workshop, "red", retired=True)

    def train(folder: Path, look: Any) -> None:
        change(workshop, "red", retired=False)
        workshop.train(folder, look)

    ended = learn(replace(workshop, train=train), "yellow")
    assert ended.state == "done", ended.reason
    assert sorted(known(workshop)) == [
        ("blue", "enrolled"), ("green", "trained"), ("red", "enrolled"), ("yellow", "trained")
    ]  # fmt: skip
    assert answered(workshop, "red") == {"red"}
    assert [c.name for c in examples.pending(workshop, live(workshop))] == ["red", "blue"]


def test_an_increment_that_would_lose_a_class_which_was_restored_meanwhile_fails_and_says_so(
    workshop: Workshop,
) -> None:
    change(workshop, "red", retired=True)

    def train(folder: Path, look: Any) -> None:
        change(workshop, "red", retired=False)
        of_red = [e.sha256 for e in examples.kept(workshop.store, [1])]
        examples.forget(workshop, of_red)
        workshop.train(folder, look)

    ended = learn(replace(workshop, train=train), "yellow")
    assert ended.state == "failed"
    assert "classes ['red'] were restored while increment" in (ended.reason or "")
    assert meant(workshop, "red").id == 1


def test_an_increment_of_a_class_that_is_retired_before_it_begins_says_so(workshop: Workshop) -> None:
    rollout.start(workshop, ["blue"])
    change(workshop, "blue", retired=True)
    ended = rollout.carry_all(workshop)[-1]
    assert (ended.state, "classes ['blue'] were retired since" in (ended.reason or "")) == ("failed", True)


def test_the_last_version_that_says_so_counts_for_a_report(workshop: Workshop, tmp_path: Path) -> None:
    from lifelist.deploy import report_page

    change(workshop, "red", name="crimson")
    change(workshop, "green", retired=True)
    ended = learn(workshop, "yellow")
    assert ended.state == "done", ended.reason
    text = report_page.write(workshop, ended.id, tmp_path / "page.html").read_text()
    assert "crimson" in text
    assert "yellow" in text


def test_names_of_one_moment(workshop: Workshop) -> None:
    change(workshop, "red", name="crimson")
    called = Names(workshop.store.classes(), live(workshop))
    assert called.ids == [1, 2, 3]
    assert called.meant("green") == called.meant(2) == called.meant("2") == KnownClass(2, "green")
    with pytest.raises(Missing, match=r"'crimsn'.*Did you mean crimson\?"):
        called.meant("crimsn")
    with pytest.raises(Missing, match="no class has id 9; ids go up to 3"):
        called.known(9)
    assert json.dumps(changes.describe(workshop, 1))
