"""`lifelist keys`: who may call a server, by the file in home that a running server reads again by itself."""

from dataclasses import asdict

import click

from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import json_option, note, result, table
from lifelist.serving import keys as store
from lifelist.serving.keys import ROLES


@click.group()
def keys() -> None:
    """Make and remove the API keys of the server of this home.

    Roles: read (versions, increments, metrics), classify, feedback, operate (everything). Without any key, everybody on
    this machine may do everything, and `lifelist serve` listens on loopback alone.
    """


@keys.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, required=True, type=click.Choice(ROLES), help="May be repeated.")
@click.option("--days", type=click.FloatRange(0, 36_500, min_open=True), help="It expires then; unless given, never.")
@json_option
@click.pass_obj
def add(resolved: Resolved, name: str, roles: tuple[store.Role, ...], days: float | None, as_json: bool) -> None:
    """Make a key called NAME, and show it, once: only its hash is kept."""
    made = store.add(resolved.settings.keys_file, name, roles, days)
    note("Keep it now; it cannot be shown again. Commands present it from LIFELIST_API_KEY.")
    result({"name": name, "roles": roles, "key": made}, made, as_json)


@keys.command("list")
@json_option
@click.pass_obj
def list_(resolved: Resolved, as_json: bool) -> None:
    """List the keys: their names, roles and dates."""
    found = store.read(resolved.settings.keys_file)
    rows = [(k.name, " ".join(k.roles), k.created_at, k.expires_at, k.has_expired()) for k in found]
    value = [{n: v for n, v in asdict(k).items() if n != "sha256"} | {"expired": k.has_expired()} for k in found]
    text = table(["name", "roles", "created", "expires", "expired"], rows) if rows else "there are no keys"
    result({"keys": value}, text, as_json)


@keys.command()
@click.argument("name")
@json_option
@click.pass_obj
def remove(resolved: Resolved, name: str, as_json: bool) -> None:
    """Refuse the key called NAME from now on."""
    store.remove(resolved.settings.keys_file, name)
    left = len(store.read(resolved.settings.keys_file))
    if not left:
        note("No key is left: on loopback everybody may do everything again, elsewhere nobody may do anything.")
    result({"removed": name, "left": left}, f"{name} is removed; a running server refuses it within a second", as_json)
