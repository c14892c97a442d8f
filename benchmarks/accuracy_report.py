"""What `lifelist bench accuracy` shows: a table for the terminal, a page in Markdown, and two pictures."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from lifelist.benchmarks.accuracy import HEADS, Row, Run, rows, shown
from lifelist.benchmarks.protocols import Protocol
from lifelist.benchmarks.published import SOURCES, Figure, figures

Cells = tuple[str, ...]
TITLES = ("method", "answers by", "seeds", "last", "old", "new", "average", "without base", "forgetting", "seconds")
MEASURES = ("average", "average_without_base", "last")


def cells(row: Row) -> Cells:
    """One line of the table."""
    by = HEADS[row.head] + (" *" if row.answers else "")
    found = (row.last, row.old, row.new, row.average, row.average_without_base, row.forgetting)
    return (row.method, by, ", ".join(map(str, row.seeds)), *map(shown, found), f"{row.seconds:,.0f}")


def beside(runs: Sequence[Run], protocol: Protocol) -> list[tuple[Row, Figure]]:
    """Each row that is the method's own answer, with everything that was published of it."""
    return [(row, f) for row in rows(runs) if row.answers for f in figures(protocol.name, row.method)]


def compared(row: Row, figure: Figure) -> Cells:
    """Ours, published and the difference, for what was published."""
    found = []
    for measure in MEASURES:
        published = getattr(figure, measure)
        ours = mean(getattr(row, measure))
        found.append("" if published is None else f"{ours:.1f} / {published:.1f} ({ours - published:+.1f})")
    return (row.method, figure.source, *found)


def page(runs: Sequence[Run], protocol: Protocol, pictures: Sequence[str], command: str) -> str:
    """Everything, in Markdown. pictures: file names beside the page."""
    return "\n".join(_page(runs, protocol, pictures, command)) + "\n"


def _page(runs: Sequence[Run], protocol: Protocol, pictures: Sequence[str], command: str) -> Iterator[str]:
    options, software = runs[0]["options"], runs[0]["software"]
    orders = ", ".join(sorted({run["order"] for run in runs}))
    yield f"# Accuracy: {protocol.name}"
    yield ""
    yield (
        f"{protocol.data} with {protocol.classes} classes in {protocol.increments} increments ({protocol.base} first, "
        f"then {protocol.step} at a time), class order `{orders}`, memory {protocol.memory} (hold-out of BiC inside), "
        f"ResNet-32 (iCaRL: without the last ReLU), schedule `{options['schedule']}`, from random weights."
    )
    yield ""
    yield (
        "Accuracy in % on the test images of all classes known so far; mean ± standard deviation over seeds. Last, "
        "old, new: after the last increment, on all classes, those known before it, and those that it brought. "
        "Average: over all increments, with the base and without it. Forgetting: what the classes of an earlier "
        "increment lost of the best that they ever had. Seconds: of a whole run. * marks the answer that the method "
        "gives; the others are what the same network would say otherwise."
    )
    yield ""
    yield from markdown(TITLES, [cells(row) for row in rows(runs)])
    yield ""
    yield f"![Accuracy by classes seen]({pictures[0]})"
    yield ""
    if pairs := beside(runs, protocol):
        yield "## Beside what was published"
        yield ""
        yield "Ours / published (difference)."
        yield ""
        titles = ("method", "source", "average", "average without base", "last")
        yield from markdown(titles, [compared(row, f) for row, f in pairs])
        yield ""
        for name in dict.fromkeys(figure.source for _, figure in pairs):
            source = SOURCES[name]
            other = "" if source.order in orders.split(", ") else f"; class order {source.order or 'its own'}"
            yield f"- **{name}**: {source.cite}. Differs: {source.differs}{other}; as long as published, ours as above."
        yield ""
    yield "## Accuracy after each increment"
    yield ""
    yield from markdown(
        ("method", "answers by", *map(str, runs[0]["classes"])),
        [(row.method, HEADS[row.head], *(f"{a:.1f}" for a in row.curve)) for row in rows(runs)],
    )
    yield ""
    if corrected := [run for run in runs if any(run["bias"])]:
        yield "## Bias correction"
        yield ""
        yield "α and β of each increment after the base (Wu et al. 2019, eq. 4)."
        yield ""
        yield from markdown(
            ("method", "seed", *map(str, runs[0]["classes"][1:])),
            [
                (run["method"], str(run["seed"]), *(f"{b[0]:.2f}, {b[1]:.2f}" if b else "–" for b in run["bias"][1:]))
                for run in corrected
            ],
        )
        yield ""
    yield f"![Confusion by order of arrival]({pictures[1]})"
    yield ""
    ended = ", ".join(sorted({run["ended"] for run in runs}))
    yield (
        f"By `{command}`, {ended}, {platform.system()} {platform.machine()}, {software['device']}, "
        f"torch {software['torch']}, {software['precision']}."
    )


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(line)} |" for line in lines)


def curves_picture(path: Path, runs: Sequence[Run], protocol: Protocol) -> None:
    """Accuracy by classes seen: a line for each method as it answers, dashed before correction, × as published."""
    picture, axis = figure(9, 6)
    seen = runs[0]["classes"]
    colours = {method: f"C{k}" for k, method in enumerate(dict.fromkeys(run["method"] for run in runs))}
    for row in rows(runs):
        if row.answers:
            axis.plot(seen, row.curve, "o-", color=colours[row.method], label=f"{row.method}, {HEADS[row.head]}")
        elif row.head == "linear_uncorrected":
            axis.plot(
                seen, row.curve, "--", color=colours[row.method], linewidth=1, label=f"{row.method}, {HEADS[row.head]}"
            )
    for row, published in beside(runs, protocol):
        if len(published.curve) == len(seen):
            colour = colours[row.method]
            axis.plot(seen, published.curve, "x", color=colour, markersize=8, label=f"{row.method}, {published.source}")
    axis.set_xticks(seen)
    axis.set(xlabel="classes seen", ylabel="accuracy on all of them, %", title=protocol.name, ylim=(0, 100))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=2)
    picture.savefig(path)


def confusion_picture(path: Path, runs: Sequence[Run]) -> None:
    """Which class is answered for which, both in order of arrival: before correction, and as the method answers."""
    panels = []
    for row in rows(runs):
        if row.answers or row.head == "linear_uncorrected":
            of_method = [run for run in runs if run["method"] == row.method]
            counts = sum(_counts(run["heads"][row.head]["confusion"]) for run in of_method)
            panels.append((f"{row.method}, {HEADS[row.head]}", counts))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    picture, axes = figure(3.4 * columns, 3.5 * lines, lines, columns)
    for axis in np.ravel(axes):
        axis.set_visible(False)
    for axis, (title, counts) in zip(np.ravel(axes), panels, strict=False):
        share = counts / counts.sum(1, keepdims=True).clip(1)
        axis.set_visible(True)
        axis.imshow(np.sqrt(share), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("answered class, by arrival", fontsize=8)
        axis.set_ylabel("true class, by arrival", fontsize=8)
        axis.tick_params(labelsize=7)
    picture.savefig(path)


def _counts(confusion: Mapping[str, Mapping[str, int]]) -> Any:
    found = np.zeros((len(confusion), len(confusion)), dtype=np.int64)
    for row, answers in confusion.items():
        for answered, count in answers.items():
            found[int(row), int(answered)] = count
    return found


def figure(wide: float, high: float, lines: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A matplotlib figure and its axes, for a file rather than a screen; inches."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(lines, columns, figsize=(wide, high), dpi=110, layout="constrained")
