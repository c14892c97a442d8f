"""What an operator takes out of live stays out, until somebody asks for it again."""

from dataclasses import replace
from pathlib import Path

import pytest
from parts_rollout import add, learn, pictures, prepared

from lifelist.deploy import changes, enrol, examples, rollout, withdrawn
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import Conflict, Unavailable


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Version 1 knows red and green; version 2, live, has blue (id 3) enrolled."""
    made = prepared(tmp_path)
    add(made, ["blue"])
    assert enrol.enrol(made) is not None
    return made


def known(workshop: Workshop) -> list[str]:
    """The classes that live knows."""
    live = workshop.live
    assert live is not None
    return [entry.name for entry in live.classes]


def waiting(workshop: Workshop) -> list[str]:
    return [entry.name for entry in examples.pending(workshop, workshop.live)]


def test_a_class_that_was_rolled_back_is_not_enrolled_again_beside_others(workshop: Workshop) -> None:
    withdrawn.make_live(workshop, 1)
    assert enrol.enrol(workshop) is None
    add(workshop, ["yellow"])
    assert enrol.enrol(workshop) is not None
    assert known(workshop) == ["red", "green", "yellow"]
    assert waiting(workshop) == ["yellow"]


def test_an_increment_of_others_does_not_carry_it_in(workshop: Workshop) -> None:
    withdrawn.make_live(workshop, 1)
    with pytest.raises(Conflict, match="no class waits"):
        rollout.start(workshop)
    assert learn(workshop, "yellow").state == "done"
    assert known(workshop) == ["red", "green", "yellow"]


def test_a_class_rolled_back_while_an_increment_goes_live_is_not_in_what_it_brings(workshop: Workshop) -> None:
    promote, calls = workshop.swap, []

    def swap(version: int, expected: int | None) -> None:
        calls.append(version)
        if len(calls) == 1:
            withdrawn.make_live(replace(workshop, swap=promote), 1)
        promote(version, expected)

    assert learn(replace(workshop, swap=swap), "yellow").state == "done"
    assert known(workshop) == ["red", "green", "yellow"]


def test_new_images_bring_it_back_and_the_same_ones_do_not(workshop: Workshop) -> None:
    withdrawn.make_live(workshop, 1)
    examples.add(workshop, "blue", pictures("blue", 5))
    assert enrol.enrol(workshop) is None
    examples.add(workshop, "blue", pictures("blue", 1, first=50))
    assert waiting(workshop) == ["blue"]
    assert enrol.enrol(workshop) is not None
    assert known(workshop) == ["red", "green", "blue"]


def test_an_increment_that_names_it_brings_it_back(workshop: Workshop) -> None:
    withdrawn.make_live(workshop, 1)
    rollout.start(workshop, ["blue"])
    assert rollout.carry_all(workshop)[-1].state == "done"
    assert known(workshop) == ["red", "green", "blue"]


def test_going_forward_to_a_version_that_knows_it_brings_it_back_for_good(workshop: Workshop) -> None:
    withdrawn.make_live(workshop, 1)
    withdrawn.make_live(workshop, 2)
    add(workshop, ["yellow"])
    assert enrol.enrol(workshop) is not None
    assert known(workshop) == ["red", "green", "blue", "yellow"]
    assert waiting(workshop) == ["blue", "yellow"]
    assert withdrawn.ids(workshop.store, None) == set()


@pytest.mark.parametrize("said", [{"retired": True}, {"merged_into": 1}])
def test_a_class_that_live_is_trained_without_is_not_brought_back_by_a_version_from_before_it(
    said: changes.Wanted, workshop: Workshop
) -> None:
    changes.change(workshop, 3, said)
    assert learn(workshop, "yellow").state == "done"
    assert workshop.live is not None
    assert [entry.name for entry in workshop.live.former] == ["blue"]
    withdrawn.make_live(workshop, 1)
    assert enrol.enrol(workshop) is None
    assert known(workshop) == ["red", "green"]
    assert waiting(workshop) == []


def test_a_move_that_fails_withdraws_nothing(workshop: Workshop) -> None:
    def refuse(version: int, expected: int | None) -> None:
        raise Unavailable("no replica lives")

    with pytest.raises(Unavailable):
        withdrawn.make_live(replace(workshop, swap=refuse), 1)
    assert waiting(workshop) == ["blue"]
    assert learn(workshop, "yellow").state == "done"
    assert sorted(known(workshop)) == ["blue", "green", "red", "yellow"]


def test_a_move_that_fails_leaves_a_former_class_that_can_be_restored(workshop: Workshop) -> None:
    def refuse(version: int, expected: int | None) -> None:
        raise Unavailable("no replica lives")

    changes.change(workshop, 3, {"retired": True})
    assert learn(workshop, "yellow").state == "done"
    with pytest.raises(Unavailable):
        withdrawn.make_live(replace(workshop, swap=refuse), 1)
    changes.change(workshop, 3, {"retired": False})
    assert known(workshop) == ["red", "green", "yellow", "blue"]
