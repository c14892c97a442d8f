"""What `lifelist bench stages` shows: tables for the terminal and the page, a picture, and the line."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lifelist.benchmarks.accuracy_report import figure, markdown
from lifelist.benchmarks.stages import STAGES, WHO

Facts = Mapping[str, Any]  # what stages.measure found
Cell = Mapping[str, Any]
IDLE_TITLES = ("process", "of a core")


def line(facts: Facts) -> dict[str, Any]:
    """What a query costs beside the model, µs: of its time by one client, of the cores' by the most; and Ray's rest."""
    few, many = _clients(facts)[0], _clients(facts)[-1]
    return {
        "beside_model_us": {c["case"]: round(c["latency_us"] - c["stages_us"]["model"]) for c in _cells(facts, few)},
        "cores_beside_model_us": {c["case"]: round(_busy(c) - c["cores_us"]["lanes"]) for c in _cells(facts, many)},
        "idle_cores": round(sum(facts["idle_cores"].values()), 3),
    }


def _busy(cell: Cell) -> float:
    spent: Mapping[str, float] = cell["cores_us"]
    return sum(spent.values()) - spent["nobody"]


def _clients(facts: Facts) -> list[int]:
    return sorted({cell["clients"] for cell in facts["cells"]})


def _cells(facts: Facts, clients: int) -> list[Cell]:
    return [cell for cell in facts["cells"] if cell["clients"] == clients]


def titles(facts: Facts, first: str) -> list[str]:
    """Of a table with a column for each case."""
    return [first, *(cell["case"] for cell in _cells(facts, _clients(facts)[0]))]


def stage_rows(facts: Facts, clients: int) -> list[tuple[str, ...]]:
    """Microseconds of a query by stage, and what they come to."""
    cells = _cells(facts, clients)
    found = _rows("stages_us", STAGES, cells)
    found.append(("latency", *(f"{cell['latency_us']:,.0f}" for cell in cells)))
    low_high = [[f"{value:,.0f}" for value in cell["latency_spread_us"]] for cell in cells]
    found.append(("least … most of the repeats", *(" … ".join(pair) for pair in low_high)))
    return [*found, *_rates(cells)]


def core_rows(facts: Facts, clients: int) -> list[tuple[str, ...]]:
    """Microseconds of the cores for each query, by who has them."""
    cells = _cells(facts, clients)
    return [
        *_rows("cores_us", WHO, cells),
        ("all cores", *(f"{sum(cell['cores_us'].values()):,.0f}" for cell in cells)),
    ]


def idle_rows(facts: Facts) -> list[tuple[str, str]]:
    """What each process takes of the cores while nobody asks."""
    found = [(name, f"{share:.3f}") for name, share in facts["idle_cores"].items()]
    return [*found, ("all", f"{sum(facts['idle_cores'].values()):.3f}")]


def _rows(what: str, names: Mapping[str, str], cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    return [(f"{name}: {said}", *(f"{cell[what][name]:,.0f}" for cell in cells)) for name, said in names.items()]


def _rates(cells: Sequence[Cell]) -> Iterator[tuple[str, ...]]:
    for name, key in (("answers/s", "requests_per_second"), ("without marks", "unmarked_requests_per_second")):
        yield name, *(f"{cell[key]:,.0f}" for cell in cells)


def page(facts: Facts, picture: str, command: str) -> str:
    """Everything, in Markdown. picture: file name beside the page."""
    return "\n".join(_page(facts, picture, command)) + "\n"


def _page(facts: Facts, picture: str, command: str) -> Iterator[str]:
    machine = facts["machine"]
    errors = sum(cell["errors"] for cell in facts["cells"])
    yield "# Where the time of a query goes"
    yield ""
    yield (
        "The server as `lifelist serve` starts it, with HAProxy and Ray, under closed-loop load from wrk on the same "
        f"cores; means of {facts['repeats']} repeats of {facts['seconds']:g} s. The replica's own functions are timed "
        "as they run (`benchmarks/marks.py`), the whole by the generator. What no mark covers is a stage of its own, "
        "so that the stages add up to the latency: *layers* inside the replica, *sockets* outside of it, and *proxy*, "
        "which is what more is outside through HAProxy than past it: the difference of two loads, and as uncertain as "
        f"these. Every answer was held against the right class; {errors or 'none'} of them failed."
    )
    yield ""
    yield f"![Shares of the stages]({picture})"
    for clients in _clients(facts):
        yield ""
        yield f"## {clients} {'client' if clients == 1 else 'clients'}: a query's time, µs"
        yield ""
        yield from markdown(titles(facts, "stage"), stage_rows(facts, clients))
        yield ""
        yield f"The cores' time for each query, µs, of which there are {machine['cores']} × 1,000,000 in a second:"
        yield ""
        yield from markdown(titles(facts, "who"), core_rows(facts, clients))
    yield ""
    yield "## While nobody asks"
    yield ""
    yield from markdown(IDLE_TITLES, idle_rows(facts))
    yield ""
    yield f"By `{command}`, {machine['date']}, {machine['cores']} cores of {machine['processor']}, no GPU."


def shares_picture(path: Path, facts: Facts) -> None:
    """A bar for each case: of a query's time by the fewest clients, and of the cores' by the most."""
    few, many = _clients(facts)[0], _clients(facts)[-1]
    plot, axes = figure(13, 2.4 + 0.55 * len(_cells(facts, few)), columns=2)
    _shares(axes[0], _cells(facts, few), "stages_us", list(STAGES), f"of a query's time, clients: {few}")
    _shares(axes[1], _cells(facts, many), "cores_us", list(WHO), f"of the cores' time, clients: {many}")
    plot.savefig(path)


def _shares(axis: Any, cells: Sequence[Cell], what: str, names: Sequence[str], title: str) -> None:
    from matplotlib import colormaps

    cells = cells[::-1]
    labels = [cell["case"].replace(", ", "\n") for cell in cells]
    wholes = np.array([sum(cell[what].values()) for cell in cells])
    left = np.zeros(len(cells))
    for k, name in enumerate(names):
        wide = np.array([max(0.0, cell[what][name]) for cell in cells]) / wholes
        colour = "#e4e4e4" if name == "nobody" else colormaps["tab20"](k)
        axis.barh(labels, wide, left=left, label=name, color=colour, edgecolor="white")
        left += wide
    for row, whole in enumerate(wholes):
        axis.text(left[row], row, f" {whole:,.0f} µs", va="center", fontsize=9)
    axis.set(title=title, xlim=(0, 1.22), xticks=[0, 0.5, 1])
    axis.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.45, -0.12))
