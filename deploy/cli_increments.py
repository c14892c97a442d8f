"""The commands about increments: start, list, show, watch, cancel."""

import json
from pathlib import Path

import click

from lifelist.deploy.answers import ENDED, Increment, StepTaken
from lifelist.deploy.client import Client, connected
from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import flat, following, json_option, note, result, table, verdict
from lifelist.exporter.errors import Failed

ADVICE = (
    "To get through: send more images (lifelist examples add), or serve with more training.epochs or a lower limit of "
    "the gate in lifelist.toml; then `lifelist increment start` again"
)


@click.group()
def increment() -> None:
    """Train on classes that got examples, and see how it goes."""


@increment.command()
@click.argument("classes", nargs=-1)
@click.option("--method", help="bic, icarl, wa, ridge … or auto; unless given, the setting training.method.")
@click.option("--key", help="An idempotency key: the same key starts one increment, however often it is sent.")
@click.option("--watch", is_flag=True, help="Stay and show the progress until it ends.")
@json_option
@click.pass_obj
def start(
    resolved: Resolved, classes: tuple[str, ...], method: str | None, key: str | None, watch: bool, as_json: bool
) -> None:
    """Start an increment with CLASSES, or with all that are pending.

    With --watch and --json: each event as a line, then the increment.
    """
    with connected(resolved.settings) as client:
        found = client.start_increment(classes or None, method, key)
        if watch:
            note(f"increment {found['id']}: {_names(found)} by {found['method']}")
            found = follow(client, found["id"], as_json)
    if watch:
        _conclude(found, as_json)
    else:
        told = [f"warning: {message}" for message in found["warnings"]]
        text = "\n".join([_line(found), *told, f"follow it with: lifelist increment watch {found['id']}"])
        result(found, text, as_json)


@increment.command(name="list")
@json_option
@click.pass_obj
def list_(resolved: Resolved, as_json: bool) -> None:
    """List all increments, the oldest first."""
    with connected(resolved.settings) as client:
        found = client.increments()
    rows = [(i["id"], i["state"], i["method"], _names(i), i["version"], i["created_at"]) for i in found]
    result(found, table(["id", "state", "method", "classes", "version", "created"], rows), as_json)


@increment.command()
@click.argument("number", type=int)
@click.option(
    "--report", metavar="[FILE]", is_flag=False, flag_value="",
    help="Make a page of what it learnt, with pictures: increment-NUMBER.html, unless FILE is given. Needs no server, "
    "but the database, the registry and the examples of the home.",
)  # fmt: skip
@json_option
@click.pass_obj
def show(resolved: Resolved, number: int, report: str | None, as_json: bool) -> None:
    """Show increment NUMBER, step by step; or with --report, make a page of what it learnt."""
    if report is not None:
        from lifelist.deploy import report_page
        from lifelist.deploy.workshop import open_workshop

        file = report_page.write(open_workshop(resolved.settings), number, Path(report or f"increment-{number}.html"))
        result({"report": str(file)}, str(file), as_json)
        return
    with connected(resolved.settings) as client:
        found = client.increment(number)
    progress = found["progress"]
    now = [f"{progress['phase']}: epoch {progress['epoch']} of {progress['epochs']}"] if progress else []
    told = [f"warning: {message}" for message in found["warnings"]]
    steps = [line for step in found["steps"] for line in _step(step)]
    result(found, "\n".join([_line(found), *told, *now, *steps]), as_json)


@increment.command()
@click.argument("number", type=int)
@json_option
@click.pass_obj
def watch(resolved: Resolved, number: int, as_json: bool) -> None:
    """Follow increment NUMBER until it ends. With --json: each event as a line, then the increment."""
    with connected(resolved.settings) as client:
        found = follow(client, number, as_json)
    _conclude(found, as_json)


@increment.command()
@click.argument("number", type=int)
@click.option("--watch", is_flag=True, help="Stay until it has ended.")
@json_option
@click.pass_obj
def cancel(resolved: Resolved, number: int, watch: bool, as_json: bool) -> None:
    """Ask increment NUMBER to end; the live version stays as it is."""
    with connected(resolved.settings) as client:
        found = client.cancel(number)
        if watch:
            found = follow(client, number, False)
    done = found["state"] in ENDED
    result(found, _line(found) if done else f"increment {number} will end at its next step or epoch", as_json)


def follow(client: Client, number: int, as_json: bool) -> Increment:
    """Show the events of an increment until it ends; with `as_json` each is a line of JSON as well."""
    try:
        with following() as show:
            for event in client.events(number):
                if as_json:
                    click.echo(json.dumps({"id": event.id, "event": event.kind, **event.data}, ensure_ascii=False))
                show(event.kind, event.data)
    except KeyboardInterrupt:
        note(f"increment {number} goes on; follow it with: lifelist increment watch {number}")
        raise
    return client.increment(number)


def _step(step: StepTaken) -> list[str]:
    """A step with its facts below it; what is told of each class is left to --json, and warnings stand above."""
    again = f", {step['attempts']} times" if step["attempts"] > 1 else ""
    lines = [f"  {step['state']:<8} {step['began']} – {step['ended'] or 'now'}{again}"]
    for check in step["facts"].get("gate", []):
        lines.append(f"           {verdict(check)}")
    facts = flat({name: fact for name, fact in step["facts"].items() if name not in ("gate", "warnings")})
    return lines + [f"           {fact}" for fact in facts if "per_class" not in fact]


def _names(found: Increment) -> str:
    return ", ".join(c["name"] for c in found["classes"])


def _line(found: Increment) -> str:
    version = f", version {found['version']}" if found["version"] else ""
    reason = f": {found['reason']}" if found["reason"] else ""
    return f"increment {found['id']} ({_names(found)}; {found['method']}) {found['state']}{version}{reason}"


def _conclude(found: Increment, as_json: bool) -> None:
    """The last line. An increment that did not go live is a failure for whoever waits for the exit code."""
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else _line(found))
    if found["state"] != "done":
        advice = f". {ADVICE}" if found["state"] == "rejected" else ""
        reason = found["reason"] or "no reason was given"
        raise Failed(f"increment {found['id']} ended as {found['state']}: {reason}{advice}")
