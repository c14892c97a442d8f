"""The commands that show how right a running server's answers are, what is wrong with them, and what follows."""

import time
from collections.abc import Sequence

import click

from lifelist.client.answers import AlarmState, DeliveryRow, Doubt, Figure, TriggerRow
from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import connected, json_option, result, table
from lifelist.exporter.errors import Failed

GROUPS = ("all", "old", "new", "unseen", "class")
SOURCES = ("feedback", "audit", "probe", "estimated")
BAR = 20  # characters of a bar of 100 %


@click.command()
@click.option("--since", default="24h", show_default=True, help="From when on: RFC 3339, or so long ago: 90m, 24h, 7d.")
@click.option("--until", help="Until when; unless given, now.")
@click.option("--group", type=click.Choice(GROUPS), help="Which classes; `class`: a row for each.")
@click.option(
    "--source", type=click.Choice(SOURCES), help="Labels, those of the audit, probes, or estimated without any."
)
@click.option("--of-version", "version", type=int, help="Of the answers of one version.")
@json_option
@click.pass_obj
def quality(
    resolved: Resolved,
    since: str,
    until: str | None,
    group: str | None,
    source: str | None,
    version: int | None,
    as_json: bool,
) -> None:
    """Show how right the answers were, from labels, probes and estimates, each with its 95 % interval."""
    with connected(resolved.settings) as client:
        found = client.quality(since, until, group=group, source=source, version=version)
        alarms = client.alarms()["alarms"]
    head = ("version", "source", "classes", "images", "right", "95 %", "")
    rows = [_row(one) for one in found["figures"]]
    shown = table(head, rows) if rows else f"no answer since {found['since']} was judged, probed or estimated yet"
    raised = [alarm for alarm in alarms if alarm["state"] == "raised"]
    result(
        {**found, "alarms": alarms}, "\n".join([shown, *map(_doubted, found["doubts"]), *map(_told, raised)]), as_json
    )


@click.command()
@json_option
@click.pass_obj
def triggers(resolved: Resolved, as_json: bool) -> None:
    """Show what would have started an increment in the last week, by the settings given here. Starts nothing.

    It reads what is in home, without a server: `lifelist triggers --triggers.pending-images 50` tries a setting.
    """
    from lifelist.deploy.triggers import shown
    from lifelist.deploy.workshop import open_workshop

    workshop = open_workshop(resolved.settings)
    found = shown(workshop, resolved.settings.triggers, time.time())
    rows = [(*_between(r), r["action"], r["waiting"], r["because"], r["held"] or "") for r in found["week"]]
    now = found["now"]
    state = (
        "nothing speaks for an increment now" if now is None else f"now: {now['held'] or 'it starts'}, {now['because']}"
    )
    lines = [
        table(("from", "to", "", "images", "because", "but"), rows)
        if rows
        else "nothing would have started an increment",
        f"{found['waiting']} images wait; {state}",
    ]
    if not found["enabled"]:
        lines.append("no trigger is set: see triggers.* in `lifelist settings`")
    result(found, "\n".join(lines), as_json)


@click.group()
def webhooks() -> None:
    """Test the webhooks in the settings, and show what was sent to them."""


@webhooks.command(name="test")
@json_option
@click.pass_obj
def test_(resolved: Resolved, as_json: bool) -> None:
    """Send a test event to each webhook, and show what came back."""
    with connected(resolved.settings) as client:
        found = client.test_webhooks()
    result(found, _attempts(found["deliveries"]), as_json)
    if failed := [one["url"] for one in found["deliveries"] if one["outcome"] != "delivered"]:
        raise Failed(
            f"{len(failed)} of {len(found['deliveries'])} webhooks did not take the event: {', '.join(failed)}"
        )


@webhooks.command(name="log")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Attempts to show.")
@json_option
@click.pass_obj
def log_(resolved: Resolved, limit: int, as_json: bool) -> None:
    """Show how far each webhook has been told, and the latest attempts."""
    with connected(resolved.settings) as client:
        found = client.webhooks(limit)
    rows = [(w["url"], ", ".join(w["kinds"]) or "all", w["waiting"], w["next_at"] or "") for w in found["webhooks"]]
    shown_ = (
        table(("webhook", "kinds", "waiting", "tried again"), rows) if rows else "there is no webhook in the settings"
    )
    result(found, "\n\n".join([shown_, *([_attempts(found["deliveries"])] if found["deliveries"] else [])]), as_json)


def _between(row: TriggerRow) -> tuple[str, str]:
    """When a stretch begins and ends; the day of its end where it is another."""
    day, end = row["at"][:10], row["until"][:16]
    return row["at"][:16], end.removeprefix(f"{day}T")


def _attempts(found: Sequence[DeliveryRow]) -> str:
    head = ("at", "webhook", "kind", "attempt", "outcome", "status", "seconds", "answer")
    rows = [
        (
            d["at"],
            d["url"],
            d["kind"],
            d["attempt"],
            d["outcome"],
            d["status"],
            round(d["seconds"], 3),
            d["message"][:60],
        )
        for d in found
    ]
    return table(head, rows)


def _row(one: Figure) -> tuple[object, ...]:
    group = one["name"] or one["group"]
    if one["ratio"] is None or one["low"] is None or one["high"] is None:
        return one["version"], one["source"], group, one["images"], "-", "-", ""
    low, mid, high = (round(value * BAR) for value in (one["low"], one["ratio"], one["high"]))
    bar = "".join("█" if k < low else "▒" if k < mid else "░" if k < high else " " for k in range(BAR))
    interval = f"{one['low']:.1%} … {one['high']:.1%}"
    return one["version"], one["source"], group, one["images"], f"{one['ratio']:.1%}", interval, bar


def _doubted(doubt: Doubt) -> str:
    return f"the estimates of version {doubt['version']} may be wrong: {doubt['message']}"


def _told(alarm: AlarmState) -> str:
    return f"alarm {alarm['name']} since {alarm['since']}: {alarm['message']}"
