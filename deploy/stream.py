"""The events of an increment as server-sent events; a reader that was cut off takes them up where it stopped."""

import asyncio
import json
from collections.abc import AsyncIterator

from lifelist.deploy.records import Event
from lifelist.deploy.store import Store
from lifelist.exporter.errors import BadInput
from lifelist.serving.numbers import natural

POLL_S = 0.25
QUIET_S = 10.0  # after so long without an event a comment is sent, so that silence always means a broken connection
LAST = 2**63 - 1


def position(last_event_id: str | None) -> int:
    """The event after which a reader goes on: the number in its Last-Event-ID header, 0 without one."""
    if last_event_id is None or not last_event_id.strip():
        return 0
    if (found := natural(last_event_id.strip(), LAST)) is None:
        raise BadInput(f"Last-Event-ID should be the id of an event, a number from 0 on; not {last_event_id[:40]!r}")
    return found


async def follow(store: Store, rollout_id: int, after: int) -> AsyncIterator[bytes]:
    """Every event after `after`, as it comes; ends after the one that ends the increment."""
    quiet = 0.0
    while True:
        # in this order: an increment that has ended gets no more events, so the reading below misses none
        ended = (await asyncio.to_thread(store.rollout, rollout_id)).ended
        events = await asyncio.to_thread(store.events, rollout_id, after)
        for event in events:
            after = event.id
            yield as_text(event)
        if ended and not events:
            return
        quiet = 0.0 if events else quiet + POLL_S
        if quiet >= QUIET_S:
            quiet = 0.0
            yield b": still here\n\n"
        if not events:
            await asyncio.sleep(POLL_S)


def as_text(event: Event) -> bytes:
    """One event as it goes over the wire."""
    data = json.dumps({"at": event.at, **event.data}, ensure_ascii=False)
    return f"id: {event.id}\nevent: {event.kind}\ndata: {data}\n\n".encode()
