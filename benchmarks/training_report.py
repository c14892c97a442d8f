"""What `lifelist bench training` shows: tables for the terminal, a page in Markdown, and a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelist.benchmarks.accuracy import shown
from lifelist.benchmarks.accuracy_report import figure, markdown
from lifelist.benchmarks.phases import NAMES

Facts = Mapping[str, Any]  # what training_speed.measure found
TITLES = ("", "seconds", "ratio", "accuracy", "nearest mean", "alpha", "beta")
PHASE_TITLES = ("phase", "seconds", "share", "outside the networks", "small images first")
ORDER = (
    "training",  # of the reference: these six in one
    "augment",
    "student forward",
    "backward",
    "teacher",
    "loss",
    "optimiser",
    "other",
    "evaluation of each epoch",
    "bias correction",
    "selection",
    "evaluation",
    "export",
)
LABELS = {
    "reference": "reference",
    "ours": "ours",
    "small": "ours, small images first",
}


def rows(facts: Facts) -> list[tuple[str, ...]]:
    """One line for the reference and for each of ours: medians, of accuracies the mean and its standard deviation."""
    found = []
    for name, label in LABELS.items():
        columns = zip(*facts["accuracies"][name], strict=True)
        accuracies = [shown([100 * accuracy for accuracy in column]) for column in columns]
        bias = [f"{_mean(column):.2f}" for column in zip(*facts["bias"][name], strict=True)] or ["–", "–"]
        ratio = facts["seconds"]["reference"] / facts["seconds"][name]
        found.append((label, f"{facts['seconds'][name]:.1f}", f"{ratio:.2f}", *accuracies, *bias))
    return found


def phase_rows(facts: Facts) -> list[tuple[str, ...]]:
    """One line for each phase of ours; shares of the whole, export included, and without passes through a network."""
    ours, small = facts["phases"]["ours"], facts["phases"]["small"]
    whole, small_whole = sum(ours.values()), sum(small.values())
    outside = {name: ours[name] - facts["passes"].get(name, 0.0) for name in ours}
    return [
        (
            name,
            f"{ours[name]:.2f}",
            f"{ours[name] / whole:.1%}",
            f"{outside[name] / whole:.1%}",
            f"{small[name]:.2f} ({small[name] / small_whole:.1%})",
        )
        for name in (*NAMES, "export")
    ]


def page(facts: Facts, picture: str, command: str) -> str:
    """Everything, in Markdown. picture: file name beside the page."""
    return "\n".join(_page(facts, picture, command)) + "\n"


def _page(facts: Facts, picture: str, command: str) -> Iterator[str]:
    line, machine = facts["line"], facts["machine"]
    low, high = line["ratio_spread"]
    size = facts["image_size"]
    yield "# Speed of training"
    yield ""
    yield (
        f"One BiC increment from 10 to 20 classes of {facts['data']}: {line['images']:,} training images of "
        f"{size}×{size} pixels, {line['epochs']} epochs of the paper's schedule in proportion, ResNet-32. Median of "
        f"{line['repeats']} repeats, ours and the reference in turn, with the same teacher, images and seeds. "
        f"**{line['ratio']:.2f} times as fast as the reference** ({low:.2f} … {high:.2f})."
    )
    yield ""
    yield from markdown(TITLES, rows(facts))
    yield ""
    yield (
        "The reference (`benchmarks/reference.py`) is PyCIL's pattern: each image by PIL in a DataLoader "
        f"({facts['workers']} workers, the best of 0, 2, 4 unless given), float32 NCHW, the accuracy on all training "
        "and test images after every epoch, herding in a Python loop; and FACIL's stage 2, SGD through the network. "
        f"Without its evaluation after each epoch the ratio is {line['ratio_without_evaluation']:.2f}. Ours "
        f"computes in {facts['precision']}. *Small images first*: the `short` schedule with as many epochs."
    )
    yield ""
    measures = (
        ("training, ours", f"{line['images_per_second']:,} images/s"),
        ("bare forward and backward passes, the floor", f"{line['floor_images_per_second']:,} images/s"),
        ("share of the floor", f"{line['share_of_floor']:.2f}"),
        ("training, reference", f"{line['reference_images_per_second']:,} images/s"),
        (f"choosing {line['selected']:,} exemplars, features included", f"{line['exemplar_selection_seconds']:.2f} s"),
        ("bias correction", f"{line['bias_correction_seconds']:.2f} s"),
    )
    yield from markdown(("measure", ""), measures)
    yield ""
    yield f"![Seconds by phase]({picture})"
    yield ""
    yield "## Where the seconds go"
    yield ""
    yield (
        "Timed in the loop's own functions as it runs; of two cores side by side, the mean. *Outside the networks*: "
        "without forward and backward passes. *Other* is the rest of the whole: batches fetched, gradients added up, "
        "one core waiting for the other, loading, sorting."
    )
    yield ""
    yield from markdown(PHASE_TITLES, phase_rows(facts))
    yield ""
    yield (
        f"By `{command}`, {machine['date']}, {machine['processor']}, {machine['threads']} of {machine['cores']} cores, "
        f"device {machine['device']}, torch {machine['torch']}, Python {machine['python']}; load average at the end "
        f"{machine['load'][0]}."
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def phases_picture(path: Path, facts: Facts) -> None:
    """Seconds of an increment by phase, a bar for the reference and one for each of ours."""
    from matplotlib import colormaps

    phases, labels = facts["phases"], list(reversed(LABELS))
    plot, axis = figure(9.5, 4)
    left = [0.0] * len(labels)
    for k, name in enumerate(ORDER):
        wide = [phases[label].get(name, 0.0) for label in labels]
        colour = colormaps["tab20"](k)
        axis.barh([LABELS[label] for label in labels], wide, left=left, label=name, color=colour, edgecolor="white")
        left = [a + b for a, b in zip(left, wide, strict=True)]
    for row, label in enumerate(labels):
        export = phases[label].get("export")
        more = f", then {export:.1f} s export" if export else ""
        axis.text(left[row], row, f" {left[row] - (export or 0.0):.1f} s{more}", va="center", fontsize=9)
    line = facts["line"]
    axis.set(
        xlabel="seconds, median",
        title=f"One BiC increment: {line['images']:,} images, epochs: {line['epochs']}",
        xlim=(0, 1.35 * max(left)),
    )
    axis.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.4, -0.16))
    plot.savefig(path)
