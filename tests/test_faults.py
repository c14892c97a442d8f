"""Processes that are really killed (SIGKILL), at the worst moments, on the way from examples to live.

Those that carry a rollout here run without Ray, so that each of their many deaths takes a second; a server with all of
Ray around it is killed in test_faults_ray.py.
"""

import multiprocessing
import os
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from parts_rollout import NAMES, add, learn, pictures, prepared, settings

from lifelist.deploy import asked, base, examples, rollout
from lifelist.deploy.records import Rollout
from lifelist.deploy.settings import GateCheck, Settings
from lifelist.deploy.sources import resolve
from lifelist.deploy.store import Store
from lifelist.deploy.workshop import Workshop, open_workshop
from lifelist.exporter import storage
from lifelist.exporter.errors import Conflict, Refused
from lifelist.exporter.registry import Registry

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["parts_rollout", "lifelist.deploy.candidate", "lifelist.deploy.material"])

REFUSING = (GateCheck(check="new_class_accuracy", limit=1.01),)
GOOD_WAY = ("queued", "intake", "train", "export", "parity", "gate", "quantise", "publish", "swap", "tidy")
BAD_WAY = ("gate", "keep")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies(work: Callable[..., None], *arguments: Any) -> None:
    """Run `work` in a process of its own, which does not survive it."""
    assert _exit_code(work, *arguments) == -signal.SIGKILL


def lives(work: Callable[..., None], *arguments: Any) -> None:
    """Run `work` in a process of its own, to its end."""
    assert _exit_code(work, *arguments) == 0


def _exit_code(work: Callable[..., None], *arguments: Any) -> int | None:
    process = forks.Process(target=work, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def carry(home: Path, gate: tuple[GateCheck, ...]) -> None:
    rollout.carry_all(open_workshop(settings(home, gate=gate)))


def carry_and_die(home: Path, gate: tuple[GateCheck, ...], state: str, when: str) -> None:
    """Carry the open rollout; die when the step of `state` has done its work, `before` or `after` that is recorded."""
    move = Store.move

    def moved(self: Store, taken: Rollout, *arguments: Any, **named: Any) -> Rollout:
        if (taken.state, when) == (state, "before"):
            die()
        result = move(self, taken, *arguments, **named)
        if (taken.state, when) == (state, "after"):
            die()
        return result

    Store.move = moved  # type: ignore[method-assign]
    carry(home, gate)


def sound(workshop: Workshop) -> list[int]:
    """The numbers of all versions, each of which is whole; live is one of them."""
    numbers = workshop.registry.versions()
    assert [workshop.registry.verify(number) for number in numbers] == [[]] * len(numbers)
    live = workshop.registry.ref("live")
    assert live is not None
    assert live.version in numbers
    return numbers


@pytest.mark.parametrize(
    ("state", "way"), [*((state, "good") for state in GOOD_WAY), *((state, "bad") for state in BAD_WAY)]
)
def test_the_carrier_is_killed_before_and_after_a_step_is_recorded(tmp_path: Path, state: str, way: str) -> None:
    gate = REFUSING if way == "bad" else settings(tmp_path).gate
    workshop = prepared(tmp_path, gate=gate)
    add(workshop, ["blue"])
    accepted = {example.sha256 for example in examples.kept(workshop.store)}
    started = rollout.start(workshop)
    for when in ("before", "after"):
        dies(carry_and_die, tmp_path, gate, state, when)
        sound(workshop)
        assert not workshop.store.rollout(started.id).ended or (state, when) in (("tidy", "after"), ("keep", "after"))
    lives(carry, tmp_path, gate)
    ended = workshop.store.rollout(started.id)
    assert ended.state == ("rejected" if way == "bad" else "done"), ended.reason
    assert sound(workshop) == [1, 2]  # nothing was published twice
    live = workshop.live
    assert live is not None
    assert live.version == (1 if way == "bad" else 2)
    attempts = {step.state: step.attempts for step in workshop.store.steps(started.id)}
    assert attempts.pop(state, 2) == 2
    assert set(attempts.values()) == {1}  # it went on from the last finished step
    assert not workshop.folder(started.id).exists()
    kept = {example.sha256 for example in examples.kept(workshop.store)}
    assert kept == accepted
    assert all(workshop.images.has(sha256) for sha256 in kept)


def test_the_next_increment_works_after_a_carrier_was_killed(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue"])
    rollout.start(workshop)
    dies(carry_and_die, tmp_path, workshop.settings.gate, "swap", "before")
    ended = learn(workshop, "yellow")
    assert [r.state for r in workshop.store.rollouts()] == ["done", "done", "done"]
    assert ended.facts["teacher"] == 2


def train_and_die(home: Path, epoch: int) -> None:
    """Carry; die in training, when `epoch` epochs have been told, within the next."""
    told = []

    def look(store: Store, rollout_id: int) -> Rollout:
        told.append(1)
        if len(told) == epoch + 2:  # before the first, and after each
            die()
        return found(store, rollout_id)

    found = Store.rollout
    Store.rollout = look  # type: ignore[method-assign]
    carry(home, settings(home).gate)


def test_a_trainer_killed_twice_goes_on_from_its_epoch_and_tells_each_line_once(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue"])
    started = rollout.start(workshop)
    dies(train_and_die, tmp_path, 3)
    dies(train_and_die, tmp_path, 2)
    assert workshop.store.rollout(started.id).state == "train"
    lives(carry, tmp_path, workshop.settings.gate)
    assert workshop.store.rollout(started.id).state == "done"
    epochs = [event.data["epoch"] for event in workshop.store.events(started.id) if event.kind == "epoch"]
    assert epochs == sorted(epochs)  # never back to the first
    assert set(epochs) == set(range(1, 9))
    assert len(epochs) <= 8 + 2  # an epoch that was told, but not yet on disk, is done and told again
    assert {step.state: step.attempts for step in workshop.store.steps(started.id)}["train"] == 3


def publish_and_die(home: Path) -> None:
    """Carry; die when all files of the new version are stored, and its manifest is half-written."""
    create = storage.Folder.create

    def created(self: storage.Folder, path: str, data: bytes) -> bool:
        if path.startswith("versions/") and self.root == home / "registry":
            (self.root / storage.SCRATCH).mkdir(exist_ok=True)
            (self.root / storage.SCRATCH / "half").write_bytes(data[: len(data) // 2])
            die()
        return create(self, path, data)

    storage.Folder.create = created  # type: ignore[method-assign]
    carry(home, settings(home).gate)


def test_a_writer_killed_in_mid_publish_leaves_no_half_version(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue"])
    rollout.start(workshop)
    dies(publish_and_die, tmp_path)
    assert sound(workshop) == [1]
    lives(carry, tmp_path, workshop.settings.gate)
    assert sound(workshop) == [1, 2]
    assert workshop.live == workshop.registry.manifest(2)


def add_and_die(home: Path, when: str) -> None:
    """Add five pictures; die when their bytes are stored, `before` or `after` their rows are."""
    accept = examples._accept

    def accepted(*arguments: Any) -> list[examples.ExampleResult]:
        if when == "before":
            die()
        accept(*arguments)
        die()
        return []

    examples._accept = accepted
    examples.add(open_workshop(settings(home)), "red", pictures("red", 5))


def test_images_are_accepted_whole_or_not_at_all_and_sending_again_completes(tmp_path: Path) -> None:
    workshop = open_workshop(settings(tmp_path))
    dies(add_and_die, tmp_path, "before")
    assert examples.kept(workshop.store) == []
    assert workshop.store.classes() == []
    dies(add_and_die, tmp_path, "after")
    kept = examples.kept(workshop.store)
    assert len(kept) == 5
    assert all(workshop.images.get(example.sha256) for example in kept)
    assert {result.status for result in examples.add(workshop, "red", pictures("red", 5))} == {"duplicate"}


def base_and_die(home: Path, data: Path, after: int) -> None:
    """Make a base; die at its so-manieth message: in its examples, or in training."""
    told = []

    def tell(kind: str, facts: Any) -> None:
        told.append(kind)
        if len(told) == after:
            die()

    base.make_base(settings(home), data, tell)


def make_base(home: Path, data: Path) -> None:
    base.make_base(settings(home), data)


def folders(data: Path, names: Sequence[str]) -> Path:
    """`data`, with a folder of pictures for each class."""
    for name in names:
        (data / name).mkdir(parents=True)
        for file, content in pictures(name, 12):
            (data / name / file).write_bytes(content)
    return data


def test_a_base_killed_among_its_examples_and_in_training_goes_on(tmp_path: Path) -> None:
    folders(tmp_path / "data", NAMES[:3])
    home = tmp_path / "home"
    dies(base_and_die, home, tmp_path / "data", 2)
    dies(base_and_die, home, tmp_path / "data", 3 + 3 + 4)  # 3 classes, 3 states, the fourth epoch
    lives(make_base, home, tmp_path / "data")
    registry, store = Registry(settings(home).registry_url), Store(settings(home).database_url)
    assert registry.versions() == [1]
    assert [c.name for c in registry.manifest(1).classes] == ["blue", "green", "red"]
    assert [r.state for r in store.rollouts()] == ["done"]
    epochs = [event.data["epoch"] for event in store.events() if event.kind == "epoch"]
    assert epochs == sorted(epochs)
    assert len(epochs) <= 8 + 1


def test_another_base_is_not_taken_for_the_continuation_of_one_that_was_killed_in_training(tmp_path: Path) -> None:
    first, second = folders(tmp_path / "first", NAMES[:2]), folders(tmp_path / "second", NAMES[2:4])
    home = tmp_path / "home"
    dies(base_and_die, home, first, 2 + 3 + 4)  # 2 classes, 3 states, the fourth epoch
    with pytest.raises(
        Conflict, match=f"unfinished base of {first}, and this asks for the images of {second}"
    ) as other:
        base.make_base(settings(home), second)
    assert f"`lifelist base {first} --training.network small " in str(other.value)
    assert f"remove {home} with all that is in it" in str(other.value)
    with pytest.raises(Conflict, match=r"asks for training\.method 'wa', training\.epochs 9\. ") as other:
        base.make_base(settings(home, method="wa", epochs=9), first)
    assert "--training.method bic" in str(other.value)
    assert "--training.epochs 8 " in str(other.value)
    assert [c.name for c in base.make_base(settings(home), first).classes] == ["green", "red"]


def test_the_images_of_a_base_that_was_killed_among_them_are_not_mixed_into_another(tmp_path: Path) -> None:
    first, second = folders(tmp_path / "first", NAMES[:2]), folders(tmp_path / "second", NAMES[2:4])
    home = tmp_path / "home"
    dies(base_and_die, home, first, 1)
    with pytest.raises(Conflict, match=f"unfinished base of {first}"):
        base.make_base(settings(home), second)
    assert len(base.make_base(settings(home, epochs=9), first).classes) == 2  # nothing was trained with 8 yet


def test_what_a_conflicting_base_says_to_type_goes_on_with_the_one_that_was_begun(tmp_path: Path) -> None:
    data, home = folders(tmp_path / "my data", NAMES[:2]), tmp_path / "home"
    begun = settings(home, method="wa")
    workshop = open_workshop(begun)
    asked.write(home, asked.asked_now(begun, data))
    add(workshop, NAMES[:2])
    rollout.start(workshop)
    with pytest.raises(Conflict) as conflict:
        base.make_base(Settings(home=home), tmp_path)
    line = shlex.split(str(conflict.value).split("`")[1])
    found = resolve(line[1:], {}, tmp_path)
    assert found.rest == ("base", str(data))
    assert (found.settings.home, found.settings.training) == (home, begun.training)


def test_a_refused_base_says_what_helps_and_is_tried_again_with_that(tmp_path: Path) -> None:
    data, home = folders(tmp_path / "data", NAMES[:2]), tmp_path / "home"
    with pytest.raises(
        Refused, match=r"below 1\.01: class .* gate images\. To get through: train longer \(--training\."
    ):
        base.make_base(settings(home, gate=REFUSING), data)
    folders(data, NAMES[2:3])
    assert len(base.make_base(settings(home, epochs=9), data).classes) == 3
