"""The real thing: `lifelist serve` with Ray, Ray Serve and HAProxy; processes are really killed, under real load."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
from bad_requests import WEB_SOCKET
from parts import BIRDS, blob_path, encoded, flip_one_bit, tiny_images, tiny_version
from parts_server import Load, Server, eventually, launch, listeners, started, wait_until_ready
from prometheus_client.parser import text_string_to_metric_families

from lifelist.deploy import ground

pytestmark = pytest.mark.timeout(300)


def play(server: Server, story: str, *versions: int) -> Any:
    """A story of tests/driver.py, in a process that is connected to the server's Ray."""
    command = [sys.executable, str(Path(__file__).with_name("driver.py")), str(server.home), story, *map(str, versions)]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # as the server's
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.strip().splitlines()[-1])


def another(server: Server) -> int:
    """Publish a version of other classes than the live one's, to swap to."""
    number = max(server.registry.versions())
    return tiny_version(server.registry, BIRDS[: 2 + number % 6], seed=number).version


def live(server: Server) -> set[int]:
    return {row["version"] for row in server.replicas().values()}


def all_answer_by(server: Server, version: int, count: int = 2) -> bool:
    rows = server.replicas().values()
    return len(rows) == count and {row["version"] for row in rows} == {version}


def seen_after(load: Load, moment: float) -> set[int]:
    """The versions that answered the next twenty requests and more, all sent after that moment."""
    eventually(lambda: len([at for at, _, _ in load.answered if at > moment]) >= 20)
    return load.after(moment)


@pytest.fixture(scope="module", autouse=True)
def _left_as_it_was(server: Server) -> Iterator[None]:
    """Other files use the same server, and expect version 1."""
    yield
    assert server.promote(1).status_code == 200


# ----------------------------------------------------------------------------------------- two replicas, shared


def test_every_route_works_through_haproxy(server: Server) -> None:
    with server.http() as http:
        answer = http.post("/v1/classify", content=encoded(tiny_images()[1]))
        assert answer.status_code == 200
        assert answer.json()["images"][0]["classes"][0]["name"] == BIRDS[1]
        many = [("images", (f"{k}.png", encoded(image))) for k, image in enumerate(tiny_images(2))]
        assert len(http.post("/v1/classify", files=many).json()["images"]) == 2
        for path in ("/v1/classes", "/v1/versions", "/v1/versions/1", "/v1/health/live", "/v1/health/ready", "/docs"):
            assert http.get(path).status_code == 200
            assert (head := http.head(path)).status_code == 200
            assert int(head.headers["content-length"]) > 0 == len(head.content)
        assert http.head("/v1/classify").status_code == 405
        assert "/v1/classify" in http.get("/openapi.json").json()["paths"]


def test_nothing_answers_in_bare_text_not_even_ray_and_haproxy(server: Server) -> None:
    with server.http() as http:
        refused = [
            http.get("/nothing/here"),
            http.get("/v1/classify"),
            http.post("/v1/classify/x"),
            http.post("/v1/classes"),
            http.post("/v1/classify", content=b"no image"),
            http.get("/v1/versions", headers={"x-request-timeout-seconds": "0.000001"}),  # Ray's 408
            http.post("/v1/feedback", content=b"{", headers={"content-type": "application/json"}),
            http.request("FOO", "/v1/classes"),  # uvicorn's 400
            http.request("FOO", "/v1/classify"),
            http.get("/v1/classes", headers=WEB_SOCKET),  # uvicorn's 403
            http.get("/v1/classify", headers=WEB_SOCKET),
        ]
    assert [answer.status_code for answer in refused] == [404, 405, 404, 405, 400, 408, 400, 400, 400, 403, 403]
    for answer in refused:
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.json()["error"]


def test_a_body_that_breaks_off_its_chunks_is_refused_in_json_by_haproxy_too(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(f"{head}3\r\nabc\r\n".encode())
        time.sleep(0.5)  # HAProxy has read the head, and what comes now is the body's
        connection.sendall(b"no size\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    assert "content-type: application/json" in answer
    assert "the body is no HTTP" in json.loads(answer.partition("\r\n\r\n")[2])["error"]


@pytest.mark.parametrize("path", ["/v1/health/live", "/v1/classes"])
def test_a_request_may_have_hundreds_of_headers(server: Server, path: str) -> None:
    with server.http() as http:
        answer = http.get(path, headers=[(f"x-header-{k}", "1") for k in range(450)])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_while_it_is_sent(server: Server, chunked: bool) -> None:
    size = 65 * 2**20

    def pieces() -> Iterator[bytes]:
        yield from (bytes(2**20) for _ in range(size // 2**20))

    with server.http() as http:
        answer = http.post("/v1/classify", content=pieces() if chunked else bytes(size))
        assert answer.status_code == 413
        assert "the limit is 67,108,864" in answer.json()["error"]
        assert http.post("/v1/classify", content=encoded(tiny_images()[0])).status_code == 200


def own_listeners(server: Server) -> set[tuple[str, int]]:
    """Where it listens, but for Ray's own ports."""
    found = listeners(ground.processes(server.record().nonce))
    return {(address, port) for address, port in found if port < 32768 or port in (server.port, server.grpc_port)}


def test_it_answers_on_loopback_only_but_for_the_grpc_of_ray_serve_which_refuses(server: Server) -> None:
    """tests/test_oip_clients.py sees that it refuses; without gRPC nothing else listens (`alone`, below)."""
    record, own = server.record(), own_listeners(server)
    assert {("127.0.0.1", server.port), ("127.0.0.1", server.grpc_port)} <= own
    elsewhere = {(address, port % ground.BLOCK) for address, port in own if address != "127.0.0.1"}
    assert elsewhere == {("::", 2), ("::", 105), ("::", 106), ("::", 107)}  # the fallback, replicas, operator
    folder = Path(record.folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert next(folder.glob("*/admin.sock")).is_socket()


def test_a_swap_under_load_loses_no_request_and_mixes_no_versions(server: Server) -> None:
    with Load(server) as load:
        for _ in range(3):
            time.sleep(0.5)
            version = another(server)
            answer = server.promote(version)
            assert answer.status_code == 200, answer.text
            asked_later = seen_after(load, time.time())
            assert asked_later == {version}  # every replica answered by it before the swap returned
    assert load.failures == []
    assert len(load.versions()) == 4


def test_a_rollback_is_a_flip_that_clients_see_within_a_second(server: Server) -> None:
    assert server.promote(another(server)).status_code == 200
    before = server.get("/v1/versions")
    with Load(server) as load, server.http() as http:
        assert seen_after(load, time.time()) == {before["live"]}
        took = []
        for wanted in (before["previous"], before["live"]) * 2:
            began = time.time()
            assert http.post("/v1/rollback").json()["live"] == wanted
            returned = time.time()
            took.append(load.first(wanted, began) - began)
            assert seen_after(load, returned) == {wanted}
        assert median(took) < 1  # other tests may take the cores in one of them
    assert load.failures == []


def test_of_two_swaps_at_once_one_wins_and_the_other_is_told(server: Server) -> None:
    versions = another(server), another(server)
    with Load(server) as load:
        assert seen_after(load, time.time()).isdisjoint(versions)
        found = play(server, "race", *versions)
        asked_later = seen_after(load, time.time())
    lost = [outcome for outcome in found.values() if "error" in outcome]
    won = [outcome for outcome in found.values() if "error" not in outcome]
    assert [outcome["error"] for outcome in lost] == ["Moved"]
    assert won[0]["replicas"] == 2
    assert live(server) == asked_later == {won[0]["version"]}
    assert load.versions() & {*versions} == {won[0]["version"]}  # the other one never answered
    assert load.failures == []


def test_a_version_that_does_not_load_leaves_live_alone_and_says_why(server: Server) -> None:
    before = live(server)
    bad = another(server)
    flip_one_bit(blob_path(server.registry, server.registry.manifest(bad), "model.onnx"))
    with Load(server, clients=2) as load:
        answer = server.promote(bad)
        time.sleep(0.3)
    assert answer.status_code == 503
    assert "model.onnx" in answer.json()["error"]
    assert "sha256" in answer.json()["error"]
    assert load.failures == []
    assert load.versions() == before == live(server)
    assert all(bad not in row["held"] for row in server.replicas().values())


def test_a_replica_that_is_told_nothing_follows_within_seconds(server: Server) -> None:
    version = another(server)
    assert play(server, "missed_commit", version)["seconds"] < 5
    assert live(server) == {version}


def test_a_replica_killed_in_prepare_does_not_stop_the_swap(server: Server) -> None:
    version = another(server)
    with Load(server) as load:
        found = play(server, "kill_in_prepare", version)
        eventually(lambda: all_answer_by(server, version))
    assert found["version"] == version
    assert found["rounds"][0] == "prepare 1 of 2"  # the other had it ready, this one went away
    assert found["victim"] not in {row["process_id"] for row in server.replicas().values()}
    assert load.failures == []  # what the killed one had not answered was asked again of the other


def test_a_replica_killed_between_prepare_and_commit_comes_back_with_the_new_version(server: Server) -> None:
    """And with the one that a client had every replica load by its number."""
    loaded, version = another(server), another(server)
    repository = f"/v2/repository/models/lifelist/versions/{loaded}"
    with server.http() as http:
        assert http.post(f"{repository}/load").status_code == 200
    with Load(server) as load:
        found = play(server, "kill_before_commit", version)
        moment = time.time()
        eventually(lambda: all_answer_by(server, version))
        time.sleep(0.3)
    assert found["rounds"][0] == "prepare 2 of 2"
    assert found["version"] == version
    assert load.after(moment) == {version}  # never the old one again, from any replica
    assert load.failures == []
    assert eventually(lambda: [loaded in row["held"] for row in server.replicas().values()] == [True] * 2)
    assert [row["pinned"] for row in server.replicas().values()] == [[loaded]] * 2
    with server.http() as http:
        assert http.get(f"/v2/models/lifelist/versions/{loaded}/ready").status_code == 200
        assert http.post(f"{repository}/unload").status_code == 200
    assert all(loaded not in row["held"] for row in server.replicas().values())


def test_a_replica_that_joins_between_prepare_and_commit_answers_by_the_new_version_with_the_rest(
    server: Server,
) -> None:
    version = another(server)
    with Load(server) as load:
        found = play(server, "join_after_prepare", version)
        asked_later = seen_after(load, time.time())
    assert found["rounds"] == ["prepare 1 of 1", "commit 2 of 2", "release 2 of 2"]
    assert (found["version"], found["replicas"]) == (version, 2)
    (joined,) = {*found["processes"]} - {found["staying"]}
    assert joined != found["gone"]
    assert asked_later == {version}
    assert load.failures == []
    assert all_answer_by(server, version)


def test_metrics_of_both_replicas_are_one_page(server: Server) -> None:
    with server.http() as http:
        text = http.get("/metrics").text
    replicas = set(server.replicas())
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert {sample.labels["replica"] for sample in found["lifelist_live_version_info"].samples} == replicas
    assert {sample.value for sample in found["lifelist_replicas_reporting"].samples} == {2}
    assert "lifelist_accuracy_ratio" in found  # what the operator adds is there, too


# ------------------------------------------------------------------------------------------ one replica, its own


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a server whose classes are others than those of the shared one."""
    made = tmp_path_factory.mktemp("alone")
    server = Server(made, 0, None, made / "log")  # type: ignore[arg-type]
    tiny_version(server.registry, ["rook", "jackdaw"], live=True)
    return made


def test_one_replica_from_start_to_end_beside_another_server(server: Server, home: Path) -> None:
    """One long story, since each start costs ten seconds and more."""
    with started(home) as alone:
        assert f"listening at {alone.url}" in alone.text()
        assert "version 1: 2 classes" in alone.text()
        assert "curl" in alone.text()

        own = own_listeners(alone)
        assert len(own) >= 5  # the front, HAProxy's two pages, Ray's fallback, the replica and the operator
        assert {address for address, _ in own} == {"127.0.0.1"}

        # two servers on one machine never answer for each other
        nonce = alone.record().nonce
        for _ in range(20):
            assert alone.get("/v1/health/live")["server"] == nonce
            assert {entry["name"] for entry in alone.get("/v1/classes")["classes"]} == {"rook", "jackdaw"}
            assert server.get("/v1/health/live")["server"] == server.record().nonce
        assert {port for _, port in listeners(ground.processes(nonce))}.isdisjoint(
            port for _, port in listeners(ground.processes(server.record().nonce))
        )

        # a second server is refused before anything starts: in the same home, and at the same port
        for flags, sentence in (
            (str(home), "served already, by process"),
            (str(home / "other"), "in use by another program"),
        ):
            Path(flags).mkdir(exist_ok=True)
            if flags != str(home):
                tiny_version(Server(Path(flags), 0, None, home / "log").registry, live=True)  # type: ignore[arg-type]
            command = [*launch_command(), "--home", flags, "--port", str(alone.port)]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert ran.returncode == 1
            assert sentence in ran.stderr
            assert "Traceback" not in ran.stderr
        assert alone.get("/v1/health/live")["server"] == nonce

        # swaps under load
        with Load(alone) as load:
            time.sleep(0.3)
            for _ in range(2):
                version = another(alone)
                assert alone.promote(version).status_code == 200
                assert seen_after(load, time.time()) == {version}
        assert load.failures == []
        assert len(load.versions()) == 3

        # its only replica is killed: it answers again by itself, by what is live
        (row,) = alone.replicas().values()
        os.kill(row["process_id"], signal.SIGKILL)
        eventually(lambda: all_answer_by(alone, version, count=1))
        eventually(lambda: classify(alone).json()["version"] == version)

        # the whole server is killed, and the next start finds nothing in its way
        left = ground.processes(nonce)
        assert len(left) > 8
        alone.process.kill()
        alone.process.wait()
        again = launch(home, port=alone.port)
        wait_until_ready(again)
        assert classify(again).json()["version"] == version
        assert ground.processes(nonce) == []

        # ctrl-C, as a terminal sends it to the whole group: no trace, no process, no file
        nonce, folder = again.record().nonce, again.record().folder
        os.killpg(again.process.pid, signal.SIGINT)
        assert again.process.wait(60) == 0
        assert "Traceback" not in again.text()
        assert "rror" not in again.text()
        assert ground.processes(nonce) == []
        assert not Path(folder).exists()
        assert not (home / "server.json").exists()
        with pytest.raises(httpx.ConnectError):
            again.get("/v1/health/live")


def classify(server: Server) -> httpx.Response:
    with server.http() as http:
        return http.post("/v1/classify", content=encoded(tiny_images()[0]))


def launch_command() -> list[str]:
    return [sys.executable, "-m", "lifelist.deploy.cli", "serve"]


def test_sigterm_in_the_middle_of_the_start_leaves_nothing(home: Path) -> None:
    server = launch(home)
    record = eventually(lambda: ground.read(home))
    eventually(lambda: len(ground.processes(record.nonce)) > 3)
    assert server.end(signal.SIGTERM) == 0
    assert "Traceback" not in server.text()
    assert ground.processes(record.nonce) == []


@pytest.mark.parametrize("broken", ["empty", "altered"])
def test_what_cannot_be_served_is_said_before_anything_starts(tmp_path: Path, broken: str) -> None:
    server = Server(tmp_path, 0, None, tmp_path / "log")  # type: ignore[arg-type]
    sentence = "no live version"
    if broken == "altered":
        manifest = tiny_version(server.registry, live=True)
        flip_one_bit(blob_path(server.registry, manifest, "model.onnx"))
        sentence = "version 1 is live and cannot be served: model.onnx"
    ran = subprocess.run([*launch_command(), "--home", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ran.returncode in (1, 2)
    assert sentence in ran.stderr
    assert ran.stdout == ""
