"""Classes, versions, health, documentation: what a server says of itself, on the operator's side."""

import asyncio
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from parts import BIRDS, tiny_version

from lifelist.exporter.errors import Unavailable
from lifelist.exporter.registry import Registry
from lifelist.serving import catalog
from lifelist.serving.catalog import Catalog
from lifelist.serving.follow import Status
from lifelist.serving.metrics import Family
from lifelist.serving.options import ServingOptions

ONE = Status("one", version=2, generation=2, provider="cpu", precision="fp32", held=(1, 2), behind=None, process_id=1)


class Said:
    """Replicas that say what they are told to: how the catalog takes it is what matters here."""

    def __init__(self, *found: Status) -> None:
        self.found = list(found)

    async def status(self) -> list[Status]:
        if not self.found:
            raise Unavailable("no replica answers: it is being started")
        return self.found

    async def metrics(self) -> dict[str, tuple[Family, ...]]:
        return {}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 1, then version 2 with an enrolled class, live."""
    made = Registry(str(tmp_path_factory.mktemp("registry")))
    tiny_version(made, first_id=4, live=True)
    tiny_version(made, first_id=4, enrolled=BIRDS[3:4], parent=1, live=True)
    return made


def get(registry: Registry, path: str, method: str = "GET", replicas: Said | None = None) -> httpx.Response:
    app = catalog.app(Catalog(registry, replicas or Said(ONE), ServingOptions(), nonce="a-nonce"))

    async def got() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path)

    return asyncio.run(got())


def test_classes_are_those_of_the_live_version(registry: Registry) -> None:
    found = get(registry, "/v1/classes").json()
    assert found["version"] == 2
    said = {"aliases": [], "retired": False, "merged_into": None}
    assert found["classes"][0] == {"id": 4, "name": BIRDS[0], "state": "trained", "increment": 0} | said
    assert [(entry["id"], entry["state"]) for entry in found["classes"]] == [
        (4, "trained"), (5, "trained"), (6, "trained"), (7, "enrolled"),
    ]  # fmt: skip


def test_versions_say_which_is_live_and_which_was(registry: Registry) -> None:
    found = get(registry, "/v1/versions").json()
    assert (found["live"], found["previous"]) == (2, 1)
    assert [(row["version"], row["kind"], row["classes"]) for row in found["versions"]] == [
        (1, "increment", 3), (2, "enrolment", 4),
    ]  # fmt: skip


def test_a_version_is_its_manifest(registry: Registry) -> None:
    found = get(registry, "/v1/versions/1").json()
    assert found == json.loads(json.dumps(asdict(registry.manifest(1))))  # every field, whatever is declared
    assert (found["version"], found["method"], found["default_answer"]) == (1, "bic", "linear")
    assert {file["name"] for file in found["files"]} >= {"model.onnx", "class_means.faiss"}


@pytest.mark.parametrize("number", ["0", "-1", "x", "99999999999", "²", "1.0", "%2e%2e"])
def test_a_number_that_no_version_can_have_is_not_found(registry: Registry, number: str) -> None:
    answer = get(registry, f"/v1/versions/{number}")
    assert answer.status_code == 404
    assert "numbered from 1" in answer.json()["error"]


def test_a_version_that_is_not_there_names_those_that_are(registry: Registry) -> None:
    answer = get(registry, "/v1/versions/7")
    assert answer.status_code == 404
    assert re.search(r"no version 7 .* there is: 1, 2", answer.json()["error"])


def test_it_lives_before_anything_is_ready(tmp_path: Path) -> None:
    empty = Registry(str(tmp_path))
    assert get(empty, "/v1/health/live", replicas=Said()).json() == {"live": True, "server": "a-nonce"}
    for path in ("/v1/health/ready", "/v1/classes"):
        answer = get(empty, path, replicas=Said())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "lifelist base DATA" in answer.json()["error"]


def test_ready_names_version_provider_and_every_replica(registry: Registry) -> None:
    found = get(registry, "/v1/health/ready").json()
    assert (found["ready"], found["version"], found["provider"], found["server"]) == (True, 2, "cpu", "a-nonce")
    assert found["replicas"][0]["held"] == [1, 2]


def test_without_a_replica_it_is_not_ready_and_says_why(registry: Registry) -> None:
    answer = get(registry, "/v1/health/ready", replicas=Said())
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "error": "no replica answers: it is being started"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/v2", 404), ("GET", "/v1/classes/", 404), ("GET", "/docs/../secret", 404),
        ("GET", "/docs/index.html", 404), ("POST", "/v1/classes", 405), ("DELETE", "/v1/versions/1", 405),
        ("POST", "/metrics", 405), ("PUT", "/v1/health/live", 405), ("OPTIONS", "/docs", 405),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_in_json(registry: Registry, method: str, path: str, status: int) -> None:
    answer = get(registry, path, method)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    if status == 405:
        assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/v1/health/live", "/v1/classes", "/metrics", "/docs", "/docs/swagger-ui.css", "/x"])
def test_head_is_answered_as_get_is_without_the_body(registry: Registry, path: str) -> None:
    whole, head = get(registry, path), get(registry, path, "HEAD")
    assert (head.status_code, dict(head.headers), head.content) == (whole.status_code, dict(whole.headers), b"")
    assert int(head.headers["content-length"]) == len(whole.content) > 0


def test_head_ends_a_stream_that_has_no_end() -> None:
    sent: list[Any] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.001)

    async def send(message: Any) -> None:
        sent.append(message)

    asked = catalog.Heads(endless)({"type": "http", "method": "HEAD"}, send, send)
    asyncio.run(asyncio.wait_for(asked, 5))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert "body" not in sent[1]


def test_the_documentation_needs_no_internet(registry: Registry) -> None:
    page = get(registry, "/docs").text
    assert not re.search(r"https?://|//[a-z]", page)
    for asset in re.findall(r'(?:href|src)="(docs/[^"]+)"', page):
        answer = get(registry, f"/{asset}")
        assert answer.status_code == 200
        assert len(answer.content) > 500
    assert get(registry, "/docs/swagger-ui-bundle.js").headers["content-type"].startswith("text/javascript")


def test_the_description_has_every_route_and_every_refusal(registry: Registry) -> None:
    found: dict[str, Any] = get(registry, "/openapi.json").json()
    assert found["openapi"].startswith("3.0")  # what the page can show
    assert {"/v1/classify", "/v1/classes", "/v1/versions/{version}", "/v1/health/ready", "/metrics"} <= set(
        found["paths"]
    )
    classify = found["paths"]["/v1/classify"]["post"]
    assert set(classify["requestBody"]["content"]) == {
        "image/jpeg", "image/png", "image/webp", "application/octet-stream", "multipart/form-data",
    }  # fmt: skip
    assert {"200", "400", "401", "403", "408", "413", "415", "429", "503"} == set(classify["responses"])
    assert "422" not in str(found["paths"])  # nothing answers so
    assert '"null"' not in json.dumps(found)  # OpenAPI 3.0 has no such type
    assert classify["responses"]["503"]["headers"]["Retry-After"]["required"]
    for reference in set(re.findall(r"#/components/schemas/(\w+)", str(found))):
        assert reference in found["components"]["schemas"]
