"""When a client sends a request again, and when never; against a server that has bad days on command."""

import asyncio
import email.utils
import json
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest
from parts_client import Ask, with_both
from parts_http import Act, Handler, after, answers, hangs_up, refuses, scripted
from parts_server import free_port

from lifelist import AsyncClient, Client
from lifelist.client import errors, wire
from lifelist.client.wire import Call, Request, retry_after
from lifelist.exporter.errors import BadInput

ALIVE = {"live": True, "server": "x"}
PNG = b"\x89PNG"


def classified(count: int = 1) -> Act:
    """An answer to so many images."""
    return answers({"version": 1, "answer": "linear", "images": [{"prediction_id": "p", "classes": []}] * count})


@with_both
def test_a_busy_server_is_asked_again_after_the_time_it_asks_for(ask: Ask) -> None:
    with scripted(refuses(503, Retry_After="1"), refuses(429, Retry_After="0"), classified()) as server:
        assert ask(server.url, "classify", PNG)["version"] == 1
    first, second, third = server.at
    assert 1 <= second - first < 1.5
    assert 0 < third - second < 0.5
    assert all(PNG in seen.body for seen in server.seen)
    assert len({seen.headers["X-Request-ID"] for seen in server.seen}) == 1  # the log shows that they are one


def test_the_time_to_wait_is_a_number_or_a_date() -> None:
    def asked(text: str) -> float:
        return retry_after(httpx.Response(503, headers={"Retry-After": text.encode()}))

    soon = datetime.now(UTC) + timedelta(seconds=5)
    assert 3 < asked(email.utils.format_datetime(soon, usegmt=True)) <= 5
    assert asked(email.utils.format_datetime(soon - timedelta(hours=1), usegmt=True)) == 0
    assert [asked(text) for text in ("7", " 7 ", "", "soon", "-1", "²")] == [7, 7, 0, 0, 0, 0]


def test_pauses_double_up_to_a_limit_and_no_two_are_the_same() -> None:
    call = Call(Request(method="GET", path="/", read=str, repeatable=True), "http://x", 10_000)
    pauses = [call.pause(httpx.Response(503)) for _ in range(12)]
    for k, pause in enumerate(pauses):
        most = min(wire.LONGEST_PAUSE_S, wire.FIRST_PAUSE_S * 2**k)
        assert pause is not None
        assert most / 2 <= pause <= most
    assert len(set(pauses)) == len(pauses)


@with_both
def test_it_gives_up_when_patience_ends_and_at_once_if_the_server_asks_for_longer(ask: Ask) -> None:
    with scripted(refuses(503, "busy")) as server:
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match="busy") as caught:
            ask(server.url, "live", of={"patience_s": 1.5})
        assert time.monotonic() - began < 2
        assert caught.value.status == 503
        assert 2 <= len(server.seen) <= 8
    with scripted(refuses(503, Retry_After="3600")) as server:
        with pytest.raises(errors.Unavailable):
            ask(server.url, "live")
        assert len(server.seen) == 1


@with_both
def test_a_connection_that_breaks_is_made_again(ask: Ask) -> None:
    with scripted(hangs_up, hangs_up, classified(2)) as server:
        assert len(ask(server.url, "classify", [PNG, ("b.png", PNG)])["images"]) == 2
        assert len(server.seen) == 3
        assert all(seen.body.count(PNG) == 2 for seen in server.seen)  # whole, each time


@with_both
def test_a_slow_answer_is_not_waited_for_for_ever(ask: Ask) -> None:
    with scripted(after(1, answers(ALIVE)), answers(ALIVE)) as server:
        assert ask(server.url, "live", of={"timeout_s": 0.3}) == ALIVE
        assert len(server.seen) == 2


@with_both
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadInput), (401, errors.BadKey), (403, errors.Forbidden), (404, errors.Missing),
        (405, errors.BadInput), (408, errors.BadInput), (409, errors.Conflict), (413, errors.TooLarge),
        (415, errors.WrongType),
        (500, errors.Failed),
    ],
)  # fmt: skip
def test_no_other_error_is_tried_twice(ask: Ask, status: int, kind: type[errors.RequestFailed]) -> None:
    with scripted(refuses(status, "the reason", X_Request_ID="abc"), answers(ALIVE)) as server:
        with pytest.raises(kind, match=r"^the reason$") as caught:
            ask(server.url, "live")
        assert (type(caught.value), caught.value.status, caught.value.request_id) == (kind, status, "abc")
        assert len(server.seen) == 1


@with_both
@pytest.mark.parametrize("act", [refuses(503), hangs_up])
@pytest.mark.parametrize("method", ["rollback", "promote"])
def test_what_may_have_moved_a_version_is_not_sent_again(ask: Ask, method: str, act: Act) -> None:
    with scripted(act, answers({"live": 1, "previous": 2, "generation": 3})) as server:
        with pytest.raises(errors.Unavailable):
            ask(server.url, method, *([1] if method == "promote" else []))
        assert len(server.seen) == 1


@with_both
def test_a_server_that_is_not_there_yet_is_waited_for_whatever_is_asked(ask: Ask) -> None:
    port = free_port()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ask(f"http://127.0.0.1:{port}", "rollback")))
    thread.start()
    time.sleep(0.4)
    with scripted(answers({"live": 1, "previous": 2, "generation": 3}), port=port) as server:
        thread.join(20)
        assert found == [{"live": 1, "previous": 2, "generation": 3}]
        assert len(server.seen) == 1


@with_both
def test_whoever_has_no_patience_is_told_at_once_that_nobody_answers(ask: Ask) -> None:
    with pytest.raises(errors.Unavailable, match=r"no server answers at http://127\.0\.0\.1:") as caught:
        ask(f"http://127.0.0.1:{free_port()}", "live", of={"patience_s": 0})
    assert caught.value.status is None


@with_both
def test_an_increment_is_started_once_however_often_its_request_is_sent(ask: Ask) -> None:
    with scripted(hangs_up, refuses(503), answers({"id": 7}, 202)) as server:
        assert ask(server.url, "start_increment", ["wren"])["id"] == 7
        ask(server.url, "start_increment", ["wren"])
        ask(server.url, "start_increment", key="mine")
    keys = [seen.headers["Idempotency-Key"] for seen in server.seen]
    assert sorted(Counter(keys).values()) == [1, 1, 3]
    assert keys[4] == "mine"
    assert json.loads(server.seen[0].body) == {"classes": ["wren"], "method": None}


@with_both
def test_progress_counts_an_image_once_however_often_it_is_sent(ask: Ask) -> None:
    added = {"class": {"id": 1, "name": "a", "state": "enrolled"}, "examples": [], "accepted": 1, "version": 1}
    sent: list[int] = []
    with scripted(refuses(503), answers(added | {"warnings": []})) as server:
        ask(server.url, "add_examples", "a", [PNG, PNG + b"2"], sent.append)
        assert len(server.seen) == 2
    assert sent == [4, 5]


@with_both
@pytest.mark.parametrize("act", [answers("<html>welcome"), answers([1]), answers("oh no", 500), answers({}, 404)])
def test_what_is_no_lifelist_server_is_said_to_be_none(ask: Ask, act: Act) -> None:
    with scripted(act) as server, pytest.raises(errors.Failed, match="is it a Lifelist server"):
        ask(server.url, "classes")


# -------------------------------------------------------------------------------------------------------- API keys


@with_both
def test_the_key_is_sent_from_the_argument_or_else_from_the_environment(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted(answers(ALIVE)) as server:
        monkeypatch.setenv("LIFELIST_API_KEY", "from-outside")
        ask(server.url, "live")
        ask(server.url, "live", of={"api_key": "given"})
        ask(server.url, "live", of={"api_key": ""})
        monkeypatch.delenv("LIFELIST_API_KEY")
        ask(server.url, "live")
    sent = [seen.headers.get("Authorization") for seen in server.seen]
    assert sent == ["Bearer from-outside", "Bearer given", None, None]


@pytest.mark.parametrize("key", ["two\nlines", "a key ", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_printed(key: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(BadInput) as caught:
            kind(api_key=key)
        assert key not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ concurrency


def test_so_many_queries_are_under_way_at_once_and_no_more_and_the_answers_in_order() -> None:
    turn = iter(range(100))

    def act(handler: Handler) -> None:
        k = next(turn)
        after(0.3 if k == 0 else 0.05, classified(2))(handler)

    async def asked(url: str) -> int:
        async with AsyncClient(url) as client:
            return len([one async for one in client.classify_many([PNG] * 24, batch=2, concurrency=3)])

    with scripted(act) as server:
        assert asyncio.run(asked(server.url)) == 24
        assert len(server.seen) == 12
        assert server.busiest == 3


def test_answers_are_in_the_order_of_the_images_though_they_arrive_in_another() -> None:
    def act(handler: Handler) -> None:
        shape = handler.headers["X-Tensor-Shape"]
        side = int(shape.split(",")[1])
        found = {"version": side, "answer": "linear", "images": [{"prediction_id": "p", "classes": []}]}
        after(0.4 - side * 0.05, answers(found))(handler)

    given = [np.zeros((side, side, 3), np.uint8) for side in range(1, 8)]

    async def asked(url: str) -> list[int]:
        async with AsyncClient(url) as client:
            return [one["version"] async for one in client.classify_many(given, batch=1, concurrency=7)]

    with scripted(act) as server:
        assert asyncio.run(asked(server.url)) == list(range(1, 8))


def test_a_query_that_fails_ends_those_beside_it() -> None:
    given = [np.zeros((1 if k == 0 else 2, 2, 3), np.uint8) for k in range(100)]  # the first is another than the rest

    def act(handler: Handler) -> None:
        (refuses(400) if handler.headers["X-Tensor-Shape"] == "1,1,2,3" else after(3, classified()))(handler)

    async def asked(url: str) -> float:
        began = time.monotonic()
        async with AsyncClient(url) as client:
            with pytest.raises(errors.BadInput):
                async for _ in client.classify_many(given, batch=1, concurrency=4):
                    pass
            assert len(asyncio.all_tasks()) == 1
        return time.monotonic() - began

    with scripted(act) as server:
        assert asyncio.run(asked(server.url)) < 2
        assert len(server.seen) <= 5
