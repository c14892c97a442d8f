"""`lifelist bench monitoring`: what it makes happen, how it judges what is raised, and what it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelist.benchmarks import corruptions, monitoring
from lifelist.benchmarks.monitoring import Found, Raised, Traffic
from lifelist.deploy.cli import main
from lifelist.deploy.store import Store
from lifelist.exporter.errors import BadInput

SHARES = {0: 0.5, 1: 0.3, 2: 0.2}


def some_images() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(40, 200, (20, 4, 4, 3)).astype(np.uint8)
    return pixels.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_a_severer_corruption_changes_images_more(name: str) -> None:
    shown = some_images()
    changed = [
        np.abs(corruptions.CORRUPTIONS[name](shown, severity, np.random.default_rng(1)).astype(float) - shown).mean()
        for severity in corruptions.SEVERITIES
    ]
    assert changed[0] > 1
    assert changed == sorted(changed)


def test_a_decoders_bug_is_one_that_matters_for_such_images() -> None:
    shown = some_images()
    grey = shown[..., :1].repeat(3, axis=-1)
    for images, first in ((shown, "BGR for RGB"), (grey, "rows for columns")):
        found = corruptions.decoders(images)
        assert list(found) == [first, "another resize"]
        for bug in found.values():
            assert bug(images).shape == images.shape
        assert (found[first](images) != images).mean() > 0.3
        np.testing.assert_array_equal(found[first](found[first](images)), images)


def test_traffic_has_the_shares_that_are_asked_and_repeats_no_image_before_all_were_there() -> None:
    labels = np.arange(30) % 3
    traffic = Traffic(labels, np.random.default_rng(0))
    drawn = np.array(traffic.draw(SHARES, 6000))
    for class_id, share in SHARES.items():
        of_class = drawn[labels[drawn] == class_id]
        assert len(of_class) / 6000 == pytest.approx(share, abs=0.02)
        assert all(len(set(of_class[k : k + 10])) == 10 for k in range(0, 100, 10))


def found(kind: str, wanted: list[str], cost: float, *raised: Raised, **changes: Any) -> Found:
    return Found(name=kind, kind=kind, severity=0, wanted=wanted, accuracy=0.5, cost=cost, raised=[*raised], **changes)


def raised(name: str, after: int = 225, rounds: int = 0) -> Raised:
    return Raised(name=name, after=after, rounds=rounds)


DRIFT, OLD = ["drift.embedding.", "drift.sharpness."], ["accuracy.old"]


@pytest.mark.parametrize(
    ("one", "missed"),
    [
        (found("noise", DRIFT, 0.2, raised("drift.embedding.short")), False),
        (found("noise", DRIFT, 0.2, raised("drift.classes.short")), True),
        (found("noise", DRIFT, 0.2, raised("drift.embedding.short", after=600, rounds=3)), True),
        (found("noise", DRIFT, 0.05), False),  # it need not be found
        (found("noise", DRIFT, 0.05, raised("drift.sharpness.long", after=1500, rounds=3)), False),
        (found("noise", DRIFT, 0.2, raised("drift.embedding.short"), before=["drift.margin.short"]), True),
        (found("noise", DRIFT, 0.2, raised("drift.embedding.short", after=600, rounds=0)), True),
        (found("decoder: another resize", ["accuracy.probe"], 0.2, raised("accuracy.probe", 900, 2)), False),
        (found("an unseen class arrives", DRIFT, 0.2, raised("drift.embedding.short", after=600)), False),
        (found("an unseen class arrives", DRIFT, 0.05), True),
        (found("classes are enrolled", [], 0.0, old_loss=0.0), False),
        (found("classes are enrolled", [], 0.0, raised("drift.classes.short"), old_loss=0.0), True),
        (found("classes are enrolled", [], 0.0, raised("accuracy.old"), old_loss=0.0), True),
        (found("classes are enrolled", [], 0.0, raised("accuracy.old"), old_loss=0.03), False),
        (found("an increment without replay", OLD, 0.5, raised("accuracy.old", rounds=2), old_loss=0.5), False),
        (found("an increment without replay", OLD, 0.5, raised("accuracy.old", rounds=3), old_loss=0.5), True),
        (found("an increment without replay", OLD, 0.5, raised("accuracy.probe", rounds=1), old_loss=0.5), True),
    ],
)
def test_each_scenario_has_a_bar(one: Found, missed: bool) -> None:
    assert one.missed is missed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bench")
    line = "bench monitoring --epochs 4 --image-size 8 --windows 10 --cases contrast --no-oracle --no-load"
    line += f" --folder {folder}"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("click.echo", lambda text, err=False: None if err else printed.append(text))
        patch.setattr("sys.argv", ["lifelist", *line.split()])
        assert main(line.split()) == 0
    said: dict[str, Any] = json.loads(printed[-1])
    return folder, said


def test_the_command_leaves_a_page_a_picture_and_a_line_of_json(made: tuple[Path, dict[str, Any]]) -> None:
    folder, said = made
    facts = json.loads((folder / "results.json").read_text())
    assert facts["line"] == said
    names = ("quiet_windows", "false_alarms", "scenarios", "missed", "estimated_accuracy_error")
    assert list(said) == [*names, "throughput_ratio", "p99_ratio"]
    assert (said["quiet_windows"], said["scenarios"], said["p99_ratio"]) == (10, 5, None)
    assert (folder / "monitoring.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "README.md").read_text()
    assert str(folder) not in page
    assert "--folder FOLDER" in page
    for one in facts["scenarios"]:
        assert f"| {one['name']}" in page


def test_contrast_that_fades_is_found_and_its_estimate_doubted(made: tuple[Path, dict[str, Any]]) -> None:
    folder, said = made
    facts = json.loads((folder / "results.json").read_text())
    assert (said["false_alarms"], said["missed"]) == (0, 0)
    worst = facts["scenarios"][-1]
    assert worst["right"]["name"].startswith("drift.")
    assert worst["right"]["after"] <= monitoring.WITHIN
    assert worst["doubts"]
    assert worst["cost"] > 0.2
    assert [one["doubts"] for one in facts["quiet"]["stretches"]] == [[]]
    assert abs(facts["quiet"]["stretches"][0]["error"]) < 0.04


def test_a_scenario_that_does_not_exist_is_refused_with_those_that_do(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    asked = monitoring.Asked(epochs=4, image_size=8, windows=1, cases="fog")

    def opened(path: Path) -> Store:
        return Store(f"sqlite:///{path}")

    with pytest.raises(BadInput, match=r"'fog' in its name; there are noise; blur; .*an unseen class arrives"):
        monitoring.measure(asked, folder, opened, lambda text: None, lambda event: None)
