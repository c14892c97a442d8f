"""`lifelist bench accuracy`: the tiny protocol with its regression bands, what it writes, and that it goes on.

The bands are acceptance test 7: twenty classes, few epochs, on digits and turned digits, with a memory of 20 a class.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from PIL import Image

from lifelist.benchmarks import accuracy, protocols, published
from lifelist.benchmarks.accuracy import Asked, Run, rows, run_all
from lifelist.deploy.cli import main
from lifelist.exporter.errors import BadInput, BadSetting


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command left: two methods side by side, each in a process of its own."""
    made = tmp_path_factory.mktemp("bench")
    line = f"bench accuracy --protocol tiny --method bic,finetune --jobs 2 --folder {made}"
    assert main(line.split()) == 0
    return made


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Run]:
    """By method."""
    return {m: json.loads((folder / "runs" / f"{m}-0.json").read_text()) for m in ("bic", "finetune")}


def last(run: Run, head: str = "linear") -> float:
    found: float = run["heads"][head]["accuracies"][-1]
    return found


def test_bic_forgets_little_where_finetuning_forgets_nearly_all(runs: dict[str, Run]) -> None:
    assert 0.90 < last(runs["bic"]) < 0.97
    assert runs["bic"]["heads"]["linear"]["old"] > 0.90
    assert last(runs["finetune"]) < 0.25
    assert runs["finetune"]["heads"]["linear"]["old"] < 0.05
    assert runs["finetune"]["heads"]["linear"]["new"] > 0.5


def test_accuracy_after_correction_is_above_that_before(runs: dict[str, Run]) -> None:
    assert last(runs["bic"]) > last(runs["bic"], "linear_uncorrected") + 0.02
    alpha, beta = runs["bic"]["bias"][-1]
    assert 0.7 < alpha < 1.0
    assert -0.4 < beta < 0.0


def test_old_and_new_classes_are_predicted_as_often_as_they_are_there(runs: dict[str, Run]) -> None:
    confusion = runs["bic"]["heads"]["linear"]["confusion"]
    said = [(int(answer), count) for row in confusion.values() for answer, count in row.items()]
    new = sum(count for answer, count in said if answer >= 16) / sum(count for _, count in said)
    assert new == pytest.approx(0.2, rel=0.1)  # uniform: 4 of 20 classes


def test_a_page_two_pictures_and_the_figures_are_left(folder: Path, runs: dict[str, Run]) -> None:
    page = (folder / "README.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| bic | linear * |"))
    assert f"| {100 * last(runs['bic']):.1f} |" in line
    assert "lifelist" in page.splitlines()[-1]  # the command, with date and machine
    for picture in re.findall(r"\]\((.+\.png)\)", page):
        with Image.open(folder / picture) as image:
            assert image.width > 600
    found = json.loads((folder / "results.json").read_text())
    assert [(row["method"], row["head"]) for row in found["rows"]] == [
        ("bic", "linear"),
        ("bic", "linear_uncorrected"),
        ("bic", "nearest_mean"),
        ("finetune", "linear"),
        ("finetune", "nearest_mean"),
    ]
    assert not any(place.is_dir() for place in (folder / "runs").iterdir())  # images and epochs are cleared away


def test_a_run_that_has_ended_is_not_run_again_and_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "runs" / "bic-0.json").stat().st_mtime_ns
    line = f"bench accuracy --protocol tiny --method bic --folder {folder} --json"
    assert main(line.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in found["rows"]] == ["bic"] * 3 + ["finetune"] * 2
    assert (folder / "runs" / "bic-0.json").stat().st_mtime_ns == before


def test_a_run_of_other_options_is_not_taken_for_this_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench accuracy --protocol tiny --method bic --memory 30-per-class --folder {folder}"
    assert main(line.split()) == 2
    assert "bic-0.json is a run with other options" in capsys.readouterr().err


QUICK = Asked(
    protocol=replace(protocols.PROTOCOLS["tiny"], data="digits", classes=10, base=6, step=2, epochs=2),
    data="digits",
    methods=("wa",),
    seeds=(0,),
    order="facil",
    schedule="short",
)


def test_a_run_that_was_stopped_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(run: str, event: dict[str, Any]) -> None:
        if (event["increment"], event.get("epoch")) == (1, 1):
            raise Stop

    (whole,) = run_all(QUICK, tmp_path / "whole", jobs=1, on_event=lambda run, event: None)
    with pytest.raises(Stop):
        run_all(QUICK, tmp_path / "stopped", jobs=1, on_event=stop)
    told: list[dict[str, Any]] = []
    (resumed,) = run_all(QUICK, tmp_path / "stopped", jobs=1, on_event=lambda run, event: told.append(event))
    assert {event["increment"] for event in told} == {1, 2}
    assert resumed["heads"] == whole["heads"]


def test_mean_and_spread_are_over_seeds() -> None:
    def run(seed: int, *accuracies: float) -> Run:
        head = {"accuracies": accuracies, "forgetting": 0.1, "old": 0.5, "new": 0.5}
        heads = dict.fromkeys(accuracy.HEADS, head)
        return {"method": "icarl", "seed": seed, "answers_by": "nearest_mean", "heads": heads, "seconds": [3.0, 4.0]}

    found = rows([run(0, 0.9, 0.5, 0.4), run(1, 0.8, 0.6, 0.5)])
    assert [(row.head, row.answers) for row in found] == [("linear", False), ("nearest_mean", True)]  # no correction
    assert found[1].curve == pytest.approx((85, 55, 45))
    assert found[1].average == pytest.approx((60, 63.333333))
    assert found[1].average_without_base == pytest.approx((45, 55))
    assert accuracy.shown(found[1].last) == "45.0 ± 7.1"
    assert found[1].seconds == 7


# ----------------------------------------------------------------------------------------- protocols and figures


def test_both_orders_that_are_called_seed_1993_are_as_published() -> None:
    assert protocols.facil(100)[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert protocols.icarl(100)[:10] == [87, 0, 52, 58, 44, 91, 68, 97, 51, 15]
    assert sorted(protocols.order("seed:7")(100)) == list(range(100)) != protocols.order("seed:7")(100)
    with pytest.raises(BadSetting, match="class order 'pycil' does not exist; there are facil, icarl"):
        protocols.order("pycil")


def test_cifar_protocols_are_equal_steps_or_half_and_steps() -> None:
    found = {p.name: (p.increments, p.base, p.step, p.memory) for p in protocols.PROTOCOLS.values()}
    assert found["cifar100-10x10"] == (10, 10, 10, "2,000 in all")
    assert found["cifar100-50x2"] == (50, 2, 2, "2,000 in all")
    assert found["cifar100-b50-5"] == (11, 50, 5, "20 per class")


@pytest.mark.parametrize("figure", published.FIGURES, ids=lambda f: f"{f.protocol} {f.method} {f.source}")
def test_published_figures_are_of_protocols_and_sources_that_there_are(figure: published.Figure) -> None:
    """A curve and the average printed beside it are two printings of the same: a slip of the pen would show."""
    assert figure.source in published.SOURCES
    protocol = protocols.PROTOCOLS[figure.protocol]
    if figure.curve:
        assert len(figure.curve) == protocol.increments
        assert figure.average == pytest.approx(mean(figure.curve), abs=0.16)  # iCaRL's in CILS is 64.42, not 64.57


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--protocol cifar10", "protocol 'cifar10' does not exist; there are cifar100-50x2"),
        ("--protocol cifar100-10x10", "needs --data PATH: cifar100 as Parquet"),
        ("--protocol cifar100-10x10 --data digits", "cifar100 with 100 classes; the data have 10"),
        ("--method icrl", "mean 'icarl'"),
        ("--seeds one", "--seeds takes a number"),
        ("--memory lots", "--memory takes a number of images"),
        ("--order best", "class order 'best' does not exist"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_runs(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*f"bench accuracy --folder {tmp_path}".split(), *flags.split()]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_data_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    asked = replace(QUICK, protocol=replace(QUICK.protocol, classes=12))
    with pytest.raises(BadInput, match="12 classes; the data have 10"):
        run_all(asked, tmp_path, jobs=1, on_event=lambda run, event: None)
