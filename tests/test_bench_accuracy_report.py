"""What `lifelist bench accuracy` shows, of runs that were made up: published figures, and what differs there."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from lifelist.benchmarks import accuracy_report as report
from lifelist.benchmarks import published
from lifelist.benchmarks.accuracy import HEADS, Run, rows, shown
from lifelist.benchmarks.protocols import PROTOCOLS, Protocol
from lifelist.training.methods import METHODS, ScheduleName
from lifelist.training.options import TrainingOptions

TEN, HALF = PROTOCOLS["cifar100-10x10"], PROTOCOLS["cifar100-b50-10"]


def made_up(
    method: str, seed: int = 0, *, protocol: Protocol = TEN, schedule: ScheduleName = "short", order: str = "facil"
) -> Run:
    """A run that falls from 90 by 4 points an increment, and takes 12 % of old classes' images for a new class."""
    steps = [0.9 - 0.04 * k + 0.01 * seed for k in range(protocol.increments)]
    new = range(protocol.classes - protocol.step, protocol.classes)
    confusion = {str(c): {str(c): 100} if c in new else {str(c): 88, "95": 12} for c in range(100)}
    head = {"accuracies": steps, "old": 0.5, "new": 0.6, "forgetting": 0.2, "confusion": confusion}
    options = TrainingOptions(
        method=method,
        network="resnet32-icarl" if method == "icarl" else "resnet32",
        memory_total=protocol.memory_total,
        memory_per_class=protocol.memory_per_class,
        schedule=schedule,
        seed=seed,
    )
    corrects = METHODS[method].rebalance == "bias-correction"
    return {
        "method": method,
        "seed": seed,
        "protocol": protocol.name,
        "order": order,
        "options": options.as_dict(),
        "schedules": json.loads(json.dumps(asdict(METHODS[method].schedules[schedule]))),
        "answers_by": METHODS[method].answers_by,
        "heads": dict.fromkeys(HEADS, head),
        "classes": [protocol.base + k * protocol.step for k in range(protocol.increments)],
        "bias": [None, *[[0.8, -0.25] if corrects else None] * (protocol.increments - 1)],
        "seconds": [10.0 + seed] * protocol.increments,
        "warnings": [],
        "software": {"torch": "2.15.0", "device": "cpu, 2 threads", "precision": "bf16"},
        "processor": "Abacus 9",
        "ended": "2026-11-25",
    }


def compared(page: str, method: str, source: str, answers_by: str) -> list[str]:
    """The cells of one line beside published figures: average, without base, last, differs in."""
    (line,) = [x for x in page.splitlines() if x.startswith(f"| {method} | {answers_by} | {source} |")]
    return [cell.strip() for cell in line.split("|")[4:-1]]


def test_each_row_stands_beside_what_was_published_with_the_difference() -> None:
    page = report.page([made_up("bic"), made_up("bic", 1), made_up("icarl")], TEN, ("a.png", "b.png"))
    # BiC of the two seeds: 72.5 on average, without base 70.5, last 54.5; published 65.08, 62.44, 50.79
    assert compared(page, "bic", "CILS", "linear *")[:3] == [
        "72.5 / 65.1 (+7.4)",
        "70.5 / 62.4 (+8.1)",
        "54.5 / 50.8 (+3.7)",
    ]
    assert compared(page, "icarl", "iCaRL", "nearest mean *")[:3] == ["72.0 / 64.1 (+7.9)", "", ""]
    assert compared(page, "icarl", "iCaRL", "linear")[:3] == ["72.0 / 59.3 (+12.7)", "", ""]  # hybrid1
    for source in ("CILS", "WA", "iCaRL"):
        assert f"- **{source}**: {published.SOURCES[source].cite}." in page


def test_the_page_says_in_what_a_published_figure_was_made_otherwise() -> None:
    page = report.page([made_up("bic"), made_up("wa"), made_up("icarl")], TEN, ("a.png", "b.png"))
    assert compared(page, "wa", "CILS", "linear *")[-1] == (
        "epochs 30, then 16 / 200, then 170; learning rate one cycle to 0.2 / "
        "0.1, × 0.1 after 60, 120, 170, then 0.1, × 0.1 after 60, 100, 140; batch 64 / 128; "
        "weight decay 0.0005 / 0.0005, then 0.0002; images from 0.5 of the size up / full size; "
        "augmentation crop, flip / crop, flip, brightness; precision bf16 / fp32"
    )
    bic = compared(page, "bic", "CILS", "linear *")[-1]
    assert "epochs 30, then 16 / 250 (in the survey's own repository 170); " in bic
    assert bic.endswith("; hold-out trained on, a second softmax in stage 2")
    assert "not known there: order, epochs, learning rate" in compared(page, "bic", "WA", "linear *")[-1]
    assert compared(page, "icarl", "iCaRL", "nearest mean *")[-1].startswith("order facil / 10 orders, mean; epochs")


def test_by_the_authors_own_schedule_little_differs_from_their_figures() -> None:
    fives = PROTOCOLS["cifar100-5x20"]
    page = report.page(
        [made_up(m, protocol=fives, schedule="paper") for m in ("bic", "icarl", "wa")], fives, ("a.png", "b.png")
    )
    assert compared(page, "wa", "WA", "linear *")[-1] == "precision bf16 / fp32; not known there: order"
    assert compared(page, "icarl", "iCaRL", "nearest mean *")[-1] == (
        "order facil / 10 orders, mean; precision bf16 / fp32; memory rounded up"
    )
    before = compared(page, "bic", "BiC", "linear, before correction")
    assert before[:3] == ["82.0 / 61.5 (+20.5)", "80.0 / 55.6 (+24.4)", "74.0 / 40.3 (+33.7)"]
    assert before[-1].endswith("a student never corrected, nor its teacher")


@pytest.mark.parametrize(
    ("protocol", "order", "memory"),
    [
        (HALF, "facil", "memory 20 per class / 2,000 in all"),
        (replace(TEN, memory_total=0, memory_per_class=40), "facil", "memory 40 per class / 2,000 in all"),
        (TEN, "icarl", "order icarl / facil"),
    ],
)
def test_another_memory_or_order_than_the_published_one_is_said(protocol: Protocol, order: str, memory: str) -> None:
    runs = [made_up(m, protocol=protocol, order=order) for m in ("wa", "finetune")]
    assert memory in compared(report.page(runs, protocol, ("a", "b")), "wa", "CILS", "linear *")[-1]
    figures = published.figures("cifar100-10x10", "finetune", "linear")
    assert "memory" not in [what for what, _, _ in published.differences(runs[1], figures[0])]  # it has none


def test_the_plot_has_published_points_in_the_colour_of_their_method(tmp_path: Path) -> None:
    report.curves_picture(tmp_path / "curves.png", [made_up("bic"), made_up("wa")], TEN)
    (axis,) = pyplot.gcf().axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert list(lines) == [
        "bic, linear",
        "bic, linear, before correction",
        "wa, linear",
        "wa, linear, before correction",
        "bic, linear: CILS",
        "wa, linear: CILS",
    ]
    points = lines["bic, linear: CILS"]
    assert list(points.get_xdata()) == list(range(10, 101, 10))
    assert list(points.get_ydata())[-1] == 50.79
    assert (points.get_marker(), points.get_color()) == ("x", lines["bic, linear"].get_color())
    assert list(lines["bic, linear"].get_ydata()) == pytest.approx([90 - 4 * k for k in range(10)])
    assert axis.get_xlabel() == "classes seen"


def test_confusion_has_a_scale_and_what_was_before_correction_on_the_left(tmp_path: Path) -> None:
    report.confusion_picture(tmp_path / "confusion.png", [made_up(m) for m in ("finetune", "bic", "icarl", "wa")])
    axes = [axis for axis in pyplot.gcf().axes if axis.get_visible()]
    titles = [axis.get_title() for axis in axes]
    assert titles[:4] == [
        "bic, linear, before correction",
        "bic, linear",
        "wa, linear, before correction",
        "wa, linear",
    ]
    assert titles[4:6] == ["icarl, nearest mean", "finetune, linear"]
    assert axes[-1].get_ylabel() == "share of the test images of a class"


def test_mean_and_spread_are_over_seeds() -> None:
    linear, nearest = rows([made_up("icarl"), made_up("icarl", 1)])
    assert [(row.head, row.answers) for row in (linear, nearest)] == [("linear", False), ("nearest_mean", True)]
    assert nearest.curve == pytest.approx([90.5 - 4 * k for k in range(10)])
    assert nearest.average == pytest.approx((72, 73))
    assert nearest.average_without_base == pytest.approx((70, 71))
    assert shown(nearest.last) == "54.5 ± 0.7"
    assert nearest.seconds == (100, 110)
    page = report.page([made_up("icarl"), made_up("icarl", 1)], TEN, ("a.png", "b.png"))
    assert "| 105 ± 7 |" in page
    assert "| icarl | nearest mean * | 90.5 ± 0.7 | 86.5 ± 0.7 |" in page


def test_the_share_of_answers_with_new_classes_stands_beside_that_of_their_images() -> None:
    (row, *_) = rows([made_up("bic")])
    assert row.answers_new == (pytest.approx(10 + 0.12 * 90),)  # all ten new classes, and 12 % of the ninety others
    assert row.images_new == pytest.approx(10)
    assert "| 20.8 / 10.0 |" in report.page([made_up("bic")], TEN, ("a.png", "b.png"))


def test_the_commands_are_those_that_make_the_runs() -> None:
    runs = [made_up("bic"), made_up("bic", 1), made_up("wa"), made_up("finetune")]
    common = "--order facil --schedule short"
    assert report.commands(runs, TEN) == [
        f"lifelist bench accuracy --protocol cifar100-10x10 --data PATH --method bic --seeds 0,1 {common}",
        f"lifelist bench accuracy --protocol cifar100-10x10 --data PATH --method wa,finetune --seeds 0 {common}",
    ]
    fewer = replace(TEN, memory_total=0, memory_per_class=10)
    assert report.commands(runs[2:3], fewer)[0].endswith(f"--seeds 0 {common} --memory 10-per-class")
    last = report.page(runs, TEN, ("a.png", "b.png")).splitlines()[-1]
    assert last == "2026-11-25, on Abacus 9, cpu, 2 threads, torch 2.15.0, bf16."


def test_results_hold_differences_and_corrections() -> None:
    found: dict[str, Any] = json.loads(json.dumps(report.facts([made_up("bic"), made_up("finetune")], TEN)))
    assert found["bias"] == [{"method": "bic", "seed": 0, "alpha_beta": [None, *[[0.8, -0.25]] * 9]}]
    (cils, wa, finetune) = found["published"]
    assert cils["last"] == {"ours": 54.0, "published": 50.79, "difference": 3.21}
    assert {"setting": "precision", "ours": "bf16", "published": "fp32"} in cils["differs_in"]
    assert {"setting": "order", "ours": "facil", "published": None} in wa["differs_in"]
    assert finetune["besides"] == ["loss on the new outputs only"]
    assert (found["dates"], found["machines"]) == (["2026-11-25"], ["Abacus 9, cpu, 2 threads, torch 2.15.0, bf16"])
    assert [t.heading for t in report.tables([made_up("finetune")], TEN)][-1] == "Accuracy after each increment"
