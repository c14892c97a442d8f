"""What `lifelist bench monitoring` shows: tables, a page, and a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelist.benchmarks.accuracy_report import figure, markdown
from lifelist.benchmarks.corruptions import CORRUPTIONS, SEVERITIES
from lifelist.benchmarks.monitoring import (
    COST,
    ENROLLED,
    ERROR,
    HARM,
    HARMED_BY,
    LEAD,
    LEARNED_BY,
    LONG_LEAD,
    MEMORY,
    PATIENCE,
    QUIET_ALARMS,
    ROUNDS,
    STRETCH,
    UNSEEN_SHARE,
    WITHIN,
)
from lifelist.benchmarks.monitoring_cost import CLIENTS, PROBE_S

Facts = Mapping[str, Any]  # what monitoring.measure found
TITLES = (
    "what happens", "accuracy, %", "costs, points", "right alarm", "after answers", "probes", "what else was raised",
    "estimated, %", "off by", "doubted",
)  # fmt: skip
BAR_TITLES = ("", "bar", "found")
COST_TITLES = ("images as", "repeat", "without, answers/s", "with", "ratio", "p99 without, ms", "with", "ratio")
ORACLE_TITLES = ("stretches", "ours, points", "NannyML, points")


def rows(facts: Facts) -> list[tuple[str, ...]]:
    """A line for each scenario."""
    return [_row(one) for one in facts["scenarios"]]


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    right, lost = one["right"], one["old_loss"]
    if right is None:
        alarm = ("none" if one["wanted"] else "none is", "", "")
    else:
        alarm = (right["name"], f"{right['after']:,}", str(right["rounds"]))
    cost = f"{100 * one['cost']:.1f}" + ("" if lost is None else f"; old classes {100 * lost:.1f}")
    same = right and right["name"].rpartition(".")[0]
    others = [other["name"] for other in one["others"]]
    more = sorted({other["name"] for other in one["raised"]} - {*others, right and right["name"]})
    also = ", ".join(name for name in (*others, *(n for n in more if n.rpartition(".")[0] != same)))
    estimate = ("", "") if one["error"] is None else (_percent(one["estimated"]), f"{100 * one['error']:+.1f}")
    doubted = "yes" if one["doubts"] else ""
    missed = " **missed**" if one["missed"] else ""
    return one["name"] + missed, _percent(one["accuracy"]), cost, *alarm, also, *estimate, doubted


def bars(facts: Facts) -> list[tuple[str, ...]]:
    """What was to be reached, and what was."""
    line = facts["line"]
    found: list[tuple[str, ...]] = [
        ("alarms in quiet windows", f"≤ {QUIET_ALARMS} of 200", f"{line['false_alarms']} of {line['quiet_windows']}"),
        ("scenarios that miss theirs", "0", f"{line['missed']} of {line['scenarios']}"),
        (
            "estimated accuracy off by, where nothing speaks against it",
            f"≤ {100 * ERROR:.0f} points",
            "–" if line["estimated_accuracy_error"] is None else f"{100 * line['estimated_accuracy_error']:.1f} points",
        ),
    ]
    if "cost" in facts:
        found.append(("throughput with watching : without", "≥ 0.95", f"{line['throughput_ratio']:.3f}"))
        found.append(("p99 with watching : without", "≤ 1.05", f"{line['p99_ratio']:.3f}"))
    return found


def cost_rows(facts: Facts) -> list[tuple[str, ...]]:
    """A line for each kind of image and repeat, and one for the medians of the ratios."""
    by_key = {(row["kind"], row["repeat"], row["watched"]): row for row in facts["cost"]["rows"]}
    found = []
    for kind, ratios in facts["cost"]["ratios"].items():
        for repeat in range(facts["cost"]["repeats"]):
            without, watched = by_key[kind, repeat, False], by_key[kind, repeat, True]
            cells = []
            for name, form in (("per_second", ",.0f"), ("p99_ms", ".1f")):
                ratio = watched[name] / without[name]
                cells += [format(without[name], form), format(watched[name], form), f"{ratio:.3f}"]
            found.append((kind, str(repeat + 1), *cells))
        medians = f"{ratios['throughput']:.3f}", "", "", f"{ratios['p99']:.3f}"
        found.append((kind, "median", "", "", *medians))
    return found


def oracle_rows(facts: Facts) -> list[tuple[str, ...]]:
    """Mean absolute errors, ours and NannyML's."""
    found = facts["oracle"]
    sound = sum(not row["doubtful"] for row in found["rows"])
    counts = {"sound": f"{sound} that nothing speaks against", "all": f"all {len(found['rows'])}"}
    return [
        (counts[name], *(_points(found[f"error_{name}_{whose}"]) for whose in ("ours", "theirs"))) for name in counts
    ]


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def page(facts: Facts, picture: str, command: str) -> str:
    """Everything, in Markdown. picture: file name beside the page."""
    return "\n".join(_page(facts, picture, command)) + "\n"


def _page(facts: Facts, picture: str, command: str) -> Iterator[str]:
    machine, classes, images, quiet = facts["machine"], facts["classes"], facts["images"], facts["quiet"]
    yield "# Does watching see what goes wrong?"
    yield ""
    yield (
        f"A base of {classes['known']} classes, {facts['epochs']} epochs, {_percent(quiet['accuracy'])} % right, is "
        f"calibrated on {images['held_out']:,} held-out images. {images['test']:,} other images, which no model was "
        "trained on, are its traffic: they go through the version's graph, and what it says goes to the watcher, as "
        "replicas hand it over, with the default settings. Alarms and estimates are those that a server would show."
    )
    yield ""
    yield from markdown(BAR_TITLES, bars(facts))
    yield ""
    yield "## What happens, and what is raised"
    yield ""
    learned, harmed = (facts["methods"][str(version)] for version in (LEARNED_BY, HARMED_BY))
    yield (
        f"Each scenario begins with {LEAD} quiet answers, so that the change comes in the middle of a window; "
        f"{STRETCH:,} answers follow, over which the estimate is held against the truth. Noise, blur, brightness and "
        "contrast are in five steps ([corruptions.py](../../../benchmarks/corruptions.py)). Of an unseen class is "
        f"{UNSEEN_SHARE:.0%} of the images. {classes['added']} classes are added: enrolled by {ENROLLED} images each; "
        f"by an increment ({learned}, {MEMORY:,} images of old classes); and by one that replays nothing ({harmed}). "
        "An hour later, when drift is no longer held, as many answers follow. Other shares of classes and unseen ones "
        f"come after {LONG_LEAD:,} quiet answers, and up to {PATIENCE:,} more follow until they are found: of many "
        "classes each comes so rarely that it may take long windows."
    )
    yield ""
    yield (
        f"Bars: what costs {100 * COST:.0f} points or more is found within {WITHIN} answers, or {ROUNDS} rounds of "
        f"probes where it is the decoder's fault; a version that loses {100 * HARM:.0f} points on old classes is named "
        f"within {ROUNDS} rounds; added classes raise nothing else; other scenarios are found. Doubted: the server "
        "says that the estimate may be wrong (`doubts` in `GET /v1/quality`)."
    )
    yield ""
    yield from markdown(TITLES, rows(facts))
    yield ""
    names = ", ".join(quiet["raised"]) or "none"
    off = [abs(one["error"]) for one in quiet["stretches"] if one["error"] is not None]
    yield (
        f"Quiet: {quiet['windows']} windows, alarms: {names}; the estimate over {STRETCH:,} answers is off by "
        f"{100 * sum(off) / len(off):.1f} points, mean absolute, and doubted in "
        f"{sum(bool(one['doubts']) for one in quiet['stretches'])} of {len(quiet['stretches'])} stretches."
    )
    yield ""
    yield f"![Answers until an alarm by severity, and estimated accuracy against the true one]({picture})"
    if "oracle" in facts:
        yield ""
        yield "## The estimate beside NannyML's"
        yield ""
        yield (
            f"Mean absolute error of the estimated accuracy over {STRETCH:,} answers, by the same scores and the same "
            f"held-out images: ours, and that of {facts['oracle']['package']} (CBPE) in an environment of its own. The "
            f"two are {100 * facts['oracle']['apart']:.2f} points apart on average."
        )
        yield ""
        yield from markdown(ORACLE_TITLES, oracle_rows(facts))
    if "cost" in facts:
        cost = facts["cost"]
        yield ""
        yield "## What it costs"
        yield ""
        yield (
            f"`lifelist serve` on the digits with watching and without it, in turn, {CLIENTS} clients, one image in a "
            f"request, {cost['seconds']:g} s each, {cost['repeats']} repeats; ratios within a repeat. With watching, "
            f"the server is probed every {PROBE_S} s, 15 times as often as by default, so that every load has a probe."
        )
        yield ""
        yield from markdown(COST_TITLES, cost_rows(facts))
    yield ""
    yield f"By `{command}`, {machine['date']}, {machine['cores']} cores of {machine['processor']}."


def picture(path: Path, facts: Facts) -> None:
    """Left: answers until the first right alarm, by corruption and severity. Right: estimated against true accuracy."""
    plot, (left, right) = figure(11, 4.2, columns=2)
    for k, kind in enumerate(CORRUPTIONS):
        of_kind = [one for one in facts["scenarios"] if one["kind"] == kind]
        at = [(one["severity"], one["right"]["after"], one["cost"] >= COST) for one in of_kind if one["right"]]
        left.plot([s for s, _, _ in at], [after for _, after, _ in at], color=f"C{k}", label=kind)
        for costly, fill in ((True, f"C{k}"), (False, "white")):
            chosen = [(s, after) for s, after, is_costly in at if is_costly == costly]
            left.scatter(*_columns(chosen), color=f"C{k}", facecolor=fill, zorder=3)
        unseen = [one["severity"] for one in of_kind if not one["right"]]
        left.scatter(unseen, [STRETCH + 60] * len(unseen), marker="x", color=f"C{k}")
    left.axhline(WITHIN, color="grey", linestyle=":")
    left.set(
        xlabel="severity", ylabel="answers until an alarm (×: none)", xticks=SEVERITIES, ylim=(0, STRETCH + 150),
        title=f"filled: costs {100 * COST:.0f} points or more",
    )  # fmt: skip
    left.legend()
    points = [*facts["scenarios"], *facts["quiet"]["stretches"]]
    for doubted, marker, label in ((False, "o", "nothing speaks against it"), (True, "x", "doubted by the server")):
        chosen = [
            (100 * one["accuracy"], 100 * one["estimated"])
            for one in points
            if one["error"] is not None and bool(one["doubts"]) == doubted
        ]
        right.scatter(*_columns(chosen), marker=marker, color="C3" if doubted else "C0", label=label)
    right.plot((0, 100), (0, 100), color="grey", linewidth=0.8)
    right.set(xlabel="true accuracy, %", ylabel="estimated, %", xlim=(0, 102), ylim=(0, 102), title="without any label")
    right.legend(loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    plot.savefig(path)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [one for one, _ in pairs], [other for _, other in pairs]
