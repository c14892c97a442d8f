"""What `lifelist bench newclasses` shows: two tables, a page, and a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelist.benchmarks.accuracy import shown
from lifelist.benchmarks.accuracy_report import figure, markdown
from lifelist.benchmarks.newclasses import FALSE_ALARMS, KINDS
from lifelist.benchmarks.trained import PROVISIONAL_LOSS

Facts = Mapping[str, Any]  # what newclasses.measure found
LABELS = {"linear": "provisional row", "nearest_mean": "nearest mean"}
USED = {"largest logit": "linear", "nearest mean": "nearest_mean"}  # the scores that the product compares
UNKNOWN_TITLES = ("score", "AUROC", f"false alarms at {FALSE_ALARMS:.0%}", "left-out images called unknown")
ENROLLED_TITLES = (
    "images of a class", "answer", "new class, %", "known classes before, %", "and after, %",
    "new class called unknown before, %", "and after, %",
)  # fmt: skip


def unknown_rows(facts: Facts) -> list[tuple[str, ...]]:
    """A line for each score; what is called unknown of those that the product compares."""
    found = []
    for name, value in facts["unknown"]["auroc"].items():
        told = facts["unknown"].get(USED.get(name, ""), {})
        found.append((name, f"{value:.3f}", *(f"{told[k]:.1%}" if told else "" for k in ("false_alarms", "found"))))
    return found


def enrolled_rows(facts: Facts) -> list[tuple[str, ...]]:
    """Two lines for each count of images, of classes enrolled one at a time; then two of all of them together."""
    found = []
    several = f"{len(facts['classes']['left_out'])} classes at once"
    for key, words in (("enrolled", ""), ("together", several)):
        for count, row in facts[key].items():
            for kind in KINDS:
                before = f"{100 * facts['accuracy'][kind]:.1f}"
                cells = [_percent(row, f"{name}_{kind}") for name in ("recall", "old")]
                unknown = [_percent(row, f"unknown_{name}_{kind}") for name in ("before", "after")]
                label = ", ".join(filter(None, (str(count), words)))
                found.append((label, LABELS[kind], cells[0], before, cells[1], *unknown))
    return found


def _percent(row: Mapping[str, Any], name: str) -> str:
    """Mean and standard deviation over classes; of one figure, itself; nothing where it was not measured."""
    value = row.get(name)
    if value is None:
        return ""
    return shown([100 * one for one in (value if isinstance(value, Sequence) else [value])])


def page(facts: Facts, picture: str, command: str) -> str:
    """Everything, in Markdown. picture: file name beside the page."""
    return "\n".join(_page(facts, picture, command)) + "\n"


def _page(facts: Facts, picture: str, command: str) -> Iterator[str]:
    machine, classes, images = facts["machine"], facts["classes"], facts["images"]
    yield "# Classes that were not learned"
    yield ""
    yield (
        f"A base of {classes['known']} classes, {facts['epochs']} epochs, "
        f"{100 * facts['accuracy']['linear']:.1f} % right on their test images by the last layer and "
        f"{100 * facts['accuracy']['nearest_mean']:.1f} % by nearest mean. {len(classes['left_out'])} classes are left "
        f"out: {', '.join(classes['left_out'])}."
    )
    yield ""
    yield "## Told from known ones"
    yield ""
    yield (
        f"{images['known']:,} test images of known classes against {images['left_out']:,} of classes left out. The "
        "product compares the largest logit, or the similarity to the nearest mean, with those of "
        f"{images['held_out']:,} held-out images."
    )
    yield ""
    yield from markdown(UNKNOWN_TITLES, unknown_rows(facts))
    yield ""
    yield "## Enrolled"
    yield ""
    yield (
        "The classes left out are enrolled with few images, one at a time (mean ± standard deviation over classes), "
        f"then all at once. A provisional row may cost {PROVISIONAL_LOSS:.0%} of the right answers on held-out images. "
        f"Unknown: at false alarms of {FALSE_ALARMS:.0%}."
    )
    yield ""
    yield from markdown(ENROLLED_TITLES, enrolled_rows(facts))
    yield ""
    yield f"![Left-out images found by false alarms, and new classes named by images of them]({picture})"
    yield ""
    yield f"By `{command}`, {machine['date']}, {machine['cores']} cores of {machine['processor']}."


def picture(path: Path, facts: Facts) -> None:
    """Left: left-out images called unknown, by false alarms. Right: what is named of a new class, by its images."""
    plot, (left, right) = figure(11, 4, columns=2)
    for name, curve in facts["unknown"]["curves"].items():
        steps = len(curve) - 1
        left.plot([k / steps for k in range(steps + 1)], curve, label=name, linestyle="-" if name in USED else ":")
    left.set(xlabel="known images called unknown", ylabel="left-out images called unknown", title="unknown")
    left.legend()
    counts = [int(count) for count in facts["enrolled"]]
    for k, kind in enumerate(KINDS):
        means = [_mean(row[f"recall_{kind}"]) for row in facts["enrolled"].values()]
        right.plot(counts, [100 * mean for mean in means], marker="o", color=f"C{k}", label=LABELS[kind])
        together = [100 * row[f"recall_{kind}"] for row in facts["together"].values()]
        right.plot(counts, together, marker="o", color=f"C{k}", linestyle=":", label=f"{LABELS[kind]}, all at once")
    right.set(xscale="log", xticks=counts, xticklabels=counts, xlabel="images of the new class", title="named, %")
    right.minorticks_off()
    right.set_ylim(0, 100)
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    plot.savefig(path)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
