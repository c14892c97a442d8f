"""Notices sent to webhooks: as CloudEvents 1.0, structured JSON, signed as Standard Webhooks are (HMAC-SHA256).

At least once: a position in the table of notices moves on when a hook has answered with a 2xx, so that whoever is
killed sends again what may have arrived; the id of an event stays the same. A hook that does not take an event is asked
again after longer and longer pauses, and for a day at most; then that event is given up, so that later ones arrive.
Nothing but the URLs in the settings is ever called: no redirect is followed, and no proxy of the environment asked.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import sqlalchemy as sa

from lifelist.monitoring import notices, tables, times
from lifelist.monitoring.database import Database, put
from lifelist.monitoring.figures import DAY
from lifelist.monitoring.notices import Notice
from lifelist.monitoring.options import Webhook

TIMEOUT_S = 10.0  # of an attempt
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 600.0  # between attempts; each is twice the one before
GIVE_UP_S = float(DAY)  # from the first attempt on
AT_ONCE = 100  # notices in a look
KEPT = 1000  # deliveries in the log, of each hook
SHOWN_BYTES = 300  # of an answer
TEST = "test"
CONTENT_TYPE = "application/cloudevents+json; charset=UTF-8"

Outcome = Literal["delivered", "failed", "given-up"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt to deliver one event."""

    at: str
    url: str  # without what may be secret in it
    notice: int  # its id; 0: a test
    kind: str
    attempt: int
    outcome: Outcome
    status: int | None  # of the answer; None: there was none
    seconds: float
    message: str  # what came back, its beginning; or what went wrong


def event(notice: Notice, source: str) -> dict[str, Any]:
    """A notice as a CloudEvent; source: the server's URL."""
    found: dict[str, Any] = {
        "specversion": "1.0",
        "id": f"{notice.at}/{notice.id}",
        "source": source,
        "type": f"lifelist.{notice.kind}",
        "time": notice.at,
        "datacontenttype": "application/json",
        "data": {"message": notice.message, "version": notice.version, **notice.data},
    }
    return found if notice.version is None else found | {"subject": f"versions/{notice.version}"}


def signature(key: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """The header webhook-signature: of id, Unix time and body, so that neither can be altered nor sent again later."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"


def send(hook: Webhook, notice: Notice, source: str, attempt: int = 1, at: float | None = None) -> Delivery:
    """One attempt; at: now, a Unix time. Whatever goes wrong on the way is told, not raised."""
    at, found = time.time() if at is None else at, event(notice, source)
    body = json.dumps(found, ensure_ascii=False, default=str).encode()
    headers = {
        "Content-Type": CONTENT_TYPE,
        "User-Agent": "lifelist",
        "Accept-Encoding": "identity",
        "webhook-id": found["id"],
        "webhook-timestamp": str(int(at)),
        "webhook-signature": signature(hook.key, found["id"], int(at), body),
    }
    status, began = None, time.perf_counter()
    try:
        with (
            httpx.Client(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as http,
            http.stream("POST", hook.url, content=body, headers=headers) as answer,
        ):
            status = answer.status_code
            message = _beginning(answer)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        message = f"{type(error).__name__}: {error}"[:SHOWN_BYTES]
    taken = status is not None and 200 <= status < 300
    seconds = time.perf_counter() - began
    outcome: Outcome = "delivered" if taken else "failed"
    return Delivery(times.text(at), hook.shown, notice.id, notice.kind, attempt, outcome, status, seconds, message)


def _beginning(answer: httpx.Response) -> str:
    """What an answer says, its first bytes; no more of it is read."""
    found = b""
    for part in answer.iter_raw():  # as it came: what is compressed could become anything
        found += part
        if len(found) >= SHOWN_BYTES:
            break
    return found[:SHOWN_BYTES].decode(errors="replace")


def test(hooks: Sequence[Webhook], source: str) -> list[Delivery]:
    """An event of kind `test` to each hook, once: what came back. Nothing is logged, nor tried again."""
    notice = Notice(0, times.now(), TEST, None, "a test, because somebody asked for one", {})
    return [send(hook, notice, source) for hook in hooks]


class Post:
    """Sends what is new to each hook; one for each server, called every few seconds by one thread of its own."""

    def __init__(self, database: Database, hooks: Sequence[Webhook], source: str) -> None:
        self.database, self.hooks, self.source = database, hooks, source

    def look(self, at: float) -> int:
        """Send what is due; at: now, a Unix time. How many were delivered."""
        return sum(self._of(hook, at) for hook in self.hooks)

    def _of(self, hook: Webhook, at: float) -> int:
        stand, delivered = self._stand(hook), 0
        if at < stand["next_at"] <= at + LONGEST_PAUSE_S:  # later than that: the clock was set back
            return 0
        for notice in self._after(stand["position"], hook.kinds):
            first_at = at if stand["first_at"] is None else stand["first_at"]
            made = send(hook, notice, self.source, stand["attempts"] + 1, at)
            if made.outcome == "delivered":
                stand = _at(hook, notice.id)
            elif at - first_at >= GIVE_UP_S:
                made = Delivery(*(made.at, made.url, made.notice, made.kind, made.attempt), "given-up", *_rest(made))
                stand = _at(hook, notice.id)
            else:
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** stand["attempts"])
                stand = stand | {"attempts": made.attempt, "first_at": first_at, "next_at": at + pause}
            self._write(hook, stand, made)
            if made.outcome != "delivered":
                return delivered
            delivered += 1
        return delivered

    def _stand(self, hook: Webhook) -> dict[str, Any]:
        """How far a hook has been told. One that is new is told what happens from now on."""
        c = tables.webhooks.c
        with self.database.reading() as connection:
            row = connection.execute(sa.select(tables.webhooks).where(c.url == hook.url)).first()
        if row is not None:
            return dict(row._mapping)
        stand = _at(hook, notices.last_id(self.database))
        with self.database.writing() as connection:
            connection.execute(tables.webhooks.delete().where(c.url.not_in([one.url for one in self.hooks])))
            put(connection, tables.webhooks, [stand])
        return stand

    def _after(self, position: int, kinds: Sequence[str]) -> list[Notice]:
        """The next notices, the oldest first. One thread writes them all, so their ids commit in order."""
        c = tables.notices.c
        query = sa.select(c.id, c.at, c.kind, c.version, c.message, c.data).where(c.id > position)
        if kinds:
            query = query.where(c.kind.in_(kinds))
        with self.database.reading() as connection:
            return [Notice(*row) for row in connection.execute(query.order_by(c.id).limit(AT_ONCE))]

    def _write(self, hook: Webhook, stand: Mapping[str, Any], made: Delivery) -> None:
        c = tables.deliveries.c
        row = {name: getattr(made, name) for name in Delivery.__slots__}
        with self.database.writing() as connection:
            put(connection, tables.webhooks, [stand])
            connection.execute(tables.deliveries.insert().values(row))
            kept = sa.select(c.id).where(c.url == made.url).order_by(c.id.desc()).offset(KEPT).limit(1)
            if (oldest := connection.scalar(kept)) is not None:
                connection.execute(tables.deliveries.delete().where(c.url == made.url, c.id <= oldest))


def log(database: Database, limit: int) -> list[Delivery]:
    """The latest attempts, the latest first."""
    c = tables.deliveries.c
    query = sa.select(*(c[name] for name in Delivery.__slots__)).order_by(c.id.desc()).limit(limit)
    with database.reading() as connection:
        return [Delivery(*row) for row in connection.execute(query)]


def _at(hook: Webhook, position: int) -> dict[str, Any]:
    return {"url": hook.url, "position": position, "attempts": 0, "first_at": None, "next_at": 0.0}


def _rest(made: Delivery) -> tuple[int | None, float, str]:
    return made.status, made.seconds, made.message
