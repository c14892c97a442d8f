"""`lifelist bench newclasses`: what it measures, on digits of 8×8 pixels, and what it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelist.benchmarks import newclasses
from lifelist.benchmarks.newclasses import Said, auroc
from lifelist.deploy.cli import main
from lifelist.exporter.fold import unit
from lifelist.exporter.provisional import HeldOut


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(0)
    known, unknown = random.integers(0, 20, 300).astype(np.float32), random.integers(0, 15, 200).astype(np.float32)
    pairs = (known[:, None] > unknown).mean() + (known[:, None] == unknown).mean() / 2
    assert auroc(known, unknown) == pytest.approx(pairs)


def test_what_an_enrolled_class_gains_is_counted_by_both_answers() -> None:
    random = np.random.default_rng(0)
    means = np.eye(4, dtype=np.float32)
    labels = np.repeat(np.arange(4), 50)
    embedding = unit(means[labels] + random.normal(0, 0.1, (200, 4)))
    logits = 10 * embedding[:, :3]  # class 3 is not known
    held = HeldOut(embedding[:150], logits[:150], np.arange(3), labels[:150], np.zeros((150, 3), np.float32))
    found = newclasses._enrolled(Said(labels, logits, embedding), np.arange(3), means[:3], held, [3], means[3:])
    assert found["recall_nearest_mean"] == found["old_nearest_mean"] == 1
    assert found["recall_linear"] > 0.9
    assert found["old_linear"] >= 0.98
    assert found["unknown_before_nearest_mean"] == 1
    assert found["unknown_after_nearest_mean"] < 0.3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bench")
    line = f"bench newclasses --epochs 6 --images 5,20 --image-size 8 --folder {folder}"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("click.echo", lambda text, err=False: None if err else printed.append(text))
        patch.setattr("sys.argv", ["lifelist", *line.split()])
        assert main(line.split()) == 0
    found: dict[str, Any] = json.loads(printed[-1])
    return folder, found


def test_the_command_leaves_a_page_a_picture_and_a_line_of_json(made: tuple[Path, dict[str, Any]]) -> None:
    folder, found = made
    facts = json.loads((folder / "results.json").read_text())
    assert facts["line"] == found
    assert (facts["classes"]["known"], len(facts["classes"]["left_out"])) == (16, 4)
    assert (folder / "newclasses.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "README.md").read_text()
    assert str(folder) not in page
    assert "--folder FOLDER" in page
    for name in facts["unknown"]["auroc"]:
        assert f"| {name} |" in page


def test_left_out_digits_are_told_and_named_better_than_by_chance(made: tuple[Path, dict[str, Any]]) -> None:
    folder, found = made
    assert found["auroc_nearest_mean"] > 0.6
    assert found["recall_20_nearest_mean"] > 0.4
    facts = json.loads((folder / "results.json").read_text())
    for kind in newclasses.KINDS:
        assert facts["unknown"][kind]["false_alarms"] == pytest.approx(0.05, abs=0.04)
        for row in facts["enrolled"].values():
            assert min(row[f"old_{kind}"]) > facts["accuracy"][kind] - 0.1
    again = json.loads((folder / "base" / "result" / "result.json").read_text())
    assert again["method"] == "wa"
