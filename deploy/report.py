"""What the demo found, as a table and as one picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lifelist.deploy.traffic import Sent

# fmt: off
ANSWERS = {  # key -> (how it is called, colour)
    "corrected":    ("linear, bias corrected", "#1b6ca8"),
    "uncorrected":  ("linear, before correction", "#8fb8d8"),
    "nearest_mean": ("nearest mean", "#3a8f5c"),
    "finetune":     ("plain fine-tuning", "#c0504d"),
}
# fmt: on
GROUPS = ("all", "old", "new")


@dataclass(frozen=True, slots=True)
class Step:
    """Accuracy after one step: answer -> group -> share of held-out images answered rightly (None: no such group)."""

    known: int  # classes
    new: tuple[str, ...]  # those that the step brought; none for the base
    version: int
    accuracy: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True, slots=True)
class Phase:
    """A named stretch of the run, in Unix seconds."""

    name: str
    began: float
    ended: float

    def holds(self, sent: Sent) -> bool:
        """Whether the request was in flight at any time of the phase."""
        return sent.began < self.ended and sent.began + sent.seconds > self.began


@dataclass(frozen=True, slots=True)
class Increment:
    """How long the new classes of one increment had to wait, in seconds from posting their first examples."""

    classes: tuple[str, ...]
    posted: float  # Unix time
    first_right_s: Mapping[str, float | None]  # class -> first right answer seen by the client
    swapped_s: float


def accuracy_table(steps: Sequence[Step]) -> str:
    """One row per step and answer, one column per group."""
    lines = [f"{'accuracy with':<26}{'answer':<28}{'all':>7}{'old':>7}{'new':>7}"]
    for step in steps:
        for row, key in enumerate(k for k in ANSWERS if k in step.accuracy):
            cells = [step.accuracy[key][group] for group in GROUPS]
            shown = "".join(f"{'–' if c is None else f'{c:.3f}':>7}" for c in cells)
            lines.append(f"{_heading(step, row):<26}{ANSWERS[key][0]:<28}{shown}")
    return "\n".join(lines)


def _heading(step: Step, row: int) -> str:
    return (f"{step.known} classes", f"  + {', '.join(step.new)}" if step.new else "", "", "")[row]


def traffic_table(sent: Sequence[Sent], phases: Sequence[Phase]) -> str:
    """Requests, failures and latency within each phase; phases of the same name are taken together."""
    lines = [f"{'requests':<26}{'sent':>9}{'failed':>9}{'p50 ms':>9}{'p99 ms':>9}"]
    for name in dict.fromkeys(p.name for p in phases):
        lines.append(_traffic_row(name, [s for s in sent if any(p.holds(s) for p in phases if p.name == name)]))
    lines.append(_traffic_row("in all", sent))
    return "\n".join(lines)


def _traffic_row(name: str, sent: Sequence[Sent]) -> str:
    answered = [s.seconds * 1000 for s in sent if s.failure is None]
    p50, p99 = (f"{np.percentile(answered, q):.1f}" if answered else "–" for q in (50, 99))
    return f"{name:<26}{len(sent):>9,}{sum(s.failure is not None for s in sent):>9}{p50:>9}{p99:>9}"


def waiting_table(increments: Sequence[Increment]) -> str:
    """Seconds from posting examples to the first right answer of each new class, and to the trained version live."""
    lines = [f"{'seconds from posting':<26}{'to first right answer':>24}{'to the swap':>14}"]
    for increment in increments:
        for row, (name, seconds) in enumerate(increment.first_right_s.items()):
            shown = "–" if seconds is None else f"{seconds:.2f}"
            lines.append(f"{name:<26}{shown:>24}{(f'{increment.swapped_s:.1f}' if row == 0 else ''):>14}")
    return "\n".join(lines)


def picture(path: Path, steps: Sequence[Step], sent: Sequence[Sent], phases: Sequence[Phase], title: str) -> None:
    """Above: accuracy after each step on all, old and new classes. Below: every request, by version."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(12, 8), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=13)
    panels: Any = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    above, below = panels

    for k, (axis, group) in enumerate(zip(above.subplots(1, 3, sharey=True), GROUPS, strict=True)):
        for key, (label, colour) in ANSWERS.items():
            points = [(x, step.accuracy[key][group]) for x, step in enumerate(steps) if key in step.accuracy]
            shown = [(x, y) for x, y in points if y is not None]
            width = 2.6 if key == "corrected" else 1.6
            axis.plot(*zip(*shown, strict=True), "o-", color=colour, label=label, linewidth=width, markersize=5)
        axis.set_title(f"{group} classes")
        axis.set_xticks(
            range(len(steps)),
            [f"{s.known} classes" + (f"\n(+ {', '.join(s.new)})" if s.new else "") for s in steps],
            fontsize=8,
        )
        axis.set_xlim(-0.2, len(steps) - 0.8)
        axis.set_ylim(0, 1.03)
        axis.grid(alpha=0.25)
        if k == 0:
            axis.set_ylabel("accuracy on held-out images")
            axis.legend(fontsize=8, loc="lower left")

    axis = below.subplots()
    start = min(s.began for s in sent)
    shades = {"training": "#dddddd", "enrolling": "#cfe8d5", "swapping": "#f5c6c4"}
    for name, colour in shades.items():
        for n, phase in enumerate(p for p in phases if p.name == name):
            axis.axvspan(phase.began - start, phase.ended - start, color=colour, lw=0, label=None if n else name)
    versions = sorted({s.version for s in sent if s.version is not None})
    for version, colour in zip(versions, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(versions))), strict=True):
        chosen = [s for s in sent if s.version == version]
        axis.scatter(
            [s.began - start for s in chosen], [s.seconds * 1000 for s in chosen], s=4, color=colour, lw=0,
            label=f"answered by version {version}",
        )  # fmt: skip
    if failed := [s for s in sent if s.failure]:
        axis.scatter(
            [s.began - start for s in failed],
            [s.seconds * 1000 for s in failed],
            marker="x",
            color="red",
            label="failed",
        )
    axis.set_yscale("log")
    axis.set_xlabel("seconds since the client began")
    axis.set_ylabel("latency of each request, ms")
    axis.legend(fontsize=8, loc="upper right", ncols=3, markerscale=3, framealpha=0.9)
    axis.margins(x=0.01)
    figure.savefig(path)
    plt.close(figure)
