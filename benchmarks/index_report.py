"""What `lifelist bench index` shows: a table, a page, and curves."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lifelist.benchmarks.accuracy_report import figure, markdown
from lifelist.exporter.index import MOST_EXACT

Facts = Mapping[str, Any]  # what index_size.measure found
TITLES = (
    "classes", "chosen", "exact: a query", "graph: a query", "recall@1", "recall@5", "exact: bytes", "graph: bytes",
    "exact: built in", "graph: built in", "one class more", "last layer: a query", "last layer: bytes",
)  # fmt: skip


def rows(facts: Facts) -> list[tuple[str, ...]]:
    """A line for each count of classes."""
    found: list[tuple[str, ...]] = []
    for row in facts["rows"]:
        exact, graph, linear = row["exact"], row["graph"], row["linear"]
        found.append(
            (
                f"{row['classes']:,}",
                facts["chosen"][str(row["classes"])],
                _time(exact["seconds_one"]),
                _time(graph["seconds_one"]),
                f"{graph['recall_1']:.3f}",
                f"{graph['recall_5']:.3f}",
                _size(exact["bytes"]),
                _size(graph["bytes"]),
                _time(exact["build_seconds"]),
                _time(graph["build_seconds"]),
                _time(row[facts["chosen"][str(row["classes"])]]["one_more_seconds"]),
                _time(linear["seconds_one"]),
                _size(linear["bytes"]),
            )
        )
    return found


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} µs"


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


def page(facts: Facts, picture: str, command: str) -> str:
    """Everything, in Markdown. picture: file name beside the page."""
    return "\n".join(_page(facts, picture, command)) + "\n"


def _page(facts: Facts, picture: str, command: str) -> Iterator[str]:
    machine = facts["machine"]
    yield "# From ten classes to a million"
    yield ""
    yield (
        f"The index of class means, of {facts['dim']} dimensions: comparing every mean, or walking a graph (HNSW). "
        "Queries one at a time, with one thread, medians. Means are drawn in groups of like ones, queries are a mean "
        f"and noise. **The rule: every mean is compared up to {MOST_EXACT:,} numbers in all means together, that is "
        f"{MOST_EXACT // facts['dim']:,} classes of {facts['dim']} dimensions; beyond, the graph is walked.** "
        "One class more, as an enrolment makes it, is a new file of the index that the rule has chosen."
    )
    yield ""
    yield from markdown(TITLES, rows(facts))
    yield ""
    yield f"![Time of a query and memory by classes]({picture})"
    yield ""
    yield f"By `{command}`, {machine['date']}, {machine['cores']} cores of {machine['processor']}."


def curves(path: Path, facts: Facts) -> None:
    """Time of a query, memory and build time by classes, both axes logarithmic."""
    plot, axes = figure(12, 4, columns=3)
    counts = [row["classes"] for row in facts["rows"]]
    panels = (
        ("a query, ms", "seconds_one", 1e3, ("exact", "graph", "linear")),
        ("memory, MiB", "bytes", 2**-20, ("exact", "graph", "linear")),
        ("built in, s", "build_seconds", 1.0, ("exact", "graph")),
    )
    names = {"exact": "every mean", "graph": "graph", "linear": "last layer"}
    for axis, (title, key, scale, lines) in zip(axes, panels, strict=True):
        for name in lines:
            axis.plot(counts, [row[name][key] * scale for row in facts["rows"]], marker="o", label=names[name])
        axis.axvline(MOST_EXACT / facts["dim"], color="grey", linestyle=":", label="rule")
        axis.set(xscale="log", yscale="log", xlabel="classes", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    plot.savefig(path)
