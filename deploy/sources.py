"""Where settings come from: the one place that reads the environment, the file and the flags.

A key has one dotted name (`serving.port`) and is written the same way everywhere:

    LIFELIST_SERVING__PORT=9000            in the environment
    [serving]
    port = 9000                            in lifelist.toml, or the file that --config names
    --serving.port 9000                    on the command line, anywhere (or --serving.port=9000)

The later overrides the earlier; defaults come first. A key that does not exist is an error that names the nearest one.
"""

import dataclasses
import difflib
import functools
import json
import os
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import PydanticUndefined

from lifelist.deploy.settings import Settings
from lifelist.exporter.errors import BadSetting

PREFIX = "LIFELIST_"
FILE = "lifelist.toml"
ALIASES = {"port": "serving.port"}  # short flags for what is typed most; --home is a key already
_BOOLEANS = ("true", "false", "yes", "no", "on", "off", "1", "0")


@dataclass(frozen=True, slots=True)
class Key:
    """One setting that can be set."""

    name: str  # dotted: serving.port
    kind: Any  # its type
    default: Any
    description: str

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.name.upper().replace(".", "__")

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that it may have: one, or the members of a union."""
        return typing.get_args(self.kind) if isinstance(self.kind, types.UnionType) else (self.kind,)

    @property
    def fields(self) -> dict[str, Any]:
        """Of a list of models: the type of each of their fields, by name."""
        inside = [part for part in typing.get_args(self.kind) if isinstance(part, type) and issubclass(part, BaseModel)]
        return {name: field.annotation for model in inside for name, field in model.model_fields.items()}

    @property
    def is_secret(self) -> bool:
        """Whether it is a secret, or a list of what has some."""
        return SecretStr in (self.kind, *self.fields.values())

    def parsed(self, text: str) -> Any:
        """What a text from the environment or the command line stands for; pydantic judges it later."""
        if types.NoneType in self.kinds and text.lower() in ("", "none", "null"):
            return None
        if not any(typing.get_origin(kind) in (tuple, list, dict) for kind in self.kinds):
            return text
        try:
            return json.loads(text)
        except ValueError as error:
            given = "what is given" if self.is_secret else repr(text)
            raise BadSetting(f"{self.name} should be JSON, not {given}: {error}") from error


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, where each came from, and the arguments that were not settings."""

    settings: Settings
    sources: Mapping[str, str]  # key → "default", "environment LIFELIST_…", "file …" or "flag --…"
    rest: tuple[str, ...]

    @property
    def given(self) -> dict[str, Any]:
        """The settings that somebody gave, by dotted name, as JSON would have them; secrets are left out."""
        dumped = self.settings.model_dump(mode="json", exclude_none=True)
        return {
            name: functools.reduce(lambda at, part: at[part], name.split("."), dumped)
            for name, source in self.sources.items()
            if source != "default" and not keys()[name].is_secret
        }


@functools.cache
def keys() -> Mapping[str, Key]:
    """Every setting by its dotted name, in the order of declaration."""
    return {key.name: key for key in _declared(Settings, "")}


def _declared(model: Any, prefix: str) -> Iterator[Key]:
    """The keys of a pydantic model or a standard-library dataclass, nested ones included."""
    if dataclasses.is_dataclass(model):
        hints = typing.get_type_hints(model)
        rows = [(f.name, hints[f.name], f.default, str(f.metadata.get("help", ""))) for f in dataclasses.fields(model)]
    else:
        rows = [(n, f.annotation, f.default, f.description or "") for n, f in model.model_fields.items()]
    for name, kind, default, description in rows:
        if dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel)):
            yield from _declared(kind, f"{prefix}{name}.")
        else:
            unset = default is PydanticUndefined or default is dataclasses.MISSING
            yield Key(f"{prefix}{name}", kind, None if unset else default, description)


def nearest(word: str, known: Sequence[str]) -> str:
    """` Did you mean …?`, or nothing if no known word is like it. For messages about words that do not exist."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" Did you mean {found[0]}?" if found else ""


def resolve(
    arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Resolved:
    """The settings in force: defaults < environment < file < flags. BadSetting says what is wrong and where it stands.

    arguments    a command line; what in it is not a setting comes back in `rest`, in order
    environment  os.environ, unless given
    folder       where lifelist.toml is looked for: the current folder, unless given
    """
    environment = os.environ if environment is None else environment
    flags, config, rest = _from_flags(arguments)
    file = Path(config) if config is not None else (folder or Path.cwd()) / FILE
    found: dict[str, tuple[Any, str]] = {}
    found |= _from_environment(environment)
    found |= _from_file(file, required=config is not None)
    found |= flags
    nested: dict[str, Any] = {}
    for name, (value, _) in found.items():
        *path, last = name.split(".")
        inner = functools.reduce(lambda at, part: at.setdefault(part, {}), path, nested)
        inner[last] = value
    sources = {name: found[name][1] if name in found else "default" for name in keys()}
    return Resolved(_validated(nested, sources), sources, rest)


def as_toml(values: Mapping[str, Any]) -> str:
    """Settings by dotted name, as a file that `resolve` reads."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # else as in TOML
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def load(
    arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Settings:
    """`resolve`, for those who only want the settings; an argument that is not a setting is an error."""
    resolved = resolve(arguments, environment, folder)
    if resolved.rest:
        raise BadSetting(f"{' '.join(resolved.rest)!r} is not a setting.{nearest(resolved.rest[0], _flags())}")
    return resolved.settings


def _validated(nested: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        raise BadSetting("\n".join(_line(problem, sources) for problem in error.errors())) from error
    except BadSetting as error:  # from TrainingOptions, which knows no sources
        given = [
            f"{name} from {source}"
            for name, source in sources.items()
            if name.startswith("training.") and source != "default"
        ]
        raise BadSetting(f"{error} ({', '.join(given)})" if given else str(error)) from error


def _line(problem: Any, sources: Mapping[str, str]) -> str:
    """One line for one of pydantic's errors: which key, from where, what is wrong, what it was."""
    name = ".".join(str(part) for part in problem["loc"])
    key = next((known for known in sources if name == known or name.startswith(f"{known}.")), name)
    source = sources.get(key, "the settings")
    if problem["type"] == "extra_forbidden":  # only in a list: elsewhere names are looked at before values are
        known = list(keys()[key].fields) if key in keys() else []
        return f"{name} (from {source}) is not a setting.{nearest(str(problem['loc'][-1]), known)}"
    rule = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    whole = isinstance(problem["input"], Mapping | list | tuple)  # of a webhook, say, with its secret in it
    may_be_secret = name.endswith(".secret") or (whole and key in keys() and keys()[key].is_secret)
    given = "what is given" if may_be_secret else repr(problem["input"])
    return f"{name} {rule}, not {given} (from {source})"


def _flags() -> list[str]:
    return [key.flag for key in keys().values()] + [f"--{alias}" for alias in ALIASES] + ["--config"]


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    variables = {key.variable: key for key in keys().values()}
    found = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        if variable not in variables:
            raise BadSetting(f"{variable} in the environment is not a setting.{nearest(variable, list(variables))}")
        key = variables[variable]
        found[key.name] = (key.parsed(text), f"environment {variable}")
    return found


def _from_file(file: Path, *, required: bool) -> dict[str, tuple[Any, str]]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise BadSetting(f"--config names {file}, which does not exist") from None
        return {}
    except (OSError, ValueError) as error:
        raise BadSetting(f"{file} cannot be read as TOML: {error}") from error
    found: dict[str, tuple[Any, str]] = {}

    def walk(table: Mapping[str, Any], prefix: str) -> None:
        for part, value in table.items():
            name = f"{prefix}{part}".replace("-", "_")
            if name in keys():
                found[name] = (value, f"file {file}")
            elif isinstance(value, Mapping) and any(known.startswith(f"{name}.") for known in keys()):
                walk(value, f"{name}.")
            else:
                raise BadSetting(f"{name} in {file} is not a setting.{nearest(name, list(keys()))}")

    walk(content, "")
    return found


def _from_flags(arguments: Sequence[str]) -> tuple[dict[str, tuple[Any, str]], str | None, tuple[str, ...]]:
    """(settings, the value of --config, everything else in order). A dotted flag is always meant as a setting."""
    found: dict[str, tuple[Any, str]] = {}
    config: str | None = None
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":  # what follows is data, whatever it looks like
            rest += [argument, *left]
            break
        flag, equals, text = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        name = ALIASES.get(name, name)
        if not flag.startswith("--") or not (name in keys() or "." in name or name == "config"):
            rest.append(argument)
            continue
        if name != "config" and name not in keys():
            raise BadSetting(f"{flag} is not a setting.{nearest(flag, _flags())}")
        if not equals:
            if name in keys() and keys()[name].kind is bool and (not left or left[0].lower() not in _BOOLEANS):
                text = "true"
            elif left and not left[0].startswith("--"):
                text = left.pop(0)
            else:
                raise BadSetting(f"{flag} needs a value: {flag} VALUE or {flag}=VALUE")
        if name == "config":
            config = text
        else:
            found[name] = (keys()[name].parsed(text), f"flag {flag}")
    return found, config, tuple(rest)
