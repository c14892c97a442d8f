"""How the command line speaks: results on standard output, everything else on standard error."""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from lifelist.client.blocking import Client
from lifelist.deploy.settings import Settings

_AnyCommand = Callable[..., Any]


def json_option(command: _AnyCommand) -> _AnyCommand:
    """The option that every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def result(value: Any, text: str, as_json: bool) -> None:
    """The one result of a command: for machines, or for people."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str) if as_json else text)


def connected(settings: Settings) -> Client:
    """A client of the server that the settings name. Somebody waits, who is told at once if it does not answer."""
    return Client(settings.url, api_key=settings.api_key.get_secret_value(), patience_s=0)


def note(text: str) -> None:
    """Something that is not the result."""
    click.echo(text, err=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns; numbers to the right."""
    texts = [list(head), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(line[k]) for line in texts) for k in range(len(head))]
    numbers = [bool(rows) and all(isinstance(row[k], int | float | None) for row in rows) for k in range(len(head))]

    def aligned(line: Sequence[str]) -> str:
        cells = zip(line, widths, numbers, strict=True)
        return "  ".join(cell.rjust(w) if right else cell.ljust(w) for cell, w, right in cells).rstrip()

    return "\n".join(map(aligned, texts))


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def flat(value: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`a.b: what` lines of a nested value."""
    lines = []
    for name, item in value.items():
        lines += flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else [f"{prefix}{name}: {item}"]
    return lines


def verdict(check: Mapping[str, Any]) -> str:
    """What a check of the gate found, on one line."""
    return f"{'passed' if check['passed'] else 'REFUSED'}: {check['message']}"


class Bar:
    """Progress of one thing: tqdm at a terminal, else a line every ten percent. Made by `progress`."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, max(1, total), unit
        self.done = self._tenth = 0
        self._lock = threading.Lock()  # trainers report from threads of their own
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                desc=what,
                unit=unit,
                unit_scale=unit == "B",
                file=sys.stderr,
                leave=True,
                dynamic_ncols=True,
            )

    def to(self, done: int, remark: str = "") -> None:
        """`done` of the total is done; `remark` says more, such as the loss."""
        with self._lock:
            forward, self.done = done - self.done, done
            if self._bar is not None:
                self._bar.set_postfix_str(remark, refresh=False)
                self._bar.update(forward)
                return
            tenth = min(10, 10 * done // self.total)
            if tenth > self._tenth:
                self._tenth = tenth
                note(f"{self.what}: {10 * tenth} % of {self.total:,} {self.unit}s" + (f", {remark}" if remark else ""))

    def by(self, more: int) -> None:
        """`more` of the total is done, on top of what was."""
        self.to(self.done + more)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar for the time of a `with` block. unit: singular, such as "epoch"."""
    bar = Bar(what, total, unit)
    try:
        yield bar
    finally:
        bar.close()


class Follower:
    """Shows the events of an increment: a bar for each phase of training, a line for each step."""

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        """One event. Kinds that are not known here are shown with their facts, so that none is lost."""
        if kind == "epoch":
            self._epoch(data)
            return
        self._close()
        if kind == "warning":
            note(f"warning: {data['message']}")
        elif kind == "method":
            note(f"method: {data['method']}, because {data['reason']}")
        elif kind == "state":
            note(f"… {data['state']}")
        elif kind == "examples":
            note(f"{data['class']}: {data['added']} images, {data['duplicates']} duplicates")
            for file, reason in list(data["refused"].items())[:5]:
                note(f"  {file} is left out: {reason}")
        elif kind == "cancel-requested":
            note("… to be cancelled")
        elif kind != "ended":  # whoever follows says how it ended
            note(f"{kind}: " + ", ".join(f"{name} {value}" for name, value in data.items()))

    def _epoch(self, data: Mapping[str, Any]) -> None:
        which = f"increment {data['increment']}" if data.get("increment") else "base"
        what = f"{which}: {data['phase']}" if "increment" in data else data["phase"]
        if self._bar is None or self._bar.what != what:
            self._close()
            self._bar = Bar(what, data["epochs"], "epoch")
        loss = [f"{term} {value:.3f}" for term, value in data.get("loss", {}).items() if value]
        self._bar.to(data["epoch"], ", ".join([*loss, f"{data['images_per_second']:,.0f} images/s"]))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextlib.contextmanager
def following() -> Iterator[Follower]:
    """A Follower for the time of a `with` block."""
    follower = Follower()
    try:
        yield follower
    finally:
        follower._close()
