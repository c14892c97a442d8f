"""A server of its own for the time of a benchmark: in a new folder, with a base of the digits."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lifelist.deploy.base import make_base
from lifelist.deploy.server import Server, running
from lifelist.deploy.settings import Settings

EPOCHS = 3  # what it answers does not matter here


@contextmanager
def digits_server(settings: Settings, tell: Callable[[str], None], **serving: Any) -> Iterator[Server]:
    """Make a base and serve it by `settings`, of which those in `serving` are others, until the block ends."""
    training = replace(settings.training, epochs=EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        kept_here = {"home": Path(folder), "registry": "", "database": ""}
        options = settings.serving.model_copy(update=serving)
        own = settings.model_copy(update={**kept_here, "training": training, "gate": (), "serving": options})
        tell("making a base of the digits")
        make_base(own, "digits")
        with running(own) as server:
            yield server
