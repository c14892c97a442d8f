"""The commands that show how right a running server's answers are, and what is wrong with them."""

import click

from lifelist.client.answers import AlarmState, Doubt, Figure
from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import connected, json_option, result, table

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
