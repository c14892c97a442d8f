"""From examples to live, and every other way that an increment ends: the whole path, with real training."""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts_postgres import new_database, postgres
from parts_rollout import NAMES, add, learn, pictures, prepared, settings

from lifelist.deploy import base, enrol, examples, rollout, steps
from lifelist.deploy.cli import main
from lifelist.deploy.records import Rollout
from lifelist.deploy.settings import ExampleOptions
from lifelist.deploy.store import Store
from lifelist.deploy.workshop import Look, Workshop, open_workshop, train_here
from lifelist.exporter import session
from lifelist.exporter.errors import BadSetting, Conflict, Missing, Refused, Unavailable
from lifelist.exporter.preprocess import decode
from lifelist.training.job import read_task


def states(store: Store, ended: Rollout) -> list[str]:
    return [event.data["state"] for event in store.events(ended.id) if event.kind in ("state", "ended")]


def answered(workshop: Workshop, name: str) -> list[str]:
    """What live answers by default for five pictures of a class that it has never seen."""
    live = workshop.live
    assert live is not None
    loaded = session.load(workshop.registry, live.version)
    images = np.stack([decode(data, live.preprocess) for _, data in pictures(name, 5, first=100)])
    logits, embedding = loaded.run(images)
    ranked = loaded.linear(logits, 1) if live.default_answer == "linear" else loaded.nearest_mean(embedding, 1)
    names = {entry.id: entry.name for entry in live.classes}
    return [names[best[0][0]] for best in ranked]


def interrupted(workshop: Workshop, step: str, act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do `act` when the step begins, the first time."""
    acts = iter([act])
    original = rollout.STEPS[step]

    def run(workshop: Workshop, taken: Rollout) -> steps.Facts:
        for waiting in acts:
            waiting()
        return original.run(workshop, taken)

    monkeypatch.setitem(rollout.STEPS, step, replace(original, run=run))


def test_a_new_class_goes_from_examples_to_live(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue"])
    enrolled = enrol.enrol(workshop)
    assert enrolled is not None
    assert answered(workshop, "blue") == ["blue"] * 5
    ended = learn(workshop, "blue")
    assert (ended.state, ended.version, ended.reason) == ("done", 3, None)
    live = workshop.live
    assert live is not None
    assert (live.version, live.parent, live.kind, live.default_answer) == (3, 2, "increment", "linear")
    assert [(c.name, c.state, c.increment) for c in live.classes] == [
        ("red", "trained", 0), ("green", "trained", 0), ("blue", "trained", 1)
    ]  # fmt: skip
    assert answered(workshop, "blue") == ["blue"] * 5
    assert answered(workshop, "red") == ["red"] * 5
    walked = ["queued", "intake", "train", "export", "parity", "gate", "quantise", "publish", "swap", "tidy", "done"]
    assert states(workshop.store, ended) == walked
    assert [step.state for step in workshop.store.steps(ended.id)] == walked[1:-1]
    assert ended.facts["teacher"] == 2
    assert ended.facts["teacher_sha256"] == enrolled.file("checkpoint.safetensors").sha256
    epochs = [event.data["epoch"] for event in workshop.store.events(ended.id) if event.kind == "epoch"]
    assert epochs == list(range(1, 9))
    assert workshop.registry.verify(3) == []
    assert not workshop.folder(ended.id).exists()


def test_the_way_to_live_is_the_same_on_postgresql(tmp_path: Path) -> None:
    with postgres() as place:
        workshop = open_workshop(settings(tmp_path, database=new_database(place)))
        assert learn(workshop, "red", "green").state == "done"
        add(workshop, ["blue"])
        assert enrol.enrol(workshop) is not None
        ended = learn(workshop, "blue")
        workshop.store.close()
    assert ended.state == "done", ended.reason
    assert answered(workshop, "blue") == ["blue"] * 5


def test_five_uneven_increments_in_a_row_and_no_image_ever_plays_two_roles(tmp_path: Path) -> None:
    """methods.md B4, B5: ids of every increment's images are kept, and compared over all of them."""
    workshop = prepared(tmp_path, examples=ExampleOptions(keep=True), memory_total=100)
    names, first = iter(NAMES[2:]), {e.sha256: e.role for e in examples.kept(workshop.store)}
    played: dict[str, set[str]] = defaultdict(set)
    for number, count in enumerate((3, 1, 2, 1, 1), start=1):
        new = list(itertools.islice(names, count))
        add(workshop, new)
        enrol.enrol(workshop)
        ended = learn(workshop, *new)
        assert ended.state == "done", ended.reason
        live = workshop.live
        assert live is not None
        assert [c.name for c in live.classes if c.increment == number] == new
        assert {c.state for c in live.classes} == {"trained"}
        task = read_task(workshop.folder(ended.id))
        for sha256, role in zip(task.images.ids, task.roles.tolist(), strict=True):
            played[sha256].add(examples.ROLES[role])
    stored = {example.sha256: example.role for example in examples.kept(workshop.store)}
    assert stored.items() >= first.items()
    assert played == {sha256: {stored[sha256]} for sha256 in played}
    assert len(live.classes) == len(NAMES)
    assert live.bias is not None
    assert (live.bias.first_row, live.bias.last_row) == (9, 10)
    assert {frozenset(roles) for roles in played.values()} == {frozenset([role]) for role in examples.ROLES}


def test_after_promotion_only_exemplars_holdout_and_gate_images_stay(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, memory_total=12)  # four of each class, one of them hold-out
    ended = learn(workshop, "blue")
    assert ended.state == "done", ended.reason
    live = workshop.live
    assert live is not None
    memory = json.loads(workshop.registry.read(live, "exemplars.json"))
    assert {key: [len(ids) for ids in lists.values()] for key, lists in memory.items()} == {
        "exemplars": [3, 3, 3], "holdout": [1, 1, 1]
    }  # fmt: skip
    remembered = {sha256 for lists in memory.values() for ids in lists.values() for sha256 in ids}
    kept = examples.kept(workshop.store)
    assert {e.sha256 for e in kept} == remembered | {e.sha256 for e in kept if e.role == "gate"}
    assert sum(e.role == "gate" for e in kept) == 12
    assert workshop.images.digests() == sorted(e.sha256 for e in kept)
    assert ended.facts["deleted"] > 0
    assert learn(workshop, "yellow").state == "done"  # what is left is enough for the next


def test_later_increments_wait_in_the_queue_and_are_carried_in_order(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue", "yellow"])
    first, second = rollout.start(workshop, ["yellow"]), rollout.start(workshop, ["blue"])
    assert [r.state for r in (first, second)] == ["queued", "queued"]
    ended = rollout.carry_all(workshop)
    assert [(r.id, r.state) for r in ended] == [(first.id, "done"), (second.id, "done")]
    live = workshop.live
    assert live is not None
    assert [(c.id, c.name, c.increment) for c in live.classes[2:]] == [
        (4, "yellow", 1),
        (3, "blue", 2),
    ]  # rows by arrival in training


def test_the_same_key_starts_one_increment_and_cannot_be_used_for_another(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue", "yellow"])
    first = rollout.start(workshop, None, None, "monday")
    assert rollout.start(workshop, None, None, "monday") == first  # nothing is pending any more, and it is no error
    assert rollout.start(workshop, ["yellow", 3], "bic", "monday") == first
    for classes, method in ((["blue"], None), (None, "wa")):
        with pytest.raises(Conflict, match=r"'monday' was used for increment 2, of classes \[3, 4\] by method 'bic'"):
            rollout.start(workshop, classes, method, "monday")
    assert workshop.store.request_cancel(first.id).state == "cancelled"
    assert rollout.start(workshop, None, None, "monday").state == "cancelled"  # whatever became of it
    assert rollout.start(workshop, None, None, "tuesday").id == first.id + 1


def test_what_cannot_be_learned_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    with pytest.raises(Conflict, match="no class waits to be learned: add examples"):
        rollout.start(workshop)
    with pytest.raises(Conflict, match=r"\['red'\] are trained already, in version 1"):
        rollout.start(workshop, ["red"])
    with pytest.raises(Missing, match="'bleu'"):
        rollout.start(workshop, ["bleu"])
    with pytest.raises(BadSetting, match="method 'bik' does not exist; there are bic"):
        rollout.start(workshop, None, "bik")
    assert len(workshop.store.rollouts()) == 1


@pytest.mark.parametrize("state", ["intake", "export", "publish"])
def test_an_increment_is_cancelled_before_it_goes_live_and_live_does_not_move(
    tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = prepared(tmp_path)
    before = workshop.registry.ref("live")
    interrupted(workshop, state, lambda: workshop.store.request_cancel(2), monkeypatch)
    ended = learn(workshop, "blue")
    assert (ended.state, ended.reason) == ("cancelled", f"cancelled in state {state!r}")
    assert workshop.registry.ref("live") == before
    assert not workshop.folder(ended.id).exists()
    assert learn(workshop, "blue").state == "done"  # the images are still there


def test_cancelling_ends_training_after_the_epoch(tmp_path: Path) -> None:
    epochs: list[int] = []

    def train(folder: Path, look: Look) -> None:
        def counted() -> None:
            epochs.append(1)
            if len(epochs) == 2:
                workshop.store.request_cancel(2)
            look()

        train_here(folder, counted)

    workshop = replace(prepared(tmp_path, epochs=50), train=train)
    ended = learn(workshop, "blue")
    assert ended.state == "cancelled"
    assert ended.reason == "increment 2 was cancelled in training"
    assert len(epochs) == 2
    assert [s.state for s in workshop.store.steps(2)] == ["intake", "train"]


def test_cancelling_in_training_ends_the_trainer_that_a_killed_carrier_left(tmp_path: Path) -> None:
    ended: list[str] = []

    def killed(folder: Path, look: Look) -> None:
        raise KeyboardInterrupt

    shop = prepared(tmp_path)
    shop = replace(shop, train=killed, end_training=lambda: ended.append(shop.store.rollout(2).state))
    add(shop, ["blue"])
    rollout.start(shop)
    with pytest.raises(KeyboardInterrupt):
        rollout.carry_all(shop)
    assert ended == []  # it trains on, for whoever carries the increment next
    shop.store.request_cancel(2)
    assert rollout.carry_all(shop)[-1].state == "cancelled"
    assert ended == ["train"]  # before the state moved: a kill in between leaves none


def test_a_class_enrolled_while_another_goes_live_is_carried_into_the_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = prepared(tmp_path)

    def enrol_yellow() -> None:
        add(workshop, ["yellow"])
        assert enrol.enrol(workshop) is not None

    interrupted(workshop, "swap", enrol_yellow, monkeypatch)
    ended = learn(workshop, "blue")
    assert ended.state == "done", ended.reason
    assert states(workshop.store, ended)[-6:] == ["publish", "swap", "publish", "swap", "tidy", "done"]
    live = workshop.live
    assert live is not None
    assert live.version == ended.version
    assert [(c.name, c.state, c.increment) for c in live.classes[2:]] == [
        ("blue", "trained", 1),
        ("yellow", "enrolled", 2),
    ]
    assert live.default_answer == "nearest_mean"
    loaded = session.load(workshop.registry, live.version)  # the mean is the new model's, not what was enrolled
    images = examples.pixels(workshop, enrol.sources(workshop.registry, live)[4], live.preprocess)
    np.testing.assert_allclose(loaded.means.means()[3], enrol.class_mean(loaded, images, mirrored=False), atol=1e-5)
    assert answered(workshop, "yellow") == ["yellow"] * 5


@pytest.mark.parametrize("state", ["publish", "swap"])
def test_if_live_is_another_model_meanwhile_the_increment_ends_and_says_so(
    tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = prepared(tmp_path)
    assert learn(workshop, "blue").state == "done"

    def roll_back() -> None:
        live, previous = workshop.registry.ref("live"), workshop.registry.ref("previous")
        assert live is not None
        assert previous is not None
        workshop.swap(previous.version, live.generation)

    interrupted(workshop, state, roll_back, monkeypatch)
    ended = learn(workshop, "yellow")
    assert ended.state == "failed"
    assert "learned from version 2, and live is now version 1, of another model" in (ended.reason or "")
    assert workshop.live == workshop.registry.manifest(1)
    assert [known.name for known in examples.pending(workshop, workshop.live)] == ["blue", "yellow"]
    again = learn(workshop, "yellow")  # from what is live now
    assert (again.state, again.facts["teacher"]) == ("done", 1)


def test_who_rolls_back_while_it_goes_live_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = prepared(tmp_path)
    promote = workshop.swap

    def swap(version: int, expected: int | None) -> None:
        promote(version, expected)
        promote(1, (expected or 0) + 1)  # an operator
        raise ConnectionError("lost after it was done")

    workshop = replace(workshop, swap=swap)
    add(workshop, ["blue"])
    started = rollout.start(workshop)
    with pytest.raises(ConnectionError):
        rollout.carry_all(workshop)
    assert workshop.store.rollout(started.id).state == "swap"
    ended = rollout.carry_all(replace(workshop, swap=promote))[-1]
    assert ended.state == "failed"
    assert "moved away from version 1 and back while increment 2 was going live; promote version 2" in (
        ended.reason or ""
    )


def test_what_time_may_cure_is_tried_again_and_at_last_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = prepared(tmp_path)
    tries: list[int] = []

    def swap(version: int, expected: int | None) -> None:
        tries.append(version)
        raise Unavailable("no replica lives")

    add(workshop, ["blue"])
    rollout.start(workshop)
    broken = replace(workshop, swap=swap)
    for _ in range(rollout.MOST_FAILURES - 1):
        with pytest.raises(Unavailable):
            rollout.carry_all(broken)
    ended = rollout.carry_all(broken)[-1]
    assert ended.state == "failed"
    assert ended.reason == "step 'swap' failed 5 times, at last with Unavailable: no replica lives"
    assert tries == [2] * 5  # the same version each time: nothing is published twice
    assert workshop.store.steps(ended.id)[-1].attempts == 5


def test_kills_do_not_count_as_failures_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: Path, look: Look) -> None:
        raise KeyboardInterrupt

    def fails(folder: Path, look: Look) -> None:
        raise ConnectionError("lost")

    workshop = prepared(tmp_path)
    add(workshop, ["blue"])
    rollout.start(workshop)
    for _ in range(7):
        with pytest.raises(KeyboardInterrupt):
            rollout.carry_all(replace(workshop, train=killed))
    for _ in range(rollout.MOST_FAILURES - 1):
        with pytest.raises(ConnectionError):
            rollout.carry_all(replace(workshop, train=fails))
    ended = rollout.carry_all(replace(workshop, train=fails))[-1]
    assert ended.reason == "step 'train' failed 5 times, at last with ConnectionError: lost"


def test_tidying_up_that_fails_is_told_and_the_increment_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(workshop: Workshop, taken: Rollout) -> steps.Facts:
        raise Missing("no blob")

    workshop = prepared(tmp_path)
    tidy = rollout.STEPS["tidy"]
    monkeypatch.setitem(rollout.STEPS, "tidy", replace(tidy, run=broken))
    ended = learn(workshop, "blue")
    assert (ended.state, ended.reason, ended.version) == ("done", None, 2)
    told = [event.data for event in workshop.store.events(ended.id) if event.kind == "step-failed"]
    assert told == [{"state": "tidy", "reason": "in step 'tidy': no blob"}]
    monkeypatch.setitem(rollout.STEPS, "tidy", tidy)
    assert learn(workshop, "yellow").state == "done"


def test_rolled_back_to_a_version_whose_exemplars_are_gone_the_rest_of_them_is_used(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, memory_total=12)
    before = json.loads(workshop.registry.read(workshop.registry.manifest(1), "exemplars.json"))
    assert learn(workshop, "blue").state == "done"
    live = workshop.registry.ref("live")
    assert live is not None
    workshop.swap(1, live.generation)
    ended = learn(workshop, "yellow")
    assert ended.state == "done", ended.reason
    assert ended.facts["images"]["training"] < sum(map(len, before["exemplars"].values())) + 14


def test_a_rejected_version_can_be_promoted_by_force_and_learned_from(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, gate=({"check": "new_class_accuracy", "limit": 1.01},))
    ended = learn(workshop, "blue")
    assert ended.state == "rejected"
    assert workshop.live == workshop.registry.manifest(1)
    assert ended.version is not None
    workshop.swap(ended.version, 1)
    again = learn(prepared_again(workshop), "yellow")
    assert (again.state, again.facts["teacher"]) == ("done", ended.version)


def prepared_again(workshop: Workshop) -> Workshop:
    """The same home under lenient settings."""
    return replace(workshop, settings=settings(workshop.settings.home))


def test_a_base_is_made_by_the_same_steps_and_only_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in NAMES[:2]:
        (data / name).mkdir(parents=True)
        for file, content in pictures(name, 12):
            (data / name / file).write_bytes(content)
    (data / "red" / "broken.png").write_bytes(b"?")
    told = []
    made = base.make_base(settings(tmp_path / "home"), data, lambda kind, facts: told.append((kind, facts)))
    assert (made.version, made.parent, [c.name for c in made.classes]) == (1, None, ["green", "red"])
    assert [facts["added"] for kind, facts in told if kind == "examples"] == [12, 12]
    assert [list(facts["refused"]) for kind, facts in told if kind == "examples"][1] == [
        str(data / "red" / "broken.png")
    ]
    assert [facts["epoch"] for kind, facts in told if kind == "epoch"] == list(range(1, 9))
    assert told[-1] == ("ended", {"state": "done", "reason": None, "version": 1})
    with pytest.raises(Conflict, match="version 1 is live already"):
        base.make_base(settings(tmp_path / "home"), data)


def test_a_base_that_the_gate_refuses_says_why_and_is_not_live(tmp_path: Path) -> None:
    for name in NAMES[:2]:
        (tmp_path / "data" / name).mkdir(parents=True)
        for file, content in pictures(name, 12):
            (tmp_path / "data" / name / file).write_bytes(content)
    refusing = settings(tmp_path / "home", gate=({"check": "new_class_accuracy", "limit": 1.01},))
    with pytest.raises(Refused, match=r"version 1 refused: new-class accuracy below 1\.01"):
        base.make_base(refusing, tmp_path / "data")
    made = base.make_base(settings(tmp_path / "home"), tmp_path / "data")  # the images are there; it is tried again
    assert made.version == 2


def test_a_base_of_one_class_is_told_as_one_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "red").mkdir(parents=True)
    for file, content in pictures("red", 12):
        (tmp_path / "data" / "red" / file).write_bytes(content)
    small = ["--training.network=small", "--training.image_size=8", "--training.epochs=1", "--training.batch_size=4"]
    assert main(["base", "data", *small]) == 0
    assert capsys.readouterr().out.startswith("version 1 is live: 1 class;")
