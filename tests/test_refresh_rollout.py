"""New images of a class that is trained already: they wait, are learned by an increment, and are never lost."""

import json
from pathlib import Path

import pytest
from parts_rollout import LENIENT, add, learn, pictures, prepared

from lifelist.deploy import enrol, examples, report_page, rollout
from lifelist.deploy.records import Rollout
from lifelist.deploy.settings import ExampleOptions
from lifelist.deploy.workshop import Workshop, memory
from lifelist.exporter.errors import Conflict
from lifelist.training.job import read_task


def send(workshop: Workshop, name: str, count: int = 10, first: int = 50) -> list[str]:
    """Further pictures of a class; their ids."""
    found = examples.add(workshop, name, pictures(name, count, first))
    assert {result.status for result in found} == {"accepted"}
    return [result.sha256 for result in found]


def waiting(workshop: Workshop) -> list[str]:
    return [known.name for known in examples.pending(workshop, workshop.live)]


def carried(workshop: Workshop) -> Rollout:
    return rollout.carry_all(workshop)[-1]


def remembered(workshop: Workshop) -> set[str]:
    live = workshop.live
    assert live is not None
    lists_of = memory(workshop.registry, live).values()
    return {digest for lists in lists_of for ids in lists.values() for digest in ids}


def test_new_images_of_a_trained_class_wait_and_are_learned_without_a_new_class(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, examples=ExampleOptions(keep=True))
    assert waiting(workshop) == []
    sent = send(workshop, "red")
    assert waiting(workshop) == ["red"]
    assert enrol.enrol(workshop) is None  # it has a row already
    started = rollout.start(workshop)
    assert waiting(workshop) == []
    with pytest.raises(Conflict, match=r"classes \[1\] are already in increment 2"):
        rollout.start(workshop, ["red"])
    ended = carried(workshop)
    assert (ended.id, ended.state, ended.reason) == (started.id, "done", None)
    live = workshop.live
    assert live is not None
    assert [(c.name, c.increment) for c in live.classes] == [("red", 0), ("green", 0)]
    assert (live.version, live.kind, live.bias) == (2, "increment", None)
    task = read_task(workshop.folder(ended.id))
    assert (task.new, task.refreshed, task.heads) == ((), {1: 7}, (2,))
    assert set(sent) <= set(task.images.ids)
    assert len(set(task.images.ids)) == len(task.images.ids)
    checks = {check.name: check.message for check in live.gate}
    assert checks["new_class_accuracy"] == "no class is new"
    assert checks["classes"] == "2 classes: 2 of live and 0 new"
    assert waiting(workshop) == []
    page = report_page.write(workshop, ended.id, tmp_path / "page.html")
    assert "red" in page.read_text()
    with pytest.raises(Conflict, match=r"\['red'\] are trained already, in version 2, and have no new images"):
        rollout.start(workshop, ["red"])


def test_new_images_of_a_trained_class_are_learned_together_with_a_new_class(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    sent = send(workshop, "red")
    add(workshop, ["blue"])
    assert waiting(workshop) == ["red", "blue"]
    rollout.start(workshop)
    ended = carried(workshop)
    assert ended.state == "done", ended.reason
    live = workshop.live
    assert live is not None
    assert [(c.name, c.increment) for c in live.classes] == [("red", 0), ("green", 0), ("blue", 1)]
    assert set(sent) & set(json.loads(workshop.registry.read(live, "exemplars.json"))["exemplars"]["1"])


def test_images_that_an_increment_of_others_did_not_take_in_are_kept_and_wait(tmp_path: Path) -> None:
    """What is tidied up is what was learned: images of a trained class that came meanwhile are not lost."""
    workshop = prepared(tmp_path, memory_total=12)
    sent = send(workshop, "red")
    assert learn(workshop, "blue").state == "done"
    assert set(sent) <= {example.sha256 for example in examples.kept(workshop.store)}
    assert waiting(workshop) == ["red"]
    rollout.start(workshop, ["red"])
    assert carried(workshop).state == "done"
    kept = {e.sha256 for e in examples.kept(workshop.store) if e.role != "gate"}
    assert kept == remembered(workshop)  # the rest was deleted
    assert waiting(workshop) == []


def test_images_wait_still_after_an_increment_that_was_cancelled_or_rejected(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, gate=[*LENIENT[:1], {"check": "old_accuracy", "limit": 0.0, "min_images": 1000}])
    send(workshop, "red")
    workshop.store.request_cancel(rollout.start(workshop).id)
    assert waiting(workshop) == ["red"]
    rollout.start(workshop)
    ended = carried(workshop)
    assert ended.state == "rejected", ended.reason
    assert waiting(workshop) == ["red"]
    assert ended.version is not None
    workshop.swap(ended.version, 1)  # by force
    assert waiting(workshop) == []


def test_after_a_rollback_images_wait_again_that_the_older_version_has_not_seen(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    sent = send(workshop, "red")
    rollout.start(workshop)
    assert carried(workshop).state == "done"
    assert waiting(workshop) == []
    live = workshop.registry.ref("live")
    assert live is not None
    workshop.swap(1, live.generation)
    assert waiting(workshop) == ["red"]
    left = {e.sha256 for e in examples.waiting(workshop, workshop.live) if e.role == "training"}
    assert left
    assert left <= set(sent)
    rollout.start(workshop)
    assert carried(workshop).state == "done"
    assert waiting(workshop) == []


def test_with_everything_kept_an_image_that_was_learned_once_is_no_news_to_later_versions(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, examples=ExampleOptions(keep=True), memory_total=12)
    assert learn(workshop, "blue").state == "done"
    assert learn(workshop, "yellow").state == "done"
    assert waiting(workshop) == []


def test_a_trained_class_takes_no_images_while_it_is_learned_anew(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    send(workshop, "red")
    queued = rollout.start(workshop)
    send(workshop, "red", 2, first=70)  # in time
    workshop.store.move(queued, "intake")
    with pytest.raises(Conflict, match=r"'red' is being learned by increment 2 \(intake\)"):
        examples.add(workshop, "red", pictures("red", 1, first=80))


def test_an_increment_whose_images_live_has_learned_meanwhile_fails_and_says_so(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue"])
    rollout.start(workshop)
    assert carried(workshop).state == "done"
    workshop.swap(1, 2)
    started = rollout.start(workshop, ["blue"])
    workshop.swap(2, 3)
    ended = carried(workshop)
    assert (ended.id, ended.state) == (started.id, "failed")
    assert "['blue'] were trained by another increment meanwhile: version 2 has learned" in (ended.reason or "")


def test_of_a_version_without_a_list_of_what_it_learned_all_but_its_memory_waits(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    live = workshop.live
    assert live is not None
    files = tuple(entry for entry in live.files if entry.name != "learned.json")
    older = workshop.registry.publish(live, {}, reuse=files)
    workshop.swap(older.version, 1)
    assert waiting(workshop) == []  # what its memory did not take is deleted
    send(workshop, "green")
    assert waiting(workshop) == ["green"]
