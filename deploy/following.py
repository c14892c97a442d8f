"""What a trainer writes into its events.jsonl, carried into SQL: each line once, whoever is killed in between."""

import json
import logging
from pathlib import Path

from lifelist.deploy.store import Store

log = logging.getLogger(__name__)


def carry_events(store: Store, rollout_id: int, file: Path) -> int:
    """Carry the lines that are not in SQL yet; how many they were.

    A line is known by the byte at which it begins. One without its newline is left alone: it is being written, or was
    left half-written by a kill, and the trainer will cut it off.
    """
    last = store.last_position(rollout_id)
    try:
        with file.open("rb") as stream:
            stream.seek(max(last, 0))
            if last >= 0:
                stream.readline()
            position, lines = stream.tell(), stream.readlines()
    except FileNotFoundError:  # nothing has happened yet
        return 0
    carried = 0
    for line in lines:
        if not line.endswith(b"\n"):
            break
        event = json.loads(line)
        carried += store.tell(rollout_id, event.pop("kind"), event, position)
        position += len(line)
    return carried
