"""The commands that work on this machine: base, serve, train, demo, settings."""

from pathlib import Path
from typing import Any

import click

from lifelist.deploy.sources import Key, Resolved, keys
from lifelist.deploy.terminal import json_option, result, table


@click.command()
@json_option
@click.option("--markdown", is_flag=True, help="Print docs/settings.md instead: all settings with their defaults.")
@click.pass_obj
def settings(resolved: Resolved, markdown: bool, as_json: bool) -> None:
    """Print the settings in force, and where each comes from."""
    if markdown:
        click.echo(reference(), nl=False)
        return
    dumped = resolved.settings.model_dump(mode="json")
    rows = [(name, _value(dumped, name), resolved.sources.get(name, "default")) for name in keys()]
    value = {name: {"value": found, "source": source} for name, found, source in rows}
    result(
        value, table(["setting", "value", "source"], [(n, _short(found), source) for n, found, source in rows]), as_json
    )


def reference() -> str:
    """docs/settings.md."""
    parts = [_INTRODUCTION]
    sections: dict[str, list[Key]] = {}
    for key in keys().values():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    for section, members in sections.items():
        parts.append(f"\n## {section or 'Lifelist'}\n\n| setting | default | |\n| --- | --- | --- |\n")
        parts += [f"| `{key.name}` | {_default(key)} | {_escaped(key.description)} |\n" for key in members]
    return "".join(parts)


_INTRODUCTION = """# Settings

<!-- Made by `lifelist settings --markdown > docs/settings.md`; a test holds it to the code. -->

A setting has one dotted name, a default, and three places where it can be given. The later overrides the earlier:

1. its default, below;
2. the environment: `LIFELIST_` and the name in capitals, with `__` for the dot: `LIFELIST_SERVING__PORT=9000`;
3. a file, `lifelist.toml` in the current folder or what `--config FILE` names: `port = 9000` under `[serving]`;
4. flags, anywhere on the command line: `--serving.port 9000` or `--serving.port=9000`. `--home` and `--port` are short.

`lifelist settings` prints what is in force and where each value comes from. A name that does not exist is an error.
"""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")  # else it would end the cell


def _default(key: Key) -> str:
    if isinstance(key.default, tuple):
        return "<br>".join(f"`{_short(_plain(item))}`" for item in key.default) or "none"
    return "empty" if key.default == "" else f"`{_short(_plain(key.default))}`"


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value


def _short(value: Any) -> str:
    """A value on one line, as TOML would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return " ".join(str(item) for item in value.values() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_short(item) for item in value)
    return str(value)


def _value(dumped: Any, name: str) -> Any:
    for part in name.split("."):
        dumped = dumped[part]
    return dumped


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def base(resolved: Resolved, data: Path, as_json: bool) -> None:
    """Train version 1 on DATA, a folder per class. Needs no server."""
    from lifelist.deploy.base import make_base

    raise NotImplementedError


@click.command()
@click.pass_obj
def serve(resolved: Resolved) -> int:
    """Serve the live version until ctrl-C."""
    from lifelist.deploy.server import serve

    return serve(resolved.settings)


@click.command()
@click.argument("data")
@click.option("--method", help="bic, eeil, icarl, wa …; unless given, the setting training.method.")
@click.option("--classes-per-increment", type=click.IntRange(1), default=2, show_default=True)
@json_option
@click.pass_obj
def train(resolved: Resolved, data: str, method: str | None, classes_per_increment: int, as_json: bool) -> None:
    """Run a class-incremental experiment, without any server.

    DATA is a folder per class, Parquet files, or the word digits. Prints the accuracy matrix."""
    from lifelist.training.experiment import run_experiment

    raise NotImplementedError


@click.command()
@click.option("--keep", is_flag=True, help="Leave the server running at the end, and say what to try next.")
@click.option("--data", type=click.Path(path_type=Path), help="Your own images, a folder per class, not the digits.")
@click.pass_obj
def demo(resolved: Resolved, keep: bool, data: Path | None) -> int:
    """Watch a classifier learn new classes under traffic."""
    from lifelist.deploy.demo import run

    return run(resolved.settings, keep=keep, data=data)
