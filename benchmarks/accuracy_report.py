"""What `lifelist bench accuracy` shows: a table for the terminal, a page in Markdown, and two pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from lifelist.benchmarks.accuracy import HEADS, Row, Run, rows, shown
from lifelist.benchmarks.protocols import PROTOCOLS, Protocol
from lifelist.benchmarks.published import SOURCES, Figure, besides, differences, figures
from lifelist.training.methods import METHODS

Cells = tuple[str, ...]
MEASURES = ("average", "average_without_base", "last")


@dataclass(frozen=True, slots=True)
class Table:
    """For the terminal, and for the page."""

    heading: str
    words: str
    titles: Cells
    lines: Sequence[Cells]


def tables(runs: Sequence[Run], protocol: Protocol) -> list[Table]:
    """All that have a line."""
    found = (_results(runs), _compared(runs, protocol), _after_each(runs), _bias(runs))
    return [table for table in found if table.lines]


def _results(runs: Sequence[Run]) -> Table:
    titles = (
        "method",
        "answers by",
        "seeds",
        "last",
        "old",
        "new",
        "answers new",
        "average",
        "without base",
        "forgetting",
        "seconds",
    )
    words = (
        "Accuracy in % on the test images of all classes known so far; mean ± standard deviation over seeds. Last, "
        "old, new: after the last increment, on all classes, those known before it, and those that it brought. Answers "
        "new: the share of all test images that are taken for a class of the last increment / that are of one. "
        "Average: over all increments, with the base and without it. Forgetting: what the classes of an earlier "
        "increment lost of the best that they ever had. Seconds: of a whole run. * marks the answer that the method "
        "gives; the others are what the same network would say otherwise."
    )
    lines = [
        (
            *_who(row),
            ", ".join(map(str, row.seeds)),
            *map(shown, (row.last, row.old, row.new)),
            f"{shown(row.answers_new)} / {row.images_new:.1f}",
            *map(shown, (row.average, row.average_without_base, row.forgetting)),
            shown(row.seconds, ",.0f"),
        )
        for row in rows(runs)
    ]
    return Table("Results", words, titles, lines)


def _who(row: Row) -> Cells:
    return row.method, HEADS[row.head] + (" *" if row.answers else "")


def beside(runs: Sequence[Run], protocol: Protocol) -> list[tuple[Row, Figure]]:
    """Each row with everything that was published of it."""
    return [(row, f) for row in rows(runs) for f in figures(protocol.name, row.method, row.head)]


def _compared(runs: Sequence[Run], protocol: Protocol) -> Table:
    titles = ("method", "answers by", "published in", "average", "without base", "last", "differs in")
    lines = [
        (*_who(row), f.source, *(_against(row, f, measure) for measure in MEASURES), _differs(_first(runs, row), f))
        for row, f in beside(runs, protocol)
    ]
    words = "Accuracy and, where they are not the same, settings: ours / published."
    return Table("Ours / published", words, titles, lines)


def _first(runs: Sequence[Run], row: Row) -> Run:
    """Any run of a row: but for the seed, all of a method have one setting."""
    return next(run for run in runs if run["method"] == row.method)


def _against(row: Row, figure: Figure, measure: str) -> str:
    published = getattr(figure, measure)
    ours = mean(getattr(row, measure))
    return "" if published is None else f"{ours:.1f} / {published:.1f} ({ours - published:+.1f})"


def _differs(run: Run, figure: Figure) -> str:
    found = differences(run, figure)
    told = [f"{what} {ours} / {there}" for what, ours, there in found if there]
    if unknown := [what for what, _, there in found if not there]:
        told.append(f"not known there: {', '.join(unknown)}")
    return "; ".join([*told, *besides(figure)])


def _after_each(runs: Sequence[Run]) -> Table:
    titles = ("method", "answers by", *map(str, runs[0]["classes"]))
    lines = [(*_who(row), *map(shown, row.steps)) for row in rows(runs)]
    return Table("Accuracy after each increment", "By classes known.", titles, lines)


def _bias(runs: Sequence[Run]) -> Table:
    titles = ("method", "seed", *map(str, runs[0]["classes"][1:]))
    lines = [
        (run["method"], str(run["seed"]), *(f"{b[0]:.2f}, {b[1]:.2f}" if b else "–" for b in run["bias"][1:]))
        for run in runs
        if any(run["bias"])
    ]
    return Table("Bias correction", "α and β of each increment after the base (Wu et al. 2019, eq. 4).", titles, lines)


def commands(runs: Sequence[Run], protocol: Protocol) -> list[str]:
    """What makes these runs: a command for each set of seeds."""
    methods: dict[tuple[int, ...], list[str]] = {}
    for row in rows(runs):
        if row.answers:
            methods.setdefault(row.seeds, []).append(row.method)
    usual, memory = PROTOCOLS[protocol.name], ""
    if protocol.memory != usual.memory:
        per_class = protocol.memory_per_class
        memory = f" --memory {f'{per_class}-per-class' if per_class else protocol.memory_total}"
    data = "" if protocol.data.endswith("digits") else " --data PATH"
    return [
        f"lifelist bench accuracy --protocol {protocol.name}{data} --method {','.join(names)} "
        f"--seeds {','.join(map(str, seeds))} --order {runs[0]['order']} --schedule {runs[0]['options']['schedule']}"
        f"{memory}"
        for seeds, names in methods.items()
    ]


def machines(runs: Sequence[Run]) -> list[str]:
    """On what the runs were made."""
    return sorted({_machine(run) for run in runs})


def _machine(run: Run) -> str:
    software = run["software"]
    facts = (run.get("processor"), software["device"], f"torch {software['torch']}", software["precision"])
    return ", ".join(fact for fact in facts if fact)


def facts(runs: Sequence[Run], protocol: Protocol) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "protocol": asdict(protocol),
        "order": runs[0]["order"],
        "schedule": runs[0]["options"]["schedule"],
        "classes": runs[0]["classes"],
        "rows": [{**asdict(row), "curve": row.curve} for row in rows(runs)],
        "bias": [{"method": r["method"], "seed": r["seed"], "alpha_beta": r["bias"]} for r in runs if any(r["bias"])],
        "published": [_published(_first(runs, row), row, figure) for row, figure in beside(runs, protocol)],
        "commands": commands(runs, protocol),
        "machines": machines(runs),
        "dates": sorted({run["ended"] for run in runs}),
    }


def _published(run: Run, row: Row, figure: Figure) -> dict[str, Any]:
    found: dict[str, Any] = {"method": row.method, "head": row.head, "source": SOURCES[figure.source].cite}
    for measure in MEASURES:
        if (there := getattr(figure, measure)) is not None:
            here = round(mean(getattr(row, measure)), 4)
            found[measure] = {"ours": here, "published": there, "difference": round(here - there, 4)}
    return found | {
        "curve": list(figure.curve),
        "differs_in": [
            {"setting": what, "ours": ours, "published": there or None}
            for what, ours, there in differences(run, figure)
        ],
        "besides": besides(figure),
    }


def page(runs: Sequence[Run], protocol: Protocol, pictures: Sequence[str]) -> str:
    """Everything, in Markdown. pictures: file names beside the page."""
    return "\n".join(_page(runs, protocol, pictures)) + "\n"


def _page(runs: Sequence[Run], protocol: Protocol, pictures: Sequence[str]) -> Iterator[str]:
    yield f"# Accuracy: {protocol.name}"
    yield ""
    yield (
        f"{protocol.data} with {protocol.classes} classes in {protocol.increments} increments ({protocol.base} first, "
        f"then {protocol.step} at a time), class order `{runs[0]['order']}`, memory {protocol.memory} (hold-out of BiC "
        f"inside), ResNet-32 (iCaRL: without the last ReLU), schedule `{runs[0]['options']['schedule']}`, from random "
        "weights."
    )
    for table in tables(runs, protocol):
        yield ""
        yield f"## {table.heading}"
        yield ""
        yield table.words
        yield ""
        yield from markdown(table.titles, table.lines)
        if table.heading == "Results":
            yield ""
            yield f"![Accuracy by classes seen]({pictures[0]})"
            yield ""
            yield f"![Confusion by order of arrival]({pictures[1]})"
    if pairs := beside(runs, protocol):
        yield ""
        yield "## Sources"
        yield ""
        for name in dict.fromkeys(figure.source for _, figure in pairs):
            yield f"- **{name}**: {SOURCES[name].cite}."
    yield ""
    yield "## Made by"
    yield ""
    yield from (f"    {command}" for command in commands(runs, protocol))
    yield ""
    yield f"{', '.join(sorted({run['ended'] for run in runs}))}, on {'; '.join(machines(runs))}."


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(line)} |" for line in lines)


def curves_picture(path: Path, runs: Sequence[Run], protocol: Protocol) -> None:
    """Accuracy by classes seen: a line for each method as it answers, dashed before correction; published: × and +."""
    picture, axis = figure(9, 6)
    seen = runs[0]["classes"]
    colours = {method: f"C{k}" for k, method in enumerate(dict.fromkeys(run["method"] for run in runs))}
    for row in rows(runs):
        colour, label = colours[row.method], f"{row.method}, {HEADS[row.head]}"
        if row.answers:
            axis.plot(seen, row.curve, "o-", color=colour, label=label)
        elif row.head == "linear_uncorrected":
            axis.plot(seen, row.curve, "--", color=colour, linewidth=1, label=label)
    for row, published in beside(runs, protocol):
        if len(published.curve) == len(seen):
            mark, label = "x" if row.answers else "+", f"{row.method}, {HEADS[row.head]}: {published.source}"
            axis.plot(seen, published.curve, mark, color=colours[row.method], markersize=8, label=label)
    axis.set_xticks(seen)
    axis.set(xlabel="classes seen", ylabel="accuracy on all of them, %", title=protocol.name, ylim=(0, 100))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=2)
    picture.savefig(path)


def confusion_picture(path: Path, runs: Sequence[Run]) -> None:
    """Which class is answered for which, both in order of arrival: as the method answers, and left of it before."""
    from matplotlib.colors import PowerNorm

    shown_rows = [row for row in rows(runs) if row.answers or row.head == "linear_uncorrected"]
    corrected = {row.method for row in shown_rows if not row.answers}
    shown_rows.sort(key=lambda row: (row.method not in corrected, list(METHODS).index(row.method), row.answers))
    columns = min(4, len(shown_rows))
    lines = -(-len(shown_rows) // columns)
    picture, axes = figure(3.4 * columns + 0.8, 3.5 * lines, lines, columns)
    for axis in np.ravel(axes):
        axis.set_visible(False)
    for axis, row in zip(np.ravel(axes), shown_rows, strict=False):
        counts = sum(_counts(run["heads"][row.head]["confusion"]) for run in runs if run["method"] == row.method)
        share = counts / counts.sum(1, keepdims=True).clip(1)
        axis.set_visible(True)
        image = axis.imshow(share, cmap="viridis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        axis.set_title(f"{row.method}, {HEADS[row.head]}", fontsize=9)
        axis.set_xlabel("answered class, by arrival", fontsize=8)
        axis.set_ylabel("true class, by arrival", fontsize=8)
        axis.tick_params(labelsize=7)
    scale = picture.colorbar(image, ax=axes, fraction=0.05, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    scale.set_label("share of the test images of a class", fontsize=8)
    scale.ax.tick_params(labelsize=7)
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
