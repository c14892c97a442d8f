"""Notices reach a real HTTP server, signed, at least once, in order; and nothing else is ever called."""

import base64
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from parts_operator import serving
from parts_server import free_port

from lifelist import Client
from lifelist.client.errors import RequestFailed
from lifelist.deploy.cli import main
from lifelist.deploy.settings import Settings
from lifelist.deploy.sources import load, resolve
from lifelist.deploy.store import Store
from lifelist.exporter.errors import BadSetting
from lifelist.monitoring import notices, webhooks
from lifelist.monitoring.options import Webhook
from lifelist.monitoring.webhooks import GIVE_UP_S, Post, signature

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NOW = 1_800_000_000.0


@dataclass
class Receiver:
    """What it got, and what it answers."""

    url: str = ""
    status: int = 204
    answer: bytes = b""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    location: str = ""

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(made.status)
            if made.location:
                self.send_header("Location", made.location)
            self.send_header("Content-Length", str(len(made.answer)))
            self.end_headers()
            self.wfile.write(made.answer)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    yield made
    server.shutdown()
    server.server_close()


def hook(url: str, *kinds: str) -> Webhook:
    return Webhook(url=url, secret=SECRET, kinds=kinds)  # type: ignore[arg-type]


def post(store: Store, *hooks: Webhook) -> Post:
    made = Post(store, hooks, "http://server:8000")
    made.look(NOW)  # from here on
    return made


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The reference vector of that specification's libraries."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    key = Webhook(url="http://x/", secret=secret).key  # type: ignore[arg-type]
    found = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_notice_arrives_as_a_signed_cloud_event(store: Store, receiver: Receiver) -> None:
    sends = post(store, hook(receiver.url))
    notices.tell(store, "swap", "version 2 is live", 2, before=1, generation=2)
    assert sends.look(NOW + 1) == 1
    ((headers, body),) = receiver.got
    found = json.loads(body)
    assert {name: found[name] for name in ("specversion", "source", "type", "subject", "datacontenttype")} == {
        "specversion": "1.0", "source": "http://server:8000", "type": "lifelist.swap", "subject": "versions/2",
        "datacontenttype": "application/json",
    }  # fmt: skip
    assert found["data"] == {"message": "version 2 is live", "version": 2, "before": 1, "generation": 2}
    assert found["time"].endswith("Z")
    assert headers["content-type"] == "application/cloudevents+json; charset=UTF-8"
    assert headers["webhook-id"] == found["id"]
    at = int(headers["webhook-timestamp"])
    assert at == int(NOW) + 1
    assert headers["webhook-signature"] == signature(bytes(range(32)), found["id"], at, body)
    assert sends.look(NOW + 2) == 0
    assert len(receiver.got) == 1


def test_each_hook_gets_its_kinds_in_order_from_when_it_was_set(store: Store, receiver: Receiver) -> None:
    notices.tell(store, "swap", "long ago", 1)
    alarms, everything = hook(f"{receiver.url}?alarms", "alarm", "cleared"), hook(receiver.url)
    sends = post(store, alarms, everything)
    for number, kind in enumerate(["swap", "alarm", "swap", "cleared"]):
        notices.tell(store, kind, str(number), 1)
    assert sends.look(NOW + 1) == 6
    assert [event["data"]["message"] for event in receiver.events] == ["1", "3", "0", "1", "2", "3"]
    assert Post(store, (alarms, everything), "").look(NOW + 2) == 0  # a new process goes on from there


def test_a_hook_that_fails_is_tried_again_with_longer_pauses_and_loses_nothing(
    store: Store, receiver: Receiver
) -> None:
    sends, receiver.status, receiver.answer = post(store, hook(receiver.url)), 500, b"not now " * 100
    for message in "ab":
        notices.tell(store, "swap", message, 1)
    asked = []
    for second in range(1, 41):
        before = len(receiver.got)
        sends.look(NOW + second)
        asked += [second] * (len(receiver.got) - before)
    assert asked == [1, 2, 4, 8, 16, 32]
    assert {event["data"]["message"] for event in receiver.events} == {"a"}
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1  # so that who gets it twice can tell
    receiver.status, receiver.got = 200, []
    assert sends.look(NOW + 100) == 2
    assert [event["data"]["message"] for event in receiver.events] == ["a", "b"]
    log = webhooks.log(store, 100)
    assert [(one.attempt, one.outcome, one.status) for one in log[:3]] == [
        (1, "delivered", 200), (7, "delivered", 200), (6, "failed", 500)
    ]  # fmt: skip
    assert log[2].message.startswith("not now")
    assert len(log[2].message) <= 300


def test_a_clock_that_is_set_back_holds_up_no_hook(store: Store, receiver: Receiver) -> None:
    sends, receiver.status = post(store, hook(receiver.url)), 503
    notices.tell(store, "swap", "a", 1)
    assert sends.look(NOW) == 0
    receiver.status = 204
    assert sends.look(NOW - 7200) == 1


def test_an_event_that_nobody_takes_for_a_day_is_given_up_and_later_ones_arrive(
    store: Store, receiver: Receiver
) -> None:
    sends, receiver.status = post(store, hook(receiver.url)), 400
    for message in "ab":
        notices.tell(store, "swap", message, 1)
    sends.look(NOW + 1)
    sends.look(NOW + 1 + GIVE_UP_S)
    receiver.status = 200
    assert sends.look(NOW + 2 + GIVE_UP_S) == 1
    assert [one.outcome for one in webhooks.log(store, 3)] == ["delivered", "given-up", "failed"]
    assert receiver.events[-1]["data"]["message"] == "b"


def test_a_hook_that_is_down_holds_up_no_other(store: Store, receiver: Receiver) -> None:
    sends = post(store, hook(f"http://127.0.0.1:{free_port()}/"), hook(receiver.url))
    notices.tell(store, "swap", "a", 1)
    assert sends.look(NOW + 1) == 1
    assert len(receiver.got) == 1
    (failed,) = [one for one in webhooks.log(store, 10) if one.outcome == "failed"]
    assert failed.status is None
    assert "ConnectError" in failed.message


def test_no_redirect_is_followed(store: Store, receiver: Receiver) -> None:
    receiver.status, receiver.location = 307, receiver.url
    sends = post(store, hook(receiver.url))
    notices.tell(store, "swap", "a", 1)
    assert sends.look(NOW + 1) == 0
    assert len(receiver.got) == 1


def test_the_log_is_bounded(store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "KEPT", 5)
    sends = post(store, hook(receiver.url))
    for number in range(12):
        notices.tell(store, "swap", str(number), 1)
    assert sends.look(NOW + 1) == 12
    assert [one.notice for one in webhooks.log(store, 100)] == [12, 11, 10, 9, 8]


def test_the_test_button_tells_what_came_back(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.answer, receiver.status = b"thanks", 200
    down = f"http://127.0.0.1:{free_port()}/"
    hooks = (hook(receiver.url.replace("://", "://user:pass@") + "?token=1"), hook(down))
    with serving(tmp_path / "home", webhooks=hooks) as server, Client(server.url) as client:
        reached, missed = client.test_webhooks()["deliveries"]
        assert (reached["outcome"], reached["status"], reached["message"]) == ("delivered", 200, "thanks")
        assert reached["url"] == receiver.url  # neither password nor token
        assert (missed["outcome"], missed["status"], missed["url"]) == ("failed", None, down)
        assert receiver.events[0]["type"] == "lifelist.test"
        Post(server.workshop.store, hooks, server.url).look(time.time())
        found = client.webhooks()
        assert [(one["url"], one["waiting"]) for one in found["webhooks"]] == [(receiver.url, 0), (down, 0)]
        monkeypatch.chdir(tmp_path)
        assert main(["webhooks", "test", "--port", server.port]) == 1
        out, err = capsys.readouterr()
        assert "delivered" in out
        assert "1 of 2 webhooks did not take the event" in err
        assert main(["webhooks", "log", "--port", server.port]) == 0


def test_without_a_hook_there_is_nothing_to_test(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "home") as server,
        Client(server.url) as client,
        pytest.raises(RequestFailed, match="there is no webhook in the settings"),
    ):
        client.test_webhooks()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"url": "ftp://x/", "secret": SECRET}, "should be an http:// or https:// URL"),
        ({"url": "file:///etc/passwd", "secret": SECRET}, "should be an http:// or https:// URL"),
        ({"url": "http://", "secret": SECRET}, "should be an http:// or https:// URL"),
        ({"url": "http://x/", "secret": "short"}, "16 bytes at least"),
        ({"url": "http://x/", "secret": "whsec_!"}, "what follows is not base64"),
        ({"url": "http://x/", "secret": SECRET, "kinds": ["swop"]}, "has 'swop'; there are swap, gate"),
    ],
)
def test_a_hook_that_cannot_be_is_refused_and_its_secret_not_shown(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadSetting) as caught:
        load(["--webhooks", json.dumps([row])], {}, tmp_path)
    assert message in str(caught.value)
    assert "short" not in str(caught.value)
    assert "whsec_!" not in str(caught.value)


def test_a_secret_reaches_the_server_and_nothing_that_is_printed(tmp_path: Path) -> None:
    given = json.dumps([{"url": "https://x/y", "secret": SECRET, "kinds": ["alarm"]}])
    resolved = resolve(["--webhooks", given], {}, tmp_path)
    assert SECRET not in resolved.settings.model_dump_json()
    assert SECRET not in repr(resolved.settings)
    assert "webhooks" not in resolved.given
    handed_on = resolved.settings.model_dump(mode="json", context={"secrets": True})
    assert Settings.model_validate(handed_on).webhooks[0].key == bytes(range(32))
    with pytest.raises(BadSetting, match="has a url twice"):
        load(["--webhooks", json.dumps([json.loads(given)[0]] * 2)], {}, tmp_path)
