"""The commands about classes: what there is, and what is to become of them. A class is named by name, alias or id."""

import unicodedata
from typing import Any

import click

from lifelist.client.answers import ClassDetail, Classes, Json, KnownClass
from lifelist.deploy.sources import Resolved, nearest
from lifelist.deploy.terminal import connected, flat, json_option, result, table
from lifelist.exporter.errors import Missing


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def classes(context: click.Context, as_json: bool) -> None:
    """List the classes; rename, retire, merge them. A class is named by its name, an alias or its id."""
    if context.invoked_subcommand is None:
        context.invoke(list_, as_json=as_json)


@classes.command(name="list")
@json_option
@click.pass_obj
def list_(resolved: Resolved, as_json: bool) -> None:
    """List the classes that the live version knows."""
    with connected(resolved.settings) as client:
        found = client.classes()
    rows = [(c["id"], c["name"], standing({**c}), ", ".join(c["aliases"])) for c in found["classes"]]
    rows += [(c["id"], c["name"], standing({**c, "state": "former"}), ", ".join(c["aliases"])) for c in found["former"]]
    result(found, table(["id", "name", "state", "also called"], rows), as_json)


@classes.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(resolved: Resolved, name: str, as_json: bool) -> None:
    """Show class NAME: its images, and what was said of it before."""
    with connected(resolved.settings) as client:
        found = client.class_(_id(client.classes(), name))
    images = ", ".join(f"{count} {role}" for role, count in found["images"].items())
    lines = [_told(found), f"images kept: {images}"]
    for event in found["history"]:
        lines.append(f"{event['at']}  version {event['version']}")
        before = dict.fromkeys(event["after"]) | event["before"]
        lines += [f"    {line}" for line in flat({k: f"{before[k]} → {event['after'].get(k)}" for k in before})]
    result(found, "\n".join(lines), as_json)


@classes.command()
@click.argument("name")
@click.argument("new_name")
@json_option
@click.pass_obj
def rename(resolved: Resolved, name: str, new_name: str, as_json: bool) -> None:
    """Call class NAME by NEW_NAME. The old name stays as an alias."""
    _change(resolved, name, as_json, name=new_name)


@classes.command()
@click.argument("name")
@json_option
@click.pass_obj
def retire(resolved: Resolved, name: str, as_json: bool) -> None:
    """Answer class NAME no more. The next increment goes on without it."""
    _change(resolved, name, as_json, retired=True)


@classes.command()
@click.argument("name")
@json_option
@click.pass_obj
def restore(resolved: Resolved, name: str, as_json: bool) -> None:
    """Answer class NAME, which was retired, again."""
    _change(resolved, name, as_json, retired=False)


@classes.command()
@click.argument("name")
@click.argument("into")
@json_option
@click.pass_obj
def merge(resolved: Resolved, name: str, into: str, as_json: bool) -> None:
    """Answer class INTO where NAME would be. The next increment learns the images of both as INTO's."""
    with connected(resolved.settings) as client:
        target = _id(client.classes(), into)
    _change(resolved, name, as_json, merged_into=target)


@classes.command()
@click.argument("name")
@json_option
@click.pass_obj
def unmerge(resolved: Resolved, name: str, as_json: bool) -> None:
    """Answer class NAME, which was merged into another, for itself again."""
    _change(resolved, name, as_json, merged_into=None)


@classes.command()
@click.argument("name")
@click.argument("aliases", nargs=-1, required=True)
@click.option("--remove", is_flag=True, help="Take the aliases away.")
@json_option
@click.pass_obj
def alias(resolved: Resolved, name: str, aliases: tuple[str, ...], remove: bool, as_json: bool) -> None:
    """Let ALIASES mean class NAME too, or, with --remove, no more."""
    with connected(resolved.settings) as client:
        listed = client.classes()
        class_id = _id(listed, name)
        known = next(entry["aliases"] for entry in _entries(listed) if entry["id"] == class_id)
        wanted = [one for one in known if one not in aliases] if remove else [*known, *aliases]
        found = client.change_class(class_id, aliases=wanted, expected_version=listed["version"])
    result(found, _told(found), as_json)


def _change(resolved: Resolved, which: str, as_json: bool, /, **said: Any) -> None:
    with connected(resolved.settings) as client:
        found = client.change_class(_id(client.classes(), which), **said)
    result(found, _told(found), as_json)


def standing(entry: Json) -> str:
    """How a class stands in a version, in words."""
    if entry["retired"]:
        return f"{entry['state']}, retired"
    into = entry["merged_into"]
    return str(entry["state"]) if into is None else f"{entry['state']}, merged into class {into}"


def _told(found: ClassDetail) -> str:
    also = f"; also called {', '.join(found['aliases'])}" if found["aliases"] else ""
    return f"{found['name']} (class {found['id']}), in version {found['version']}: {standing({**found})}{also}"


def _entries(listed: Classes) -> list[KnownClass]:
    return [*listed["classes"], *listed["former"]]


def _id(listed: Classes, name: str) -> int:
    """The id of the class that is meant. Missing names the nearest."""
    title = unicodedata.normalize("NFC", name).strip()
    entries = _entries(listed)
    for means in (lambda c: title == c["name"], lambda c: title in c["aliases"], lambda c: title == str(c["id"])):
        for entry in filter(means, entries):
            return int(entry["id"])
    if title.isascii() and title.isdecimal():
        return int(title)  # the server may know it all the same: a class that waits, or was taken out
    hint = nearest(name, [entry["name"] for entry in entries])
    raise Missing(f"the live version knows no class that is named {name!r} or has that id.{hint}")
