"""`lifelist bench soak`: a server of its own that knows the digits, for benchmarks/soak.py to load."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lifelist.benchmarks import soak
from lifelist.benchmarks.fuzz_inputs import photographs
from lifelist.client.blocking import Client
from lifelist.deploy.base import make_base
from lifelist.deploy.server import running
from lifelist.deploy.settings import Settings
from lifelist.training.sources import encoded

EPOCHS = 3  # what it answers does not matter here


def run(settings: Settings, minutes: int, place: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Make a base, serve it, enrol a class so that there are two versions, and swap these; what came of it."""
    place.mkdir(parents=True, exist_ok=True)
    training = replace(settings.training, epochs=EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        kept_here = {"home": Path(folder), "registry": "", "database": ""}
        own = settings.model_copy(update={**kept_here, "training": training, "gate": ()})
        tell("making a base of the digits")
        make_base(own, "digits")
        with running(own) as server, Client(server.url, timeout_s=120) as client:
            client.add_examples("photographs", [(f"{k}.jpg", data) for k, data in enumerate(photographs())])
            image = next(encoded("digits")).data
            rate, rows, problems = soak.soak(server.url, image, minutes, client.rollback, tell)
    facts = soak.line(rate, rows, problems)
    soak.picture(place / "soak.png", rows)
    (place / "results.json").write_text(json.dumps(facts | {"problems": problems[:100]}, indent=1))
    return facts
