"""`lifelist bench training`: what it writes, and that the reference is a fair one: right, and learning the same."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts_training import TINY  # noqa: F401  (one thread, as all tests of training)
from PIL import Image
from torch import optim
from torch.nn import functional
from torch.utils.data import DataLoader

from lifelist.benchmarks import phases, reference
from lifelist.benchmarks.training_report import LABELS
from lifelist.benchmarks.training_speed import Asked, Setting, given, prepare
from lifelist.deploy.cli import main
from lifelist.exporter.errors import BadInput
from lifelist.training import evaluate, loop
from lifelist.training.exemplars import herd
from lifelist.training.rebalance import fit_bias

ASKED = Asked(epochs=4, repeats=1, image_size=8, workers=0)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(what the command left, what it printed)."""
    folder = tmp_path_factory.mktemp("bench")
    line = f"bench training --epochs 4 --repeats 1 --image-size 8 --workers 0 --folder {folder}"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("click.echo", lambda text, err=False: None if err else printed.append(text))
        assert main(line.split()) == 0
    return folder, "\n".join(printed)


@pytest.fixture(scope="module")
def facts(ran: tuple[Path, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ran[0] / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def setting() -> Setting:
    return prepare(ASKED)


def test_the_last_line_is_json_with_the_figures_that_are_promised(ran: tuple[Path, str], facts: dict[str, Any]) -> None:
    line = json.loads(ran[1].splitlines()[-1])
    promised = ("ratio", "exemplar_selection_seconds", "bias_correction_seconds", "share_of_floor", "images_per_second")
    assert all(line[name] > 0 for name in promised)
    assert line == facts["line"]
    assert line["ratio"] == pytest.approx(facts["seconds"]["reference"] / facts["seconds"]["ours"], rel=0.02)
    assert line["ratio_without_evaluation"] < line["ratio"]


def test_the_page_names_every_phase_its_machine_and_its_picture(ran: tuple[Path, str], facts: dict[str, Any]) -> None:
    page = (ran[0] / "README.md").read_text()
    for name in (*phases.NAMES, "export"):
        assert f"| {name} | " in page
    for label in LABELS.values():
        assert f"| {label} | " in page
    assert facts["machine"]["processor"] in page
    assert f"torch {torch.__version__}" in page
    (picture,) = re.findall(r"\((\S+\.png)\)", page)
    assert Image.open(ran[0] / picture).size > (600, 200)


def test_the_phases_of_an_increment_add_up_to_its_time(facts: dict[str, Any]) -> None:
    for name in ("ours", "small"):
        of = facts["phases"][name]
        assert sum(of.values()) - of["export"] == pytest.approx(facts["seconds"][name], rel=0.02)
        assert of["other"] < 0.3 * facts["seconds"][name]
        assert min(of["student forward"], of["backward"], of["teacher"], of["selection"]) > 0


def test_ours_and_the_reference_learn_the_same_from_the_same(facts: dict[str, Any]) -> None:
    line = facts["line"]
    assert line["reference_accuracy"] == pytest.approx(line["accuracy"], abs=0.08)
    (linear, nearest), (ours_linear, ours_nearest) = facts["accuracies"]["reference"][0], facts["accuracies"]["ours"][0]
    assert linear > 0.5  # it has learnt something
    assert nearest == pytest.approx(ours_nearest, abs=0.08)
    assert line["accuracy"] == pytest.approx(ours_linear, abs=1e-4)


def test_the_reference_corrects_the_bias_to_the_optimum_that_ours_finds(setting: Setting) -> None:
    start = given(setting, workers=0)
    transform, plain = reference.transforms_of(start)
    train = DataLoader(reference.ImageArray(*start.train, transform), reference.BATCH, shuffle=True)
    reference.stage1_epoch(start.student, start.teacher, train, optim.SGD(start.student.parameters(), 0.05, 0.9))
    before = {name: value.clone() for name, value in start.student.state_dict().items()}
    held = DataLoader(reference.ImageArray(*start.holdout, plain), len(start.holdout[1]))
    bias = reference.BiasLayer(start.teacher.classes)
    optimiser = optim.SGD(bias.parameters(), reference.RATE, 0.9)
    losses = [reference.stage2_epoch(start.student, bias, held, optimiser) for _ in range(150)]
    pixels = torch.from_numpy(start.holdout[0])
    logits = evaluate.head_logits(start.student, evaluate.features(start.student, pixels, setting.run()))
    alpha, beta = fit_bias(logits, start.holdout[1], start.teacher.classes)
    assert losses[-1] < losses[0] == pytest.approx(float(functional.cross_entropy(logits, start.holdout[1])), rel=1e-4)
    assert (bias.alpha.item(), bias.beta.item()) == pytest.approx((alpha, beta), abs=0.01)
    assert all(torch.equal(value, before[name]) for name, value in start.student.state_dict().items())


def test_the_reference_trains_on_the_images_that_ours_does_and_on_no_other(setting: Setting) -> None:
    start = given(setting, workers=0)
    trained = {image.tobytes() for image in start.train[0]}
    assert not trained & {image.tobytes() for image in start.holdout[0]}
    assert not trained & {image.tobytes() for image in start.test[0]}
    assert sorted(set(start.holdout[1].tolist())) == list(range(20))
    assert len(set(torch.bincount(start.holdout[1]).tolist())) == 1


def test_the_reference_herds_the_images_that_ours_does() -> None:
    features = functional.normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    numbers = np.arange(60, dtype=np.uint8)
    chosen, _ = reference.herd(numbers, features.numpy(), 25)
    assert chosen.tolist() == herd(features, 25).tolist()


def test_data_with_fewer_than_twenty_classes_are_refused() -> None:
    with pytest.raises(BadInput, match="digits has 10 classes; this takes 20"):
        prepare(replace(ASKED, data="digits"))


def test_a_phase_inside_another_counts_for_the_outer_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(phases.time, "perf_counter", lambda: float(next(clock)))
    profile = phases.Profile()
    inner = profile.timed("evaluation", lambda: None, is_pass=False)
    profile.timed("selection", inner, is_pass=False)()
    inner()
    found = profile.seconds(5.0)
    assert (found["selection"], found["evaluation"], found["other"]) == (1.0, 1.0, 3.0)


def test_a_pass_through_a_network_inside_a_phase_is_told_apart_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(phases.time, "perf_counter", lambda: float(next(clock)))
    profile = phases.Profile()
    inner = profile.timed("evaluation", lambda: None, is_pass=True)
    profile.timed("selection", inner, is_pass=False)()  # begins at 0; the pass is from 1 to 2; ends at 3
    profile.timed("teacher", inner, is_pass=True)()  # a pass that makes another is one
    found, passes = profile.seconds(5.0), profile.passes()
    assert (found["selection"], found["teacher"], found["evaluation"]) == (3.0, 1.0, 0.0)
    assert (passes["selection"], passes["teacher"], passes["other"]) == (1.0, 1.0, 0.0)


def test_of_threads_side_by_side_a_phase_takes_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    local = threading.local()

    def clock() -> float:
        local.now = getattr(local, "now", 0.0) + local.step
        return float(local.now)

    monkeypatch.setattr(phases.time, "perf_counter", clock)
    profile = phases.Profile()
    call = profile.timed("backward", lambda: None, is_pass=True)

    both = threading.Barrier(2)

    def work(step: float) -> None:
        local.step = step
        both.wait()
        call()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (2.0, 4.0)))
    assert profile.seconds(10.0)["backward"] == 3.0


def test_what_is_timed_is_as_before_afterwards() -> None:
    before = [getattr(owner, name) for _, owner, name, _ in phases.PHASES]
    with phases.profiled():
        assert loop.increment_loss is not before[4]
    assert [getattr(owner, name) for _, owner, name, _ in phases.PHASES] == before
