"""What becomes of classes over HTTP and by the command line: GET and PATCH /v1/classes/{id}, and `lifelist classes`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from parts_operator import Server, bird, files, serving

from lifelist.client.blocking import Client
from lifelist.deploy.cli import main
from lifelist.exporter.errors import BadInput, Conflict, Missing


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Version 1: heron (1), gull (2), swift (3)."""
    with serving(tmp_path / "home") as made:
        yield made


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


Run = Callable[..., str]


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command against the server: its standard output, or what it says if it fails."""
    monkeypatch.chdir(tmp_path)

    def running(*arguments: str) -> str:
        code = main([*arguments, "--port", server.port, "--home", str(server.settings.home)])
        out, err = capsys.readouterr()
        return out if code == 0 else f"{code}: {err}"

    return running


def names_of(client: Client, k: int, answer: str = "linear") -> list[str]:
    """What a bird is answered as, best first."""
    return [one["name"] for one in client.classify([("x.png", bird(k))], answer=answer)["images"][0]["classes"]]


def test_a_change_answers_with_the_class_as_it_is_then(client: Client) -> None:
    found = client.change_class(1, name="grey heron")
    assert (found["version"], found["name"], found["aliases"]) == (2, "grey heron", ["heron"])
    assert (found["state"], found["increment"], found["retired"], found["merged_into"]) == ("trained", 0, False, None)
    assert found == client.class_(1)
    assert names_of(client, 0)[0] == "grey heron"
    assert [event["version"] for event in found["history"]] == [1, 2]
    assert found["history"][1]["before"] == {"aliases": [], "name": "heron"}
    assert client.classes()["classes"][0]["aliases"] == ["heron"]


def test_a_client_that_uses_an_old_name_means_the_same_class(client: Client) -> None:
    answer = client.classify([("x.png", bird(0))])
    client.change_class(1, name="grey heron")
    added = client.add_examples("heron", files(0, 5))
    assert added["class"] == {"id": 1, "name": "grey heron", "state": "trained"}
    judged = client.feedback(answer["images"][0]["prediction_id"], "heron")
    assert (judged["truth"], judged["predicted"]) == ({"id": 1, "name": "grey heron"}, {"id": 1, "name": "heron"})
    assert judged["correct"]
    assert [known["name"] for known in client.start_increment(["heron"])["classes"]] == ["grey heron"]
    client.rollback()
    assert client.increment(1)["classes"] == [{"id": 1, "name": "heron"}]


def test_a_retired_class_is_gone_from_both_answers_and_back_after_a_rollback(client: Client) -> None:
    client.change_class(1, retired=True)
    assert set(names_of(client, 0)) == set(names_of(client, 0, "nearest_mean")) == {"gull", "swift"}
    assert client.versions()["versions"][1]["classes"] == 2
    with pytest.raises(Conflict, match="class 'heron' is retired; restore it first"):
        client.add_examples("heron", files(0, 1))
    client.rollback()
    assert names_of(client, 0)[0] == "heron"
    client.rollback()
    client.change_class(1, retired=False)
    assert names_of(client, 0)[0] == "heron"


def test_a_merged_class_is_its_target_to_answers_images_and_feedback(client: Client) -> None:
    client.change_class(3, merged_into=1)
    answer = client.classify([("x.png", bird(2))])
    assert [one["name"] for one in answer["images"][0]["classes"]] == ["heron", "gull"]
    assert client.feedback(answer["images"][0]["prediction_id"], "swift")["correct"]
    added = client.add_examples("swift", files(2, 4))
    assert added["class"]["name"] == "heron"
    assert client.class_(1)["images"] == {"training": 3, "holdout": 0, "gate": 1}
    with pytest.raises(Conflict, match="are merged into class 'heron'; un-merge them first"):
        client.change_class(1, retired=True)
    client.change_class(3, merged_into=None)
    assert names_of(client, 2)[0] == "swift"


def test_several_things_are_said_at_once_or_none_of_them(client: Client) -> None:
    with pytest.raises(Conflict, match="the name 'gull' is that of class 2"):
        client.change_class(1, retired=True, name="gull")
    assert client.classes()["version"] == 1
    found = client.change_class(1, name="egret", aliases=["little egret"], retired=True, expected_version=1)
    assert (found["version"], found["name"], found["aliases"], found["retired"]) == (2, "egret", ["little egret"], True)
    with pytest.raises(Conflict, match="version 2 is live, and you expected 1"):
        client.change_class(1, retired=False, expected_version=1)
    client.change_class(1, retired=False, merged_into=2)
    assert client.class_(1)["merged_into"] == 2


def test_what_is_asked_wrongly_is_said(client: Client, server: Server) -> None:
    with pytest.raises(BadInput, match="there is nothing to change; send name, aliases, retired or merged_into"):
        client.change_class(1)
    with pytest.raises(BadInput, match="a class name has no control characters"):
        client.change_class(1, name="a\tb")
    with pytest.raises(BadInput, match="retired: Input should be a valid boolean, not 'yes'"):
        client.change_class(1, retired="yes")
    with pytest.raises(Missing, match="no class has id 99; ids go up to 3"):
        client.class_(99)
    for path in ("/v1/classes/heron", "/v1/classes/-1", "/v1/classes/1.0"):
        assert httpx.get(server.url + path).status_code == 404
    assert client.classes()["version"] == 1


def test_the_commands_name_a_class_by_name_alias_or_id(run: Run) -> None:
    told = "grey heron (class 1), in version 2: trained; also called heron\n"
    assert run("classes", "rename", "heron", "grey heron") == told
    assert run("classes", "retire", "heron").startswith("grey heron (class 1), in version 3: trained, retired; also")
    assert run("classes", "restore", "1").startswith("grey heron (class 1), in version 4: trained; ")
    assert run("classes", "merge", "swift", "heron") == "swift (class 3), in version 5: trained, merged into class 1\n"
    assert run("classes").splitlines()[1:] == [
        " 1  grey heron  trained                       heron",
        " 2  gull        trained",
        " 3  swift       trained, merged into class 1",
    ]
    assert run("classes", "unmerge", "swift") == "swift (class 3), in version 6: trained\n"
    assert run("classes", "alias", "gull", "seagull", "mew").endswith("also called seagull, mew\n")
    assert run("classes", "alias", "mew", "seagull", "--remove").endswith("also called mew\n")
    assert run("classes", "retire", "heron", "gull").startswith("2: lifelist: Got unexpected extra argument")
    assert run("classes", "retire", "hern").startswith("2: lifelist: the live version knows no class that is named")
    assert run("classes", "rename", "gull", "swift").startswith("1: lifelist: the name 'swift' is that of class 3")
    shown = run("classes", "show", "gull")
    assert "images kept: 0 training, 0 holdout, 0 gate" in shown
    assert "aliases: [] → ['seagull', 'mew']" in shown
    assert json.loads(run("classes", "list", "--json"))["classes"][1]["aliases"] == ["mew"]
    assert json.loads(run("classes", "--json"))["version"] == 8
    assert "swift" in run("versions", "show", "5")
    assert "merged into class 1" in run("versions", "show", "5")
    assert "classes.said.swift.merged_into" in run("versions", "diff", "4", "5")
