"""What `lifelist bench swap` shows: a table with the bars, a page, and a picture."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lifelist.benchmarks.accuracy_report import figure, markdown
from lifelist.benchmarks.swaps import EARLY, SETTLED_S, STALE_S, VARIANTS

Facts = Mapping[str, Any]  # what swaps.measure found
BARS = {
    "failed_requests": "0",
    "mixed_answers": "0",
    "p99_ratio": "≤ 1.2",
    "stale_answers": "0",
    "rss_ratio": "≤ 1.05",
    "rollback_seconds": "≤ 1",
}
SIDES = {"inside": "within windows", "outside": "outside"}


def titles(facts: Facts) -> tuple[str, ...]:
    """Of the columns."""
    return "", "bar", *(_replicas(count) for count in facts["rows"])


def rows(facts: Facts) -> list[tuple[str, ...]]:
    """A line for each figure, with its bar if it has one, and a column for each count of replicas."""
    names = next(iter(facts["rows"].values()))
    return [(name, BARS.get(name, ""), *(f"{row[name]:,}" for row in facts["rows"].values())) for name in names]


def _replicas(count: str) -> str:
    return f"{count} replica{'' if count == '1' else 's'}"


def page(facts: Facts, picture: str, command: str) -> str:
    """Everything, in Markdown. picture: file name beside the page."""
    return "\n".join(_page(facts, picture, command)) + "\n"


def _page(facts: Facts, picture: str, command: str) -> Iterator[str]:
    machine, asked = facts["machine"], facts["asked"]
    kinds = ", ".join(f"{classes} classes in {'int8' if int8 else 'fp32'}" for classes, int8 in VARIANTS)
    yield "# Swaps under load"
    yield ""
    yield (
        f"ResNet-32, {asked['clients']} clients that ask again as soon as they are answered, tensors of one image "
        f"and of {asked['images']} in turn. Versions of {kinds} go live one after the other, {asked['pause_s']:g} s "
        "after the one before, and every answer is held against what the version that it names should say. The window "
        f"of a swap lasts from asking for it to {1e3 * SETTLED_S:.0f} ms after it was acknowledged. Stale is an answer "
        f"by the version before to a request that began more than {1e3 * STALE_S:.0f} ms after the acknowledgement. "
        f"Memory is that of the replicas after the last swap, to after swap {EARLY}. Then live is rolled back "
        f"{asked['rollbacks']} times, to and fro: seconds from the call to the first answer by the version before, the "
        "longest."
    )
    yield ""
    yield from markdown(titles(facts), rows(facts))
    yield ""
    yield f"![Latency and memory over the swaps]({picture})"
    yield ""
    yield f"By `{command}`, {machine['date']}, {machine['cores']} cores of {machine['processor']}, no GPU."


def picture(path: Path, facts: Facts) -> None:
    """A line of panels for each count of replicas: latency within windows and outside, and memory, over the swaps."""
    plot, axes = figure(10, 3.4 * len(facts["course"]), lines=len(facts["course"]), columns=2)
    for (count, course), (left, right) in zip(facts["course"].items(), axes.reshape(-1, 2), strict=True):
        swaps = [part["swaps"] for part in course["latency"]]
        for side, colour in zip(SIDES, ("C1", "C0"), strict=True):
            for share, style in (("99", "-"), ("50", ":")):
                figures = [part[side][share] for part in course["latency"]]
                left.plot(swaps, figures, style, color=colour, marker=".", label=f"{SIDES[side]}, p{share}")
        left.set(title=f"{_replicas(count)}: latency", ylabel="ms", xlabel="swaps", ylim=(0, None))
        left.legend(loc="lower right")
        memory = [size / 2**20 for size in course["rss_bytes"]]
        right.plot(range(1, len(memory) + 1), memory)
        right.set(
            title=f"{_replicas(count)}: resident memory", ylabel="MiB", xlabel="swaps", ylim=(0, 1.1 * max(memory))
        )
        for axis in (left, right):
            axis.grid(alpha=0.3)
    plot.savefig(path)
