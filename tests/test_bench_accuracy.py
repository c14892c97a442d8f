"""`lifelist bench accuracy`: the tiny protocol with its regression bands, what it writes, and that it goes on.

The bands are acceptance test 7: twenty classes, few epochs, on digits and turned digits, with a memory of 20 a class.
"""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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
from lifelist.training.methods import METHODS


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
    corrected, uncorrected, _ = rows([runs["bic"]])
    assert corrected.answers_new == (pytest.approx(100 * new),)
    assert corrected.images_new == pytest.approx(20, abs=0.5)
    stripe = uncorrected.answers_new[0] - corrected.images_new  # of new classes, in the picture of confusions
    assert stripe > 2
    assert abs(corrected.answers_new[0] - corrected.images_new) < stripe / 2


def test_a_page_two_pictures_and_the_figures_are_left(folder: Path, runs: dict[str, Run]) -> None:
    page = (folder / "README.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| bic | linear * |"))
    assert f"| {100 * last(runs['bic']):.1f} |" in line
    machine = runs["bic"]["processor"]
    assert machine in page.splitlines()[-1]
    made_by = "--protocol tiny --method bic,finetune --seeds 0 --order source --schedule short"
    assert f"    lifelist bench accuracy {made_by}" in page.splitlines()
    for picture in re.findall(r"\]\((.+\.png)\)", page):
        with Image.open(folder / picture) as image:
            assert image.width > 600
    found = json.loads((folder / "results.json").read_text())
    assert found["bias"] == [{"method": "bic", "seed": 0, "alpha_beta": runs["bic"]["bias"]}]
    assert machine in found["machines"][0]
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
    (folder / "runs" / "bic-0" / "increment-0").mkdir(parents=True)  # as if killed just before it was removed
    line = f"bench accuracy --protocol tiny --method bic --folder {folder} --json"
    assert main(line.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in found["rows"]] == ["bic"] * 3 + ["finetune"] * 2
    assert (folder / "runs" / "bic-0.json").stat().st_mtime_ns == before
    assert not (folder / "runs" / "bic-0").exists()


def test_a_run_of_other_options_is_not_taken_for_this_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench accuracy --protocol tiny --method bic --memory 30-per-class --folder {folder}"
    assert main(line.split()) == 2
    assert "bic-0.json is a run with other options" in capsys.readouterr().err


def test_a_run_by_another_schedule_is_not_taken_for_this_one(
    folder: Path, runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    file = tmp_path / "runs" / "bic-0.json"
    older = {key: value for key, value in runs["bic"].items() if key != "schedules"}
    now = runs["bic"]["schedules"]
    longer = {**runs["bic"], "schedules": {**now, "base": {**now["base"], "epochs": 300}}}
    base = {key: value for key, value in now["base"].items() if key != "views"}  # as if that field had come since
    before = {**runs["bic"], "schedules": {**now, "base": base}}
    for made, code in ((older, 2), (longer, 2), (before, 0), (runs["bic"], 0)):
        file.write_text(json.dumps(made))
        assert main(f"bench accuracy --protocol tiny --method bic --folder {tmp_path}".split()) == code
        assert ("bic-0.json was trained by another schedule than bic has" in capsys.readouterr().err) == (code == 2)


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


def test_a_run_that_was_stopped_does_not_go_on_by_another_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(run: str, event: dict[str, Any]) -> None:
        raise Stop

    with pytest.raises(Stop):
        run_all(QUICK, tmp_path, jobs=1, on_event=stop)
    row = METHODS["wa"]
    short = row.schedules["short"]
    longer = replace(short, increment=replace(short.increment, epochs=99))
    monkeypatch.setitem(METHODS, "wa", replace(row, schedules={**row.schedules, "short": longer}))
    with pytest.raises(BadInput, match=r"holds another experiment \(schedules differ\)"):
        run_all(QUICK, tmp_path, jobs=1, on_event=stop)


def test_methods_and_seeds_that_are_named_twice_are_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(accuracy, "_one", lambda asked, folder, method, seed, *rest: made.append((method, seed)))
    asked = replace(QUICK, methods=("wa", "ncm", "wa"), seeds=(1, 1))
    run_all(asked, tmp_path, jobs=1, on_event=lambda run, event: None)
    assert made == [("wa", 1), ("ncm", 1)]


def test_a_file_that_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "auto-0.json").write_text("{}")
    with pytest.raises(BadInput, match=r"auto-0.json is not a run of this command; remove it"):
        accuracy.ended(QUICK, tmp_path)


def test_two_processes_do_not_make_the_same_run_at_once(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    with accuracy._alone(tmp_path / "wa-0", told.append):
        other = threading.Thread(target=accuracy._one, args=(QUICK, tmp_path, "wa", 0, None, told.append))
        other.start()
        until(lambda: bool(told), 10)
        assert [event["what"] for event in told] == ["run.held"]
        (tmp_path / "wa-0.json").write_text("{}")
    other.join(timeout=10)
    assert not other.is_alive()
    assert (tmp_path / "wa-0.json").read_text() == "{}"  # it was not made again
    assert not (tmp_path / "wa-0").exists()


SHORTER = """
import sys
from dataclasses import replace
from lifelist.benchmarks import protocols
from lifelist.deploy.cli import main
protocols.PROTOCOLS["tiny"] = replace(protocols.PROTOCOLS["tiny"], base=12, step=8, epochs=3)
sys.exit(main(sys.argv[1:]))
"""  # the command, with two increments of three epochs instead of four of eight


def test_killed_with_several_jobs_nobody_goes_on_and_the_same_command_does(tmp_path: Path) -> None:
    line = f"bench accuracy --protocol tiny --method finetune,ncm --jobs 2 --seeds 0 --folder {tmp_path}"
    command = [sys.executable, "-c", SHORTER]
    with subprocess.Popen([*command, *line.split()], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as first:
        try:
            until(lambda: (tmp_path / "runs" / "finetune-0" / "increment-1").exists(), 240)
            workers = descendants(first.pid)
            assert len(workers) >= 3  # two that train, and one for what they tell
        finally:
            first.kill()
    until(lambda: not any(map(is_alive, workers)), 30)
    assert not (tmp_path / "runs" / "finetune-0.json").exists()
    second = subprocess.run(
        [*command, *line.split(), "--json"], capture_output=True, text=True, timeout=240, check=True
    )
    assert {row["method"] for row in json.loads(second.stdout)["rows"]} == {"finetune", "ncm"}
    assert sorted(file.name for file in (tmp_path / "runs").iterdir()) == ["finetune-0.json", "ncm-0.json"]


def until(claim: Callable[[], bool], seconds: float) -> None:
    """Waits for what should become true."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Of a process, all that it started, and those that they did."""
    listed = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    return [*listed, *(more for p in listed for more in descendants(p))]


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie, which waits for its parent to look, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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
        ("--method auto", "method 'auto' picks a row of the table for each increment"),
        ("--seeds one", "--seeds takes a number"),
        ("--memory 0", "bic replays exemplars, and a memory of 0 holds none"),
        ("--memory 0-per-class --method finetune,wa", "wa replays exemplars, and a memory of 0 holds none"),
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
