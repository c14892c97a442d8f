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
    with digits_home(settings, tell) as home:
        options = settings.serving.model_copy(update=serving)
        with running(_at(home, settings).model_copy(update={"serving": options})) as server:
            yield server


@contextmanager
def digits_home(settings: Settings, tell: Callable[[str], None]) -> Iterator[Path]:
    """A home with such a base, for a server that others start, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        tell("making a base of the digits")
        make_base(_at(Path(folder), settings), "digits")
        yield Path(folder)


def _at(home: Path, settings: Settings) -> Settings:
    training = replace(settings.training, epochs=EPOCHS)
    kept_here = {"home": home, "registry": "", "database": ""}
    return settings.model_copy(update={**kept_here, "training": training, "gate": ()})
