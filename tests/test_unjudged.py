"""A class with too few images to be judged by the gate is learned all the same, and whoever starts that is told."""

from pathlib import Path
from typing import Any

import pytest
from parts_operator import files, serving
from parts_rollout import LENIENT, add, pictures, prepared, settings

from lifelist.client.blocking import Client
from lifelist.deploy import base, rollout
from lifelist.deploy.cli import main
from lifelist.deploy.settings import ExampleOptions, GateCheck
from lifelist.deploy.store import Store
from lifelist.exporter.manifest import Manifest

COUNTS = {1: 0, 3: 1, 5: 1, 7: 1, 8: 2}  # images of a class: those set apart for the gate, by  t g t t h t t g
SEND = "send at least 8 images of a class to have it judged"


def warnings(store: Store, rollout_id: int) -> list[str]:
    """What is told before any work."""
    told = [event for event in store.events(rollout_id, kind="warning") if event.data["what"] == "classes.unjudged"]
    return [event.data["message"] for event in told]


def said(version: Manifest) -> str:
    """What the gate says of new classes."""
    (message,) = [check.message for check in version.gate if check.name == "new_class_accuracy"]
    return message


def folders(data: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (data / name).mkdir(parents=True)
        for file, content in pictures(name, count):
            (data / name / file).write_bytes(content)
    return data


@pytest.mark.parametrize("count", COUNTS)
def test_a_base_takes_a_class_of_a_few_images_among_larger_ones(tmp_path: Path, count: int) -> None:
    data = folders(tmp_path / "data", {"red": 30, "green": 60, "blue": count})
    told: list[tuple[str, Any]] = []
    made = base.make_base(settings(tmp_path / "home"), data, lambda kind, facts: told.append((kind, facts)))
    assert sorted(entry.name for entry in made.classes) == ["blue", "green", "red"]
    unjudged = [facts["message"] for kind, facts in told if facts.get("what") == "classes.unjudged"]
    kinds = [kind for kind, _ in told]
    if count < 8:
        (message,) = unjudged
        assert message.startswith(f"the gate will not judge 'blue' ({COUNTS[count]} of 2), of which too few")
        assert message.endswith(SEND)
        assert kinds.index("warning") < kinds.index("epoch")
        assert f"not judged: 'blue' ({COUNTS[count]} gate image" in said(made)
    else:
        assert unjudged == []
        assert "not judged" not in said(made)


@pytest.mark.parametrize("count", COUNTS)
def test_an_increment_of_all_that_waits_takes_a_class_of_a_few_images_too(tmp_path: Path, count: int) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue"], count)
    add(workshop, ["yellow"])
    started = rollout.start(workshop)
    assert [SEND in message and "'blue'" in message for message in warnings(workshop.store, started.id)] == (
        [True] if count < 8 else []
    )
    (ended,) = rollout.carry_all(workshop)
    assert ended.state == "done", ended.reason
    live = workshop.live
    assert live is not None
    assert [entry.name for entry in live.trained] == ["red", "green", "blue", "yellow"]
    assert ("not judged: 'blue'" in said(live)) is (count < 8)
    (check,) = [check for check in live.gate if check.name == "old_accuracy"]
    assert "on 8 gate images" in check.message


@pytest.mark.parametrize("count", [1, 5])
def test_an_increment_in_which_no_new_class_can_be_judged_is_judged_by_its_old_ones(tmp_path: Path, count: int) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue"], count)
    rollout.start(workshop, ["blue"])
    assert rollout.carry_all(workshop)[-1].state == "done"
    strict = prepared(tmp_path / "strict", gate=(*LENIENT, GateCheck(check="old_accuracy", limit=0, min_images=9)))
    add(strict, ["blue"], count)
    rollout.start(strict, ["blue"])
    ended = rollout.carry_all(strict)[-1]
    assert (ended.state, "old classes have 8 gate images" in str(ended.reason)) == ("rejected", True)


def test_a_base_of_so_few_images_that_graph_and_network_are_compared_on_all_of_them(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", {"red": 1, "green": 1, "blue": 3})  # one gate image in all
    made = base.make_base(settings(tmp_path / "home", batch_size=0), data)
    assert made.parity is not None
    assert made.parity.images == 5


def test_where_no_image_is_set_apart_the_remedy_is_the_setting(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", {"red": 12, "green": 12})
    made = settings(tmp_path / "home", examples=ExampleOptions(gate_share=0.0))
    told: list[Any] = []
    base.make_base(made, data, lambda kind, facts: told.append(facts))
    (warning,) = [facts["message"] for facts in told if facts.get("what") == "classes.unjudged"]
    assert "'green' (0 of 2), 'red' (0 of 2)" in warning
    assert warning.endswith("examples.gate_share is 0, so no image is set apart")


def test_the_one_who_starts_an_increment_is_told_over_http_and_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "home") as server, Client(server.url) as client:
        client.add_examples("wren", files(3, 3))
        client.add_examples("robin", files(4, 8))
        assert client.start_increment(["robin"])["warnings"] == []
        assert main(["increment", "start", "--port", server.port]) == 0
        (warning,) = client.increment(2)["warnings"]
        assert warning.startswith("the gate will not judge 'wren' (1 of 2)")
        assert f"warning: {warning}\n" in capsys.readouterr().out
        assert main(["increment", "show", "2", "--port", server.port]) == 0
    assert f"warning: {warning}\n" in capsys.readouterr().out + "\n"
