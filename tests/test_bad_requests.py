"""Every bad request of tests/bad_requests.py, sent to a real server: its status, its message, and never a 5xx."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import bad_requests
import httpx
import pytest
from bad_requests import ROWS, Bad, Scene, picture
from parts import BIRDS, encoded, tiny_images, tiny_version
from parts_server import Server

from lifelist.deploy import tables
from lifelist.deploy.records import now
from lifelist.deploy.settings import Settings
from lifelist.deploy.store import Store

Route = tuple[str, str]  # method and path, as /openapi.json has them


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as made:
        yield made


@pytest.fixture(scope="module")
def scene(server: Server, http: httpx.Client) -> Scene:
    """The shared server, with what the requests speak of: its classes in the database, a class of one image, …"""
    store = Store(Settings(home=server.home).database_url)
    with store.writing() as connection:
        known = [{"id": k, "name": name, "created_at": now()} for k, name in enumerate(BIRDS[:3])]
        connection.execute(tables.classes.insert(), known)
        done = {"state": "done", "method": "bic", "class_ids": [2], "cancel_requested": False, "facts": {}}
        insert = tables.rollouts.insert().values(**done, created_at=now(), updated_at=now())
        ended = int(connection.execute(insert.returning(tables.rollouts.c.id)).scalar_one())
    store.close()
    refused = tiny_version(server.registry, passed=False)
    added = http.post("/v1/examples", data={"class": "lonely"}, files={"images": ("a.png", picture(seed=99))})
    assert added.json()["class"]["state"] == "enrolled", added.text
    answer = http.post("/v1/classify", content=encoded(tiny_images()[0]))
    return Scene(answer.json()["images"][0]["prediction_id"], refused.version, ended)


@pytest.fixture(scope="module", autouse=True)
def _left_as_it_was(server: Server, http: httpx.Client, scene: Scene) -> Iterator[None]:
    live = http.get("/v1/versions").json()["live"]
    classes = http.get("/v1/classes").json()
    yield
    assert http.get("/v1/versions").json()["live"] == live
    assert http.get("/v1/classes").json() == classes
    # Emptied, or the server would enrol `lonely` again upon whatever other files make live without telling it.
    store = Store(Settings(home=server.home).database_url)
    with store.writing() as connection:
        for table in (tables.examples, tables.rollouts, tables.classes):
            connection.execute(table.delete())
    store.close()
    assert server.promote(1).status_code == 200


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.method} {row.path.split('?')[0][:40]}, {row.what}" for row in ROWS])
def test_a_bad_request_gets_its_status_and_a_message_that_helps(row: Bad, http: httpx.Client, scene: Scene) -> None:
    path = row.path.replace("{refused}", str(scene.refused)).replace("{ended}", str(scene.ended))
    answer = http.request(row.method, path, **(row.from_scene(scene) if row.from_scene else row.request))
    assert answer.headers["content-type"] == "application/json", answer.text
    message = answer.json()
    assert list(message) == ["error"]
    wanted = ".*".join(re.escape(part) for part in row.error.split("…"))
    assert re.fullmatch(wanted, message["error"], re.DOTALL), message["error"]
    assert answer.status_code == row.status < 500


def test_the_description_declares_each_status_of_each_bad_request_to_a_route(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    declared = {(method.upper(), path): known["responses"] for path in paths for method, known in paths[path].items()}
    seen = {(found, str(row.status)) for row in ROWS if row.status != 403 and (found := route(row, declared))}
    assert len(seen) > 25
    assert {(found, status) for found, status in seen if status not in declared[found]} == set()


def route(row: Bad, declared: Collection[Route]) -> Route | None:
    """Which of the declared routes a row is sent to; None for a path or a method that none of them has."""
    path = row.path.partition("?")[0]
    fits = [known for known in declared if known[0] == row.method and re.fullmatch(pattern(known[1]), path)]
    return min(fits, key=lambda known: known[1].count("{"), default=None)


def pattern(path: str) -> str:
    return re.sub(r"\\{\w+\\}", "[^/:]+", re.escape(path))


def test_the_page_about_errors_is_what_the_command_prints() -> None:
    page = Path(__file__).parents[1] / "docs" / "errors.md"
    assert page.read_text() == bad_requests.page(), "make it again: python tests/bad_requests.py > docs/errors.md"


def test_there_are_enough_of_them_and_no_two_are_the_same() -> None:
    assert len(ROWS) >= 32
    assert len({(row.method, row.path, row.what) for row in ROWS}) == len(ROWS)


def test_the_server_answers_as_before_after_all_of_them(http: httpx.Client) -> None:
    answer = http.post("/v1/classify?answer=linear", content=encoded(tiny_images()[1]))
    assert answer.status_code == 200
    assert answer.json()["images"][0]["classes"][0]["name"] == BIRDS[1]
