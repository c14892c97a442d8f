"""The update path over HTTP: what each route does, what it promises, and what it refuses."""

import asyncio
import concurrent.futures
import contextlib
import io
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from parts import BIRDS, OPEN, tiny_version
from parts_http import Cutter
from parts_operator import Server, bird, files, play, serving, take_step, tell_epoch

from lifelist.client.blocking import Client
from lifelist.client.errors import RequestFailed
from lifelist.deploy import enrol, examples, operator, uploads
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import BadInput, Conflict, TooLarge, Unavailable
from lifelist.exporter.manifest import Check
from lifelist.monitoring import feedback
from lifelist.serving import openapi, prediction
from lifelist.serving.catalog import Catalog
from lifelist.serving.prediction import Prediction


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as made:
        yield made


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as made:
        yield made


# ---------------------------------------------------------------------------------------------------------- examples


def test_a_new_class_is_answerable_when_its_examples_are_accepted(client: Client, server: Server) -> None:
    assert client.classify([("x.png", bird(3))])["version"] == 1
    added = client.add_examples("wren", files(3, 5))
    assert added["class"] == {"id": 4, "name": "wren", "state": "enrolled"}
    assert (added["accepted"], added["version"]) == (5, 2)
    assert [e["status"] for e in added["examples"]] == ["accepted"] * 5
    assert {e["role"] for e in added["examples"]} == {"training", "gate", "holdout"}
    answer = client.classify([("x.png", bird(3, 99))])
    assert (answer["version"], answer["answer"]) == (2, "nearest_mean")
    assert answer["images"][0]["classes"][0]["name"] == "wren"
    shared = server.workshop.registry.manifest(2).file("model.onnx")
    assert shared == server.workshop.registry.manifest(1).file("model.onnx")


def test_new_images_of_a_trained_class_are_accepted_and_can_be_learned_by_name_or_as_all_pending(
    client: Client,
) -> None:
    added = client.add_examples("heron", files(0, 5))
    assert added["class"] == {"id": 1, "name": "heron", "state": "trained"}
    assert (added["accepted"], added["version"]) == (5, 1)  # nothing is enrolled: it has a row
    started = client.start_increment(["heron"])
    assert [known["name"] for known in started["classes"]] == ["heron"]
    client.cancel(started["id"])
    assert [known["name"] for known in client.start_increment()["classes"]] == ["heron"]


def test_each_image_is_answered_for(client: Client) -> None:
    client.add_examples("wren", files(3, 2))
    added = client.add_examples("robin", [*files(4, 1), *files(4, 1), ("note.txt", b"not an image"), *files(3, 1)])
    statuses = [(e["file"], e["status"]) for e in added["examples"]]
    assert statuses == [
        ("robin-0.png", "accepted"),
        ("robin-0.png", "duplicate"),
        ("note.txt", "refused"),
        ("wren-0.png", "refused"),
    ]
    assert "not an image" in added["examples"][2]["reason"]
    assert "already an example of class 'wren'" in added["examples"][3]["reason"]
    assert added["accepted"] == 1


def test_sending_the_same_again_changes_nothing(client: Client) -> None:
    first = client.add_examples("wren", files(3, 3))
    again = client.add_examples("wren", files(3, 3))
    assert {e["status"] for e in again["examples"]} == {"duplicate"}
    assert (again["accepted"], again["version"], again["class"]) == (0, first["version"], first["class"])
    assert client.versions()["live"] == first["version"]


def test_the_class_may_come_after_the_images_in_the_form(http: httpx.Client) -> None:
    form = [("images", ("a.png", bird(3), "image/png")), ("class", (None, "wren")), ("images", ("b.png", bird(3, 1)))]
    answer = http.post("/v1/examples", files=form)
    assert answer.status_code == 200, answer.text
    assert answer.json()["accepted"] == 2


def test_two_uploads_at_once_take_turns_and_both_are_enrolled(server: Server) -> None:
    def add(k: int) -> Any:
        with Client(server.url) as client:
            return client.add_examples(BIRDS[k], files(k, 4))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(add, (3, 4, 5, 6)))
    assert sorted(added["version"] for added in found) == [2, 3, 4, 5]
    with Client(server.url) as client:
        assert {c["name"] for c in client.classes()["classes"]} == set(BIRDS[:7])


def test_an_upload_does_not_stop_other_requests(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    add = examples.add

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return add(*arguments)

    monkeypatch.setattr(examples, "add", slow)
    with concurrent.futures.ThreadPoolExecutor() as pool, Client(server.url) as client:
        upload = pool.submit(lambda: Client(server.url).add_examples("wren", files(3, 1)))
        assert begun.wait(30)
        assert client.increments() == []
        assert client.ready()
        go_on.set()
        assert upload.result(30)["accepted"] == 1


def test_an_upload_whose_client_leaves_while_it_waits_is_added_in_its_turn(server: Server) -> None:
    form = {"data": {"class": "wren"}, "files": [("images", file) for file in files(3, 2)]}
    request = httpx.Request("POST", f"{server.url}/v1/examples", **form)  # type: ignore[arg-type]
    body = request.read()
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    scope = {"type": "http", "method": "POST", "path": "/v1/examples", "query_string": b"", "headers": headers}

    async def leave_while_waiting() -> None:
        registry = server.workshop.registry
        application = operator.app(server.workshop, Catalog(registry, None, server.settings.serving, "x"), OPEN)  # type: ignore[arg-type]
        sent = asyncio.Event()

        async def receive() -> Any:
            sent.set()
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            raise AssertionError(f"nobody is there to hear {message}")

        async with application.state.desk.turn:  # another one's turn
            handler = asyncio.create_task(application(scope, receive, send))
            await sent.wait()
            await asyncio.sleep(0.3)
            handler.cancel()  # as Ray Serve does when a client leaves
            with pytest.raises(asyncio.CancelledError):
                await handler
        async with asyncio.timeout(30):
            while "wren" not in {known.name for known in server.workshop.store.classes()}:
                await asyncio.sleep(0.05)

    asyncio.run(leave_while_waiting())


def test_a_body_over_the_limit_is_refused_before_it_is_sent_whole(tmp_path: Path) -> None:
    with serving(tmp_path, examples={"max_request_bytes": 50_000}) as server, Client(server.url) as client:
        with pytest.raises(TooLarge, match="limit is 50,000"):
            client.add_examples("wren", [("big.png", bytes(60_000))])
        port = int(server.port)
        with socket.create_connection(("127.0.0.1", port)) as raw:  # no Content-Length: counted as it arrives
            raw.sendall(
                b"POST /v1/examples HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            )
            with contextlib.suppress(OSError):
                for _ in range(100):
                    raw.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
            assert b" 413 " in raw.recv(65536).split(b"\r\n")[0]
        assert client.classes()["version"] == 1


def test_too_many_images_in_one_request_change_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, examples={"max_per_request": 3}) as server, Client(server.url) as client:
        with pytest.raises(TooLarge, match="more than 3 images"):
            client.add_examples("wren", files(3, 4))
        assert "wren" not in [known.name for known in server.workshop.store.classes()]


def test_what_was_accepted_before_a_kill_is_enrolled_at_the_next_start(tmp_path: Path) -> None:
    def killed_before_it_enrolled(workshop: Workshop) -> None:
        examples.add(workshop, "wren", files(3, 4))

    with serving(tmp_path, before=killed_before_it_enrolled) as server, Client(server.url) as client:
        deadline = time.monotonic() + 30
        while "wren" not in {c["name"] for c in client.classes()["classes"]}:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# -------------------------------------------------------------------------------------------------------- multipart


def form(*parts: tuple[str, str | None, bytes]) -> tuple[io.BytesIO, bytes]:
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (name.encode(), b"" if file is None else b'; filename="%s"' % file.encode(), data)
        for name, file, data in parts
    )
    return io.BytesIO(body + b"--b--\r\n"), b"b"


def test_what_could_not_be_enrolled_is_enrolled_later_without_another_request(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError("disk full"), sa.exc.OperationalError("", {}, Exception("away")), Unavailable("no replica")]
    original, calls = enrol.enrol, []

    def failing(workshop: Workshop) -> Any:
        calls.append(workshop)
        if failures:
            raise failures.pop(0)
        return original(workshop)

    monkeypatch.setattr(operator, "CATCH_UP_AT_MOST_S", 0.1)
    monkeypatch.setattr(enrol, "enrol", failing)
    examples.add(server.workshop, "wren", files(3, 5))  # accepted, and then the request failed
    deadline = time.monotonic() + 20
    while "wren" not in [known["name"] for known in client.classes()["classes"]]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert failures == []
    time.sleep(3)  # one more look, at the version that it made; then there is nothing to do
    count = len(calls)
    time.sleep(2.5)
    assert len(calls) == count <= 5


def test_parts_come_out_as_they_went_in_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    every_byte = bytes(range(256)) * 9
    sent = [("class", None, "ïbis".encode()), ("images", "../é.png", every_byte), ("images", "", b"\r\n--a\r\n-")]
    for chunk in (1, 7, 100, 1 << 18):
        monkeypatch.setattr(uploads, "CHUNK", chunk)
        body, separator = form(*sent)
        assert [(p.name, p.filename, bytes(p.data)) for p in uploads.parts(body, separator)] == sent


@pytest.mark.parametrize("cut", [1, 5, 40, 100])
def test_a_form_that_was_cut_off_is_refused_whole(cut: int) -> None:
    body, separator = form(("class", None, b"wren"), ("images", "a", bytes(200)))
    with pytest.raises(BadInput, match="ends before its last boundary"):
        uploads.labelled(io.BytesIO(body.getvalue()[: -4 - cut]), separator)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([("images", "a", b"x")], "`class`.* is there 0 times"),
        ([("class", None, b"a"), ("class", None, b"b"), ("images", "a", b"x")], "is there 2 times"),
        ([("class", None, b"a")], "no file `images`"),
        ([("class", None, b"a"), ("images", None, b"x")], "should be a file"),
        ([("class", "a.txt", b"a"), ("images", "a", b"x")], "should be text"),
        ([("class", None, b"\xff"), ("images", "a", b"x")], "not UTF-8"),
        ([("klass", None, b"a"), ("images", "a", b"x")], "no field 'klass'"),
        ([("", None, b"a")], "has no name"),
    ],
)
def test_a_form_of_other_fields_says_which_are_right(parts: list[tuple[str, str | None, bytes]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        uploads.labelled(*form(*parts))


# -------------------------------------------------------------------------------------------------------- increments


def test_starting_an_increment_says_where_to_look(client: Client, http: httpx.Client) -> None:
    client.add_examples("wren", files(3, 12))
    answer = http.post("/v1/increments")  # without a body: all pending classes, by the settings' method
    assert answer.status_code == 202
    assert answer.headers["location"] == "/v1/increments/1"
    found = answer.json()
    assert (found["id"], found["state"], found["method"]) == (1, "queued", "bic")
    assert found["classes"] == [{"id": 4, "name": "wren"}]
    assert (found["progress"], found["version"], found["reason"], found["steps"]) == (None, None, None, [])
    assert http.get("/v1/increments/1").json() == found
    assert http.get("/v1/increments").json() == {"increments": [found]}


def test_the_same_idempotency_key_starts_one_increment(client: Client, http: httpx.Client) -> None:
    client.add_examples("wren", files(3, 12))
    first = client.start_increment(["wren"], key="k")
    assert client.start_increment(["wren"], key="k")["id"] == first["id"]
    assert http.post("/v1/increments", json={"idempotency_key": "k"}).json()["id"] == first["id"]
    assert len(client.increments()) == 1
    with pytest.raises(Conflict, match="use another key"):
        client.start_increment(["wren"], "wa", key="k")
    both = http.post("/v1/increments", json={"idempotency_key": "a"}, headers={"Idempotency-Key": "b"})
    assert (both.status_code, both.json()["error"][:26]) == (400, "the header Idempotency-Key")


def test_names_are_found_however_they_are_spelled(client: Client, http: httpx.Client) -> None:
    client.add_examples("\u00fcber", files(3, 12))
    answer = http.post("/v1/increments", json={"classes": [" u\u0308ber "]})
    assert [known["name"] for known in answer.json()["classes"]] == ["\u00fcber"]
    made = client.classify([("x", bird(3))])["images"][0]["prediction_id"]
    assert client.feedback(made, "u\u0308ber")["truth"]["name"] == "\u00fcber"


def test_an_idempotency_key_with_control_characters_is_refused(client: Client, http: httpx.Client) -> None:
    client.add_examples("wren", files(3, 12))
    for key in ("a\x00b", "a\nb", "\x7f"):
        answer = http.post("/v1/increments", json={"idempotency_key": key})
        assert (answer.status_code, "no control characters" in answer.json()["error"]) == (400, True)
    assert http.get("/v1/increments").json() == {"increments": []}


def test_an_increment_shows_its_steps_and_how_far_training_is(client: Client, server: Server) -> None:
    client.add_examples("wren", files(3, 12))
    client.start_increment()
    shop = server.workshop
    rollout = take_step(shop, shop.store.rollout(1), "intake")
    rollout = take_step(shop, rollout, "train", {"teacher": 2})
    shop.store.begin_step(rollout)
    tell_epoch(shop, rollout, 3, 10)
    found = client.increment(1)
    assert (found["state"], found["teacher"]) == ("train", 2)
    assert found["progress"] == {
        "phase": "main", "epoch": 3, "epochs": 10, "images_per_second": 100.0, "seconds_left": 7.0,
    }  # fmt: skip
    assert [(s["state"], s["ended"] is None) for s in found["steps"]] == [("intake", False), ("train", True)]
    take_step(shop, rollout, "export")
    assert client.increment(1)["progress"] is None


def test_cancelling_ends_what_is_queued_and_answers_202(client: Client, http: httpx.Client) -> None:
    client.add_examples("wren", files(3, 12))
    client.start_increment()
    answer = http.post("/v1/increments/1:cancel")
    assert (answer.status_code, answer.headers["location"]) == (202, "/v1/increments/1")
    assert answer.json()["state"] == "cancelled"
    assert client.cancel(1)["state"] == "cancelled"


def test_head_of_events_has_an_end_though_they_have_none_yet(client: Client, http: httpx.Client) -> None:
    client.add_examples("wren", files(3, 5))
    client.start_increment()
    for _ in range(3):  # on one connection
        head = http.head("/v1/increments/1/events")
        assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert head.content == b""


def test_events_come_as_they_happen_and_end_with_the_increment(client: Client, server: Server) -> None:
    client.add_examples("wren", files(3, 12))
    client.start_increment()
    threading.Thread(target=play, args=(server,)).start()
    events = list(client.events(1))
    kinds = [event.kind for event in events]
    assert kinds == ["state"] * 3 + ["epoch"] * 5 + ["state"] * 7 + ["ended"]
    assert [e.data["epoch"] for e in events if e.kind == "epoch"] == [1, 2, 3, 4, 5]
    assert events[-1].data["state"] == "done"
    ids = [event.id for event in events]
    assert ids == sorted(set(ids))


def test_last_event_id_goes_on_after_that_event(client: Client, server: Server, http: httpx.Client) -> None:
    client.add_examples("wren", files(3, 12))
    client.start_increment()
    play(server)
    every = list(client.events(1))
    with http.stream("GET", "/v1/increments/1/events", headers={"Last-Event-ID": str(every[9].id)}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = answer.read().decode()
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    assert [int(block["id"]) for block in blocks] == [event.id for event in every[10:]]
    assert json.loads(blocks[-1]["data"])["state"] == "done"
    assert http.get("/v1/increments/1/events", headers={"Last-Event-ID": str(every[-1].id)}).text == ""
    assert http.get("/v1/increments/1/events", headers={"Last-Event-ID": "x"}).status_code == 400


def test_a_watcher_whose_connection_breaks_misses_no_event_and_sees_none_twice(client: Client, server: Server) -> None:
    client.add_examples("wren", files(3, 12))
    client.start_increment()
    play(server)
    every = list(client.events(1))
    size = len(json.dumps(client.increment(1)))
    cutter = Cutter(int(server.port), after=size + 1500)  # the whole increment fits; its events do not
    with Client(cutter.url) as other:
        assert list(other.events(1)) == every
    cutter.listener.close()
    assert cutter.cuts >= 1


def test_a_watcher_gives_up_when_the_server_is_gone_for_good(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path))
        client = Client(server.url)
        client.add_examples("wren", files(3, 12))
        client.start_increment()
        following = client.events(1, patience_s=1)
        next(following)
        stack.close()
        with pytest.raises(Unavailable):
            list(following)


# ---------------------------------------------------------------------------------------------------------- versions


def test_promotion_and_rollback_move_what_answers(client: Client, server: Server) -> None:
    second = tiny_version(server.workshop.registry, BIRDS[:4], first_id=1, seed=1)
    assert client.promote(second.version) == {"live": 2, "previous": 1, "generation": 2}
    assert client.classify([("x", bird(3))])["version"] == 2
    assert client.promote(2)["generation"] == 2  # it is live already
    assert client.rollback() == {"live": 1, "previous": 2, "generation": 3}
    assert client.classify([("x", bird(3))])["version"] == 1
    assert client.rollback()["live"] == 2


def test_without_a_previous_version_there_is_nothing_to_go_back_to(client: Client) -> None:
    with pytest.raises(Conflict, match="no previous version"):
        client.rollback()


def test_a_version_that_the_gate_refused_goes_live_only_by_force(client: Client, server: Server) -> None:
    tiny_version(server.workshop.registry, BIRDS[:4], first_id=1, seed=1, passed=False)
    with pytest.raises(Conflict, match="the gate refused version 2: a class is missing"):
        client.promote(2)
    assert client.classes()["version"] == 1
    assert client.promote(2, force=True)["live"] == 2


def test_a_version_that_no_replica_can_load_does_not_go_live(client: Client, server: Server) -> None:
    from parts import blob_path, flip_one_bit

    registry = server.workshop.registry
    flip_one_bit(blob_path(registry, tiny_version(registry, BIRDS[:4], first_id=1, seed=1), "model.onnx"))
    with pytest.raises(Unavailable, match=r"model\.onnx"):
        client.promote(2)
    assert client.classify([("x", bird(0))])["version"] == 1


# ---------------------------------------------------------------------------------------------------------- feedback


def metric(client: Client, name: str, **labels: str) -> float | None:
    for line in client.metrics().splitlines():
        if line.startswith(f"{name}{{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
            return float(line.rpartition(" ")[2])
    return None


def test_feedback_counts_for_the_version_that_answered(client: Client, server: Server) -> None:
    answers = [client.classify([("x", bird(k))])["images"][0] for k in range(3)]
    assert [a["classes"][0]["name"] for a in answers] == list(BIRDS[:3])
    tiny_version(server.workshop.registry, BIRDS[:4], first_id=1, seed=1, increments=(0, 0, 0, 1))
    client.promote(2)
    right = client.feedback(answers[0]["prediction_id"], "heron")
    assert right == {
        "version": 1, "predicted": {"id": 1, "name": "heron"}, "truth": {"id": 1, "name": "heron"}, "correct": True,
    }  # fmt: skip
    assert not client.feedback(answers[1]["prediction_id"], 3)["correct"]  # a class may be named by its id
    assert metric(client, "lifelist_accuracy_ratio", group="all", version="1", source="feedback") == 0.5
    assert metric(client, "lifelist_accuracy_images", group="all", version="1", source="feedback") == 2
    labelled = {"group": "all", "version": "1", "source": "feedback"}  # whether some are of the audit hangs on chance
    low, high = (metric(client, f"lifelist_accuracy_{end}_ratio", **labelled) for end in ("lower", "upper"))
    assert (low, high) == (pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))  # Wilson, 1 of 2
    assert metric(client, "lifelist_accuracy_ratio", group="all", version="2", source="feedback") is None
    client.feedback(answers[1]["prediction_id"], "gull")  # the label was wrong, and is put right
    assert metric(client, "lifelist_accuracy_ratio", **labelled) == 1.0
    assert metric(client, "lifelist_feedback_total", outcome="correct") == 2
    assert metric(client, "lifelist_feedback_total", outcome="wrong") == 1


def test_an_answer_with_a_class_that_its_version_does_not_have_is_refused_and_not_recorded(
    client: Client, server: Server
) -> None:
    """As where the registry was replaced, and the home stayed."""
    made = Prediction(1, 99, "linear", time.time())
    foreign = prediction.seal(prediction.key_in(server.settings.secret_file), made)
    with pytest.raises(RequestFailed, match="class 99, which version 1 in this registry does not have"):
        client.feedback(foreign, "heron")
    assert feedback.history(server.workshop.store, foreign) == []
    assert metric(client, "lifelist_feedback_total", outcome="orphan") == 1


def test_a_class_that_the_version_could_not_know_counts_apart(client: Client) -> None:
    before = client.classify([("x", bird(3))])["images"][0]
    with pytest.raises(RequestFailed, match="no class is named 'wren'"):
        client.feedback(before["prediction_id"], "wren")
    assert metric(client, "lifelist_feedback_total", outcome="unnamed") == 1
    client.add_examples("wren", files(3, 4))
    assert not client.feedback(before["prediction_id"], "wren")["correct"]
    after = client.classify([("x", bird(3))])["images"][0]
    assert client.feedback(after["prediction_id"], "wren")["correct"]
    assert metric(client, "lifelist_accuracy_ratio", group="all", version="1") is None
    assert metric(client, "lifelist_accuracy_images", group="unseen", version="1") == 1
    assert metric(client, "lifelist_accuracy_ratio", group="new", version="2") == 1.0
    assert metric(client, "lifelist_feedback_total", outcome="unseen") == 1


def test_increments_are_counted_by_state_and_no_state_is_missing(client: Client) -> None:
    assert metric(client, "lifelist_increments", state="queued") == 0
    client.add_examples("wren", files(3, 12))
    client.start_increment()
    assert metric(client, "lifelist_increments", state="queued") == 1
    for state in ("train", "done", "rejected", "failed", "cancelled"):
        assert metric(client, "lifelist_increments", state=state) == 0


# --------------------------------------------------------------------------------------------------------- OpenAPI


def test_every_route_is_described(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    found = {(method, path) for path, methods in paths.items() for method in methods}
    wanted = {
        ("post", "/v1/classify"), ("post", "/v1/examples"), ("get", "/v1/increments"), ("post", "/v1/increments"),
        ("get", "/v1/increments/{increment}"), ("get", "/v1/increments/{increment}/events"),
        ("post", "/v1/increments/{increment}:cancel"), ("post", "/v1/versions/{version}:promote"),
        ("post", "/v1/rollback"), ("post", "/v1/feedback"), ("get", "/v1/classes"), ("get", "/v1/versions"),
        ("get", "/v1/classes/{class_id}"), ("patch", "/v1/classes/{class_id}"),
    }  # fmt: skip
    assert wanted <= found
    body = paths["/v1/examples"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["properties"]) == {"class", "images"}


def test_every_route_in_the_table_of_refusals_exists(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert set(openapi.BESIDE) <= {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def test_every_route_says_that_it_has_no_query_parameters(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    queries = ("/v1/classify", "/infer")  # which the replicas answer
    asked = [(method, path) for path, methods in paths.items() for method in methods if not path.endswith(queries)]
    for method, path in [*asked, ("get", "/docs"), ("get", "/docs/swagger-ui.css"), ("get", "/openapi.json")]:
        answer = http.request(method, f"{path}?x=1")
        assert (answer.status_code, "there is no parameter 'x'" in answer.text) == (400, True), (method, path)


def test_no_two_checks_of_the_gate_hide_each_other(client: Client, server: Server) -> None:
    failed = [Check(name, False, 0.1, 0.5, f"{name} is too low") for name in ("first", "second")]
    tiny_version(server.workshop.registry, BIRDS[:4], first_id=1, seed=1, changes={"gate": tuple(failed)})
    with pytest.raises(Conflict, match="first is too low; second is too low"):
        client.promote(2)


def test_client_answers_are_of_the_declared_shape(client: Client) -> None:
    from lifelist.client import answers

    client.add_examples("wren", files(3, 12))
    client.start_increment()
    classified = client.classify([("x", bird(0)), ("y", bird(1))], top_k=2, unknown_at=0.05)
    shapes: list[tuple[Any, Any]] = [
        (classified, answers.Classified),
        (classified["images"][1], answers.ImageAnswer),
        (classified["images"][1]["classes"][0], answers.Scored),
        (client.increment(1), answers.Increment),
        (client.add_examples("robin", files(4, 1)), answers.Added),
        (client.feedback(classified["images"][0]["prediction_id"], "heron"), answers.Judged),
        (classified["timing"], answers.Timing),
        (next(client.classify_many(bird(0), unknown_at=0.05)), answers.Named),
        (client.classes()["classes"][0], answers.KnownClass),
        (client.versions()["versions"][0], answers.VersionRow),
        (client.version(1), answers.Version),
        (client.version(1)["files"][0], answers.File),
        (client.health(), answers.Ready),
        (client.health()["replicas"][0], answers.ReplicaStatus),
        (client.class_(1), answers.ClassDetail),
        (client.class_(1)["history"][0], answers.ClassEvent),
    ]
    for value, shape in shapes:
        assert set(value) == set(shape.__annotations__), shape.__name__
    assert len(list(itertools.chain.from_iterable(i["classes"] for i in classified["images"]))) == 4
