"""`lifelist top`: how a running server does, at a glance and live, in a terminal."""

import re
import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import click

from lifelist.client.answers import ENDED, AlarmState, Doubt, Figure, Increment, NoticeRow
from lifelist.client.blocking import Client
from lifelist.client.errors import RequestFailed
from lifelist.deploy.pulse import Pulse, Traffic
from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import connected, json_option, result

# fmt: off
SOURCES = {  # how the page calls them, too
    "feedback":  "labels",
    "audit":     "audit",
    "probe":     "probe",
    "estimated": "estimated",
}
# fmt: on
GROUPS: tuple[Literal["all", "old", "new"], ...] = ("all", "old", "new")
ASK_QUALITY_S = 10.0  # between looks at what the database has; traffic is looked at each time
WORST, LATEST = 5, 8  # classes, notices
BAR, SPARK = 20, "▁▂▃▄▅▆▇█"
ENTER, LEAVE, HOME, REST_OF_LINE, REST = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[K", "\x1b[J"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Standing:
    """What was asked of the server last."""

    url: str
    since: str
    live: dict[str, str]
    traffic: Traffic | None
    figures: list[Figure]
    doubts: list[Doubt]
    classes: list[Figure]
    alarms: list[AlarmState]
    increments: list[Increment]
    notices: list[NoticeRow]


@click.command()
@click.option(
    "--since", default="24h", show_default=True, help="From when on accuracy counts: RFC 3339, or 90m, 24h, 7d."
)
@click.option(
    "--every", default=2.0, show_default=True, type=click.FloatRange(0.5, 3600), help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Print one frame, after two looks a second apart, and end.")
@json_option
@click.pass_obj
def top(resolved: Resolved, since: str, every: float, once: bool, as_json: bool) -> None:
    """Show a running server at a glance, live: traffic, accuracy, alarms, increments. ctrl-C ends it."""
    with connected(resolved.settings) as client:
        watching = _Watching(client, since)
        if once or as_json:
            watching.look()
            time.sleep(1)
            found = watching.look()
            wide = shutil.get_terminal_size((100, 40)).columns
            result(asdict(found), "\n".join(frame(found, watching.rates, wide)), as_json)
            return
        click.echo(ENTER, nl=False)
        try:
            while True:
                _show(_lines(watching))
                time.sleep(every)
        except KeyboardInterrupt:
            pass
        finally:
            click.echo(LEAVE, nl=False)


class _Watching:
    """Asks the server again and again; what changes slowly, seldom."""

    def __init__(self, client: Client, since: str) -> None:
        self.client, self.since, self.pulse = client, since, Pulse()
        self.rates: deque[float] = deque(maxlen=60)
        self._asked, self._figures, self._classes = 0.0, list[Figure](), list[Figure]()
        self._doubts: list[Doubt] = []

    def look(self) -> Standing:
        """How it stands now. Unavailable if it does not answer."""
        traffic = self.pulse.look(self.client.metrics(), time.monotonic())
        if traffic is not None:
            self.rates.append(traffic.rate)
        if time.monotonic() - self._asked >= ASK_QUALITY_S or not self._asked:
            found = self.client.quality(self.since)
            self._figures, self._doubts = found["figures"], found["doubts"]
            self._classes = self.client.quality(self.since, group="class", source="probe")["figures"]
            self._asked = time.monotonic()
        return Standing(
            self.client.url,
            self.since,
            dict(self.pulse.live),
            traffic,
            self._figures,
            self._doubts,
            self._classes,
            self.client.alarms()["alarms"],
            self.client.increments(),
            self.client.notices(limit=LATEST)["notices"],
        )


def _lines(watching: _Watching) -> list[str]:
    size = shutil.get_terminal_size()
    try:
        found = frame(watching.look(), watching.rates, size.columns)
    except RequestFailed as error:
        found = [_bold(f"Lifelist  {watching.client.url}"), click.style(str(error), fg="red"), "It is asked again."]
    return [_cut(line, size.columns) for line in found[: size.lines]]


def _show(lines: Sequence[str]) -> None:
    click.echo(HOME + f"{REST_OF_LINE}\n".join(lines) + REST_OF_LINE + REST, nl=False)


def frame(found: Standing, rates: Sequence[float], wide: int) -> list[str]:
    """All lines of one look, which may be longer than the terminal is wide."""
    live, number = found.live, found.live.get("version", "none")
    told = "no version is live"
    if live:
        by = f"answers by {live['answer'].replace('_', ' ')}, {live['provider']} {live['precision']}"
        told = f"version {number} is live: {live['classes']} classes, {by}"
    head = f"Lifelist  {found.url}  {told}"
    raised = [alarm for alarm in found.alarms if alarm["state"] == "raised"]
    alarms = [click.style(f"  {a['name']} since {a['since'][:16]}Z: {a['message']}", fg="red") for a in raised]
    return [
        _bold(head),
        "",
        *_traffic(found.traffic, rates),
        "",
        _bold("alarms"),
        *(alarms or [f"  none of {len(found.alarms)} that are watched"]),
        "",
        _bold(f"right answers of version {number}, of the last {found.since}"),
        *_accuracy([one for one in found.figures if str(one["version"]) == number]),
        *(f"  doubt the estimate: {one['message']}" for one in found.doubts if str(one["version"]) == number),
        "",
        _bold("worst classes, by probe"),
        *_worst([one for one in found.classes if str(one["version"]) == number]),
        "",
        _bold("increments"),
        *([_increment(one, wide) for one in found.increments[-3:][::-1]] or ["  none yet"]),
        "",
        _bold("what happened"),
        *([f"  {one['at'][:16]}Z  {one['kind']:<10} {one['message']}" for one in found.notices] or ["  nothing yet"]),
    ]


def _traffic(now: Traffic | None, rates: Sequence[float]) -> list[str]:
    if now is None:
        return [_bold("traffic"), "  comes with the second look"]
    errors = click.style(f"{now.errors:.1%} errors", fg="red" if now.errors else None)
    shown = f"{now.rate:,.1f} requests/s  {errors}  {now.refused:.1%} refused  p50 {_ms(now.p50)}  p99 {_ms(now.p99)}"
    most = max([*rates, 1e-9])
    spark = "".join(SPARK[min(len(SPARK) - 1, int(rate / most * len(SPARK)))] for rate in rates)
    waiting = f"{now.inflight} in flight, {now.queued} images wait, {now.replicas} replicas"
    return [_bold("traffic"), f"  {shown}", f"  {waiting}", f"  {spark} at most {most:,.1f} a second"]


def _accuracy(figures: Sequence[Figure]) -> list[str]:
    lines = [f"  {'':<11}" + "".join(f"{group:<36}" for group in GROUPS)]
    for source, name in SOURCES.items():
        of = {one["group"]: one for one in figures if one["source"] == source}
        if of:
            lines.append((f"  {name:<11}" + "".join(f"{_share(of.get(group)):<36}" for group in GROUPS)).rstrip())
    return lines if len(lines) > 1 else ["  nothing was judged, probed or estimated yet"]


def _share(one: Figure | None) -> str:
    if one is None or one["ratio"] is None:
        return "–"
    return f"{one['ratio']:.1%} ({one['low']:.1%} … {one['high']:.1%}), n {one['images']:,}"


def _worst(classes: Sequence[Figure]) -> list[str]:
    known = sorted((one for one in classes if one["ratio"] is not None), key=lambda one: one["ratio"] or 0.0)
    return [f"  {(one['name'] or '')[:24]:<24}  {_share(one)}" for one in known[:WORST]] or ["  no probe yet"]


def _increment(one: Increment, wide: int) -> str:
    names = ", ".join(named["name"] for named in one["classes"])
    shown = f"  {one['id']:>3}  {one['state']:<9} {names[: max(20, wide - 70)]}"
    if one["state"] not in ENDED and (progress := one["progress"]):
        done = round(BAR * progress["epoch"] / max(1, progress["epochs"]))
        bar = "█" * done + "░" * (BAR - done)
        epoch = f"{progress['epoch']}/{progress['epochs']}"
        shown += f"  {bar} {progress['phase']} {epoch}, {progress['seconds_left']:.0f} s left"
    return shown


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.3g} ms"


def _bold(text: str) -> str:
    return click.style(text, bold=True)


def _cut(line: str, wide: int) -> str:
    """As much of a line as fits, colours not counted."""
    plain = COLOUR.sub("", line)
    if len(plain) <= wide:
        return line
    codes = COLOUR.findall(line)
    cut = plain[: max(0, wide - 1)] + "…"
    return f"{codes[0]}{cut}{codes[-1]}" if line.startswith("\x1b") else cut
