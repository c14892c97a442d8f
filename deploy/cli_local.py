"""The commands that work on this machine: base, serve, train, demo, settings."""

import hashlib
import inspect
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from lifelist.deploy.settings import GateCheck
from lifelist.deploy.sources import Key, Resolved, keys
from lifelist.deploy.terminal import following, json_option, note, result, table
from lifelist.exporter.errors import BadInput


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
    found = {
        name: {"value": _masked(_value(dumped, name)), "source": resolved.sources.get(name, "default")}
        for name in keys()
    }
    rows = []
    for name, one in found.items():
        lines = [_short(item) for item in one["value"]] if isinstance(one["value"], list) else [_short(one["value"])]
        rows += [(name, lines[0] if lines else "none", one["source"]), *(("", line, "") for line in lines[1:])]
    result(found, table(["setting", "value", "source"], rows), as_json)


def reference() -> str:
    """docs/settings.md."""
    parts = [_INTRODUCTION]
    sections: dict[str, list[Key]] = {}
    for key in keys().values():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    for section, members in sections.items():
        parts.append(f"\n## {section or 'Lifelist'}\n\n| setting | default | |\n| --- | --- | --- |\n")
        parts += [f"| `{key.name}` | {_default(key)} | {_escaped(key.description)} |\n" for key in members]
    parts.append(f"\n## The checks of the gate\n\n```\n{inspect.cleandoc(GateCheck.__doc__ or '')}\n```\n")
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
    text = _short(_plain(key.default))
    return f"`{text}`" if text else "empty"


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_defaults=True) if hasattr(value, "model_dump") else value


def _short(value: Any) -> str:
    """A value on one line, as TOML would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return " ".join(f"{name}={_short(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_short(item) for item in value)
    return str(value)


def _masked(value: Any) -> Any:
    """A URL without its password; anything else as it is."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", value) if isinstance(value, str) else value


def _value(dumped: Any, name: str) -> Any:
    for part in name.split("."):
        dumped = dumped[part]
    return dumped


strict_option = click.option("--strict", is_flag=True, help="Stop at the first image that cannot be used.")


@click.command()
@click.argument("data")
@strict_option
@json_option
@click.pass_obj
def base(resolved: Resolved, data: str, strict: bool, as_json: bool) -> None:
    """Train version 1 on DATA, a folder per class. Needs no server.

    DATA may also be Parquet files, or the word digits. After ctrl-C, the same command goes on from the last epoch.
    """
    from lifelist.deploy.base import make_base

    try:
        with following() as show:
            made = make_base(resolved.settings, data, show, strict=strict)
    except KeyboardInterrupt:
        note("the same command goes on from where it was")
        raise
    accuracy = made.results.get(made.default_answer, {}).get("all")
    right = "" if accuracy is None else f"; {100 * accuracy:.1f} % of the images set apart are answered right"
    classes = f"{len(made.classes)} {'class' if len(made.classes) == 1 else 'classes'}"
    text = f"version {made.version} is live: {classes}{right}\nserve it with: lifelist serve"
    result(asdict(made), text, as_json)


@click.command()
@click.pass_obj
def serve(resolved: Resolved) -> int:
    """Serve the live version until ctrl-C."""
    from lifelist.deploy.server import serve

    return serve(resolved.settings)


@click.command()
@click.argument("data")
@click.option("--method", help="bic, icarl, wa, ridge … or auto; unless given, the setting training.method.")
@click.option("--classes-per-increment", default="2", show_default=True, help="A number, or one for each: 3,1,2.")
@click.option("--base-classes", type=click.IntRange(0), default=0, help="Classes to begin with; 0: as an increment.")
@click.option("--shuffle-classes", is_flag=True, help="Draw the order of the classes from training.seed.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep everything here, networks included.")
@strict_option
@json_option
@click.pass_obj
def train(
    resolved: Resolved,
    data: str,
    method: str | None,
    classes_per_increment: str,
    base_classes: int,
    shuffle_classes: bool,
    folder: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Run a class-incremental experiment, without any server.

    DATA is a folder per class, Parquet files, or the word digits. Prints the accuracy matrix. After ctrl-C, the same
    command goes on from the last epoch.
    """
    options = resolved.settings.training
    options = options if method is None else replace(options, method=method)
    sizes = _sizes(classes_per_increment)
    asked = json.dumps([data, options.as_dict(), sizes, base_classes, shuffle_classes])
    place = folder or resolved.settings.home / "experiments" / hashlib.sha256(asked.encode()).hexdigest()[:12]

    from lifelist.training.experiment import run_experiment, shuffled

    try:
        with following() as show:
            found = run_experiment(
                data,
                options,
                classes_per_increment=sizes,
                base_classes=base_classes,
                order=shuffled(options.seed) if shuffle_classes else range,
                folder=place,
                strict=strict,
                report=(folder or resolved.settings.home) / "left-out.txt",
                on_event=lambda event: show(event["kind"], event),
            )
    except KeyboardInterrupt:
        note(f"the same command goes on from the last epoch, which is in {place}")
        raise
    result(found.as_json(), found.table(), as_json)
    if folder is None:
        shutil.rmtree(place)


def _sizes(text: str) -> int | list[int]:
    """`2`, or `3,1,2`: how many classes each increment brings."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"--classes-per-increment takes a number, or several as in 3,1,2; not {text!r}") from error
    return sizes[0] if len(sizes) == 1 else sizes


@click.command()
@click.option("--keep", is_flag=True, help="Leave the server running at the end, and say what to try next.")
@click.option("--data", type=click.Path(path_type=Path), help="Your own images, a folder per class, not the digits.")
@click.pass_obj
def demo(resolved: Resolved, keep: bool, data: Path | None) -> int:
    """Watch a classifier learn new classes under traffic.

    Settings are those of the server that it plays with, but what it keeps is kept in ./lifelist-demo.
    """
    from lifelist.deploy.demo import run

    return run(resolved, keep=keep, data=data)
