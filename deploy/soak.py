"""`lifelist bench soak`: a server of its own that knows the digits, for benchmarks/soak.py to load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lifelist.benchmarks import soak
from lifelist.benchmarks.fuzz_inputs import photographs
from lifelist.client.blocking import Client
from lifelist.deploy.settings import Settings
from lifelist.deploy.trial import digits_server
from lifelist.training.sources import encoded


def run(settings: Settings, minutes: int, place: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Make a base, serve it, enrol a class so that there are two versions, and swap these; what came of it."""
    place.mkdir(parents=True, exist_ok=True)
    with digits_server(settings, tell) as server, Client(server.url, timeout_s=120) as client:
        client.add_examples("photographs", [(f"{k}.jpg", data) for k, data in enumerate(photographs())])
        image = next(encoded("digits")).data
        rate, rows, problems = soak.soak(server.url, image, minutes, client.rollback, tell)
    facts = soak.line(rate, rows, problems)
    soak.picture(place / "soak.png", rows)
    (place / "results.json").write_text(json.dumps(facts | {"problems": problems[:100]}, indent=1))
    return facts
