"""What an unfinished base was asked for, in <home>/base.json: another one is not taken for its continuation."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifelist.deploy import examples
from lifelist.deploy.settings import Settings
from lifelist.deploy.sources import keys
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import Conflict


@dataclass(frozen=True, slots=True)
class Asked:
    """What `lifelist base` was asked for."""

    data: str  # an absolute path, or the name of a data set that is built in
    settings: Mapping[str, Any]  # those that are fixed once it has begun, by their dotted names


def asked_now(settings: Settings, data: Path | str) -> Asked:
    """What a base of `data` under these settings asks for."""
    shares = {f"examples.{name}": getattr(settings.examples, name) for name in ("gate_share", "holdout_share")}
    training = {f"training.{name}": value for name, value in settings.training.as_dict().items()}
    return Asked(str(Path(data).resolve()) if Path(data).exists() else str(data), training | shares)


def write(home: Path, asked: Asked) -> None:
    """Note what the images that are now added are for."""
    home.mkdir(parents=True, exist_ok=True)
    draft = home / "base.json.new"
    draft.write_text(json.dumps(asdict(asked), indent=2), encoding="utf-8")
    draft.replace(home / "base.json")


def check(workshop: Workshop, asked: Asked) -> None:
    """Conflict if what an earlier base has left, images or an open rollout, is not of what is asked now.

    Other settings are a difference only while its rollout is open: until it began, and after it ended, they are free.
    """
    home = workshop.settings.home
    unfinished = bool(workshop.store.open_rollouts())
    if not unfinished and not examples.kept(workshop.store):
        return
    anew = f"To begin anew, give --home another folder, or remove {home} with all that is in it"
    if (begun := _read(home)) is None:
        raise Conflict(f"images are kept here, or an increment is open, that no base in {home} has begun. {anew}")
    differs = [] if begun.data == asked.data else [f"the images of {asked.data}"]
    differs += [f"{name} {asked.settings[name]!r}" for name in _changed(begun, asked)] if unfinished else []
    if differs:
        raise Conflict(
            f"{home} holds an unfinished base of {begun.data}, and this asks for {', '.join(differs)}. To go on with "
            f"it: `{_command(workshop.settings, begun, asked)}`, other settings as they are. {anew}"
        )


def _read(home: Path) -> Asked | None:
    try:
        return Asked(**json.loads((home / "base.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _changed(begun: Asked, asked: Asked) -> list[str]:
    """The settings that are not what they were."""
    return [name for name, value in asked.settings.items() if begun.settings.get(name, value) != value]


def _command(settings: Settings, begun: Asked, asked: Asked) -> str:
    """What to type to go on: a flag for each setting that was not at its default, or is not what it was."""
    home = [] if settings.home == Settings().home else ["--home", str(settings.home)]
    flags = []
    for name, value in begun.settings.items():
        if name in keys() and (value != keys()[name].default or name in _changed(begun, asked)):
            flags += [keys()[name].flag, str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(["lifelist", "base", begun.data, *flags, *home])
