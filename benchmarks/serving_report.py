"""What `lifelist bench serving` shows: tables for the terminal and the page, a picture, and the line of ratios."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lifelist.benchmarks.accuracy_report import figure, markdown
from lifelist.benchmarks.contenders import BARE, LIFELIST

Facts = Mapping[str, Any]  # what serving.measure found
TITLES = ("server", "clients", "images/s", "least … most", "of raw", "p50 ms", "p99 ms", "errors", "generator's cores")
BESIDE_TITLES = (
    "round", "p99 ms", "training", "ratio", "requests/s", "training", "errors", "training's s", "without load", "ratio"
)  # fmt: skip
R32, R32_PNG = "resnet32 fp32, tensor", "resnet32 fp32, PNG 32×32"
R18, R18_INT8 = "resnet18 fp32, JPEG 500×375", "resnet18 int8, JPEG 500×375"
SINGLE = (R32, R32_PNG)
BATCHES = tuple(f"{case} × 32" for case in (R32, R32_PNG, R18))
BARS = {
    "resnet18_fp32_of_raw": "≥ 0.85",
    "resnet18_int8_of_raw": "≥ 0.75",
    "resnet32_of_uvicorn": "≥ 0.95",
    "resnet32_of_best_peer": "≥ 1.3",
    "batch32_of_raw": "≥ 0.9",
    "lone_client_latency_of_uvicorn": "≤ 1.3",
    "p99_while_training_of_idle": "≤ 1.5",
    "enrol_seconds": "≤ 1",
}
BAR_TITLES = ("ratio", "bar", "worst", "each: case, clients, ratio")


@dataclass(frozen=True, slots=True)
class Ratio:
    """One measured ratio that a bar is about: the median over the repeats."""

    case: str
    clients: int
    value: float


def line(facts: Facts) -> dict[str, float]:
    """The figures that the bars are about, to three digits, and the errors of all."""
    return {name: round(value, 3) for name, value in _worst(facts).items()} | {"errors": errors(facts)}


def _worst(facts: Facts) -> dict[str, float]:
    """The figure that each bar is about: of several cases and counts of clients the worst."""
    found: dict[str, float] = {
        name: (max if BARS[name].startswith("≤") else min)(one.value for one in each)
        for name, each in ratios(facts).items()
        if each
    }
    beside = facts.get("beside", {})
    return found | {name: beside[name] for name in ("p99_while_training_of_idle", "enrol_seconds") if name in beside}


def errors(facts: Facts) -> int:
    """Answers that were not right, and connections that failed, in all cells of all servers."""
    loads = [one[when] for one in facts.get("beside", {}).get("rounds", ()) for when in ("idle", "training")]
    counts = [*(count for cell in facts["cells"] for count in cell["errors"]), *(one["errors"] for one in loads)]
    return sum(map(int, counts))


def ratios(facts: Facts) -> dict[str, list[Ratio]]:
    """For each bar what it is about: every case and count of clients where both sides gave right answers.

    A lone client counts for its latency alone: between two of its requests there is nothing to do.
    """
    peers = {cell["contender"] for cell in facts["cells"]} - {BARE.name, LIFELIST.name}
    return {
        "resnet18_fp32_of_raw": _of_raw(facts, [R18], least=8),
        "resnet18_int8_of_raw": _of_raw(facts, [R18_INT8], least=8),
        "resnet32_of_uvicorn": [
            Ratio(case, clients, _ratio(facts, case, clients, BARE.name))
            for case in SINGLE
            for clients in _clients(facts, case, LIFELIST.name, BARE.name)
            if clients > 1
        ],
        "resnet32_of_best_peer": [
            Ratio(case, clients, min(_ratio(facts, case, clients, peer) for peer in rivals))
            for case in SINGLE
            for clients in _clients(facts, case, LIFELIST.name)
            if clients > 1 and (rivals := [peer for peer in peers if clients in _clients(facts, case, peer)])
        ],
        "batch32_of_raw": _of_raw(facts, BATCHES, least=2),
        "lone_client_latency_of_uvicorn": [
            Ratio(case, 1, _latency(facts, case))
            for case in facts["raw"]
            if 1 in _clients(facts, case, LIFELIST.name, BARE.name)
        ],
    }


def bar_rows(facts: Facts) -> list[tuple[str, ...]]:
    """A line for each bar: the worst figure, and all of them."""
    each, found = ratios(facts), _worst(facts)
    shown = {name: "; ".join(f"{r.case}, {r.clients}, {r.value:.2f}" for r in some) for name, some in each.items()}
    return [(name, bar, f"{found[name]:.2f}", shown.get(name, "")) for name, bar in BARS.items() if name in found]


def _clients(facts: Facts, case: str, *contenders: str) -> list[int]:
    """Counts of clients at which all of these were measured; others than ours gave right answers in each repeat."""
    cells = [cell for cell in facts["cells"] if cell["case"] == case]
    sound = [cell for cell in cells if min(cell["images_per_second"]) > 0 or cell["contender"] == LIFELIST.name]
    each = [{cell["clients"] for cell in sound if cell["contender"] == name} for name in contenders]
    return sorted(set.intersection(*each))


def _cell(facts: Facts, case: str, clients: int, contender: str) -> Mapping[str, Any]:
    wanted = (contender, case, clients)
    return next(c for c in facts["cells"] if (c["contender"], c["case"], c["clients"]) == wanted)


def _ratio(facts: Facts, case: str, clients: int, other: str) -> float:
    """Ours to another's images/s: the median of the repeats' ratios."""
    pair = [_cell(facts, case, clients, name)["images_per_second"] for name in (LIFELIST.name, other)]
    return float(median(a / b for a, b in zip(*pair, strict=True)))


def _of_raw(facts: Facts, cases: Sequence[str], least: int) -> list[Ratio]:
    found = []
    for case in cases:
        limits = [limit["images_per_second"] for limit in facts["raw"].get(case, ())]
        for clients in _clients(facts, case, LIFELIST.name):
            rates = _cell(facts, case, clients, LIFELIST.name)["images_per_second"]
            if clients >= least:
                found.append(Ratio(case, clients, median(a / b for a, b in zip(rates, limits, strict=True))))
    return found


def _latency(facts: Facts, case: str) -> float:
    pair = [_cell(facts, case, 1, name)["p50_ms"] for name in (LIFELIST.name, BARE.name)]
    return float(median(a / b for a, b in zip(*pair, strict=True)))


def rows(facts: Facts, case: str) -> list[tuple[str, ...]]:
    """A line for the limit, and one for each server and count of clients."""
    limits = [found["images_per_second"] for found in facts["raw"][case]]
    way = facts["raw"][case][-1]
    found = [_row(f"raw ONNX Runtime ({way['way']}, batch {way['batch']})", "", limits, limits)]
    for cell in (c for c in facts["cells"] if c["case"] == case):
        rest = (
            f"{median(cell['p50_ms']):.1f}", f"{median(cell['p99_ms']):.1f}", str(sum(cell["errors"])),
            f"{median(cell['generator_cores']):.2f}",
        )  # fmt: skip
        row = _row(cell["contender"], str(cell["clients"]), cell["images_per_second"], limits)
        found.append((*row[: -len(rest)], *rest))
    return found


def beside_rows(facts: Facts) -> list[tuple[str, ...]]:
    """A line for each increment that was trained under load."""
    return [
        (
            str(number),
            *(f"{one[when]['p99_ms']:.1f}" for when in ("idle", "training")),
            f"{one['training']['p99_ms'] / one['idle']['p99_ms']:.2f}",
            *(f"{one[when]['right'] / one[when]['seconds']:,.0f}" for when in ("idle", "training")),
            str(one["idle"]["errors"] + one["training"]["errors"]),
            f"{one['seconds']:.1f}",
            f"{one['seconds_alone']:.1f}",
            f"{one['seconds'] / one['seconds_alone']:.2f}",
        )
        for number, one in enumerate(facts["beside"]["rounds"], 1)
    ]


def _row(name: str, clients: str, rates: Sequence[float], limits: Sequence[float]) -> tuple[str, ...]:
    share = median(a / b for a, b in zip(rates, limits, strict=True))
    spread = f"{min(rates):,.0f} … {max(rates):,.0f}"
    return name, clients, f"{median(rates):,.0f}", spread, f"{share:.2f}", "", "", "", ""


def page(facts: Facts, picture: str, command: str) -> str:
    """Everything, in Markdown. picture: file name beside the page."""
    return "\n".join(_page(facts, picture, command)) + "\n"


def _page(facts: Facts, picture: str, command: str) -> Iterator[str]:
    machine = facts["machine"]
    yield "# Speed of serving"
    yield ""
    yield (
        f"Images answered each second, median of {facts['repeats']} interleaved repeats of {facts['seconds']:g} s a "
        "cell, longer where requests have 32 images, each server started anew for each. The limit is ONNX Runtime in a "
        "loop on the same cores, decoding included. Every answer was held against the limit's: an error is an answer "
        "of another status or class, or a connection that failed, and only right answers count. The load comes from "
        "wrk on the same cores, whose own use of them is shown; top class only, in JSON. Other servers are measured at "
        "fewer counts of clients, so that all fit into one run. Ratios of rates are of more than one client; the one "
        f"of latency is a lone client's, its median. Errors in all: {errors(facts)}."
    )
    yield ""
    yield from markdown(BAR_TITLES, bar_rows(facts))
    yield ""
    if facts["raw"]:
        yield f"![Images each second]({picture})"
    for case in facts["raw"]:
        yield ""
        yield f"## {case}"
        yield ""
        yield from markdown(TITLES, rows(facts, case))
    if "beside" in facts:
        yield ""
        yield from _beside(facts)
    yield ""
    yield "How images travel: " + "; ".join(f"{name}, {how}" for name, how in facts["how"].items()) + "."
    yield ""
    yield f"By `{command}`, {machine['date']}, {machine['cores']} cores of {machine['processor']}, no GPU."


def _beside(facts: Facts) -> Iterator[str]:
    found = facts["beside"]
    yield "## While it learns"
    yield ""
    yield (
        f"A ResNet-32 that knows ten classes, PNG files, {found['peak_per_second']:,.0f} requests/s at most; asked for "
        f"half as many. {found['enrolled']} new classes of {found['asked']['images']} images each could be named "
        f"{found['enrol_seconds']:.2f} s after their images were posted, at worst after "
        f"{found['enrol_seconds_worst']:.2f} s. Then all were trained for {found['asked']['epochs']} epochs: under "
        f"the same load, which took {found['training_slowdown']:.2f} times as long as without any."
    )
    yield ""
    yield from markdown(BESIDE_TITLES, beside_rows(facts))


def rates_picture(path: Path, facts: Facts) -> None:
    """A group of bars for each case, as shares of the limit."""
    cases = list(facts["raw"])
    plot, axes = figure(3.2 * len(cases), 4, columns=len(cases))
    for case, axis in zip(cases, np.atleast_1d(axes), strict=True):
        limits = [found["images_per_second"] for found in facts["raw"][case]]
        counts = Counter(cell["clients"] for cell in facts["cells"] if cell["case"] == case)
        most = max(counts, key=lambda clients: (counts[clients], clients))  # where most servers can be compared
        names = [c["contender"] for c in facts["cells"] if (c["case"], c["clients"]) == (case, most)]
        shares = [
            [a / b for a, b in zip(_cell(facts, case, most, name)["images_per_second"], limits, strict=True)]
            for name in names
        ]
        middle = [median(found) for found in shares]
        error = [[m - min(s) for m, s in zip(middle, shares, strict=True)],
                 [max(s) - m for m, s in zip(middle, shares, strict=True)]]  # fmt: skip
        axis.bar(names, middle, yerr=error, color=["#1f77b4" if name == LIFELIST.name else "#b0b0b0" for name in names])
        axis.axhline(1, color="black", linewidth=1)
        axis.set(title=f"{case}\n{most} clients", ylabel="of raw ONNX Runtime", ylim=(0, 1.1))
        axis.tick_params(axis="x", rotation=45)
    plot.savefig(path)
