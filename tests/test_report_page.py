"""The page of an increment: figures of the evaluation, pictures of the exemplars, and nothing outside itself."""

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts_rollout import add, learn, pictures, prepared
from PIL import Image

from lifelist.deploy import enrol, examples, outcome, report_page, rollout, steps
from lifelist.deploy.cli import main
from lifelist.deploy.settings import GateCheck
from lifelist.deploy.workshop import Workshop
from lifelist.exporter.errors import Failed, Missing
from lifelist.exporter.manifest import Manifest
from lifelist.training.loss import TERMS

OLD, NEW = ("red", "green", "blue", "yellow", "orange"), ("pink", "cyan")


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Increment 3 learned two classes by plain fine-tuning, and so forgot the five before: each as far as it did."""
    workshop = prepared(tmp_path_factory.mktemp("forgetful"))
    assert learn(workshop, *OLD[2:]).version == 2
    assert learn(workshop, *NEW, method="finetune").version == 3
    return workshop


def published(workshop: Workshop, version: int, answer: str = "linear") -> dict[str, dict[str, int]]:
    """What a version's evaluation.json says: class name → answered name → images."""
    manifest = workshop.registry.manifest(version)
    names = {str(entry.id): entry.name for entry in manifest.classes}
    confusion = json.loads(workshop.registry.read(manifest, "evaluation.json"))[answer]["confusion"]
    return {names[row]: {names[k]: n for k, n in answered.items()} for row, answered in confusion.items()}


def share(confusion: dict[str, dict[str, int]], names: Sequence[str]) -> float:
    right = sum(confusion[name].get(name, 0) for name in names)
    return right / sum(sum(confusion[name].values()) for name in names)


def section(html: str, part: str) -> str:
    found = re.search(rf'<section id="{part}">(.*?)</section>', html, re.DOTALL)
    assert found, part
    return found.group(1)


def text(html: str) -> str:
    return " ".join(unescape(re.sub(r"<svg.*?</svg>|<[^>]*>", " ", html, flags=re.DOTALL)).split())


def rows(html: str) -> list[list[str]]:
    """The cells of all rows but the first, which is the head."""
    found = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [[text(cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for row in found[1:]]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def test_the_accuracies_of_every_class_are_those_of_the_confusions(forgetful: Workshop) -> None:
    before, after = published(forgetful, 2), published(forgetful, 3)
    shown = {row[0].removesuffix(" new"): row for row in rows(section(report_page.page(forgetful, 3), "classes"))}
    assert set(shown) == {*OLD, *NEW}
    for name, (_, images, was, now, change, _, taken) in shown.items():
        assert images == str(sum(after[name].values()))
        assert now.startswith(percent(share(after, [name])))
        others = {other: n for other, n in after[name].items() if other != name}
        assert taken == (", ".join(f"{other} {n}" for other, n in others.items()) or "–")
        if name in NEW:
            assert (was, change) == ("–", "–")
        else:
            assert was.startswith(percent(share(before, [name])))
            gained = 100 * (share(after, [name]) - share(before, [name]))
            assert change == (f"−{-gained:.1f}" if gained < 0 else f"+{gained:.1f}" if gained else "±0.0")


def test_the_classes_that_lost_most_come_first_and_new_ones_after_all_old_ones(forgetful: Workshop) -> None:
    before, after = published(forgetful, 2), published(forgetful, 3)
    change = {name: share(after, [name]) - share(before, [name]) for name in OLD}
    assert len(set(change.values())) > 1  # else any order would do
    found = outcome.outcome(forgetful, 3)
    names = [one.name for one in found.classes]
    assert [change[name] for name in names[: len(OLD)]] == sorted(change.values())
    assert set(names[len(OLD) :]) == set(NEW)
    html = report_page.page(forgetful, 3)
    assert f"{names[0]} most: from 100.0 % to 0.0 %, taken for {found.classes[0].taken_for[0][0]} 4." in text(html)


def test_an_interval_is_wilsons() -> None:
    low, high = outcome.Rate(0.8, 10).interval or (0, 0)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # Wilson 1927, as R's prop.test(8, 10, correct = FALSE)
    low, high = outcome.Rate(1.0, 4).interval or (0, 0)
    assert (round(low, 3), round(high, 9)) == (0.510, 1.0)  # never past the end, and never of no width
    assert outcome.Rate(1.0, None).interval is None


def test_bias_is_shown_before_and_after_correction_beside_the_true_share(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, memory_total=20)
    assert learn(workshop, "yellow", "orange", method="eeil").version == 2
    html = section(report_page.page(workshop, 2), "bias")
    assert "50.0 % of the 16 gate images show one" in text(html)
    shown = dict(zip(("linear_uncorrected", "linear", "nearest_mean"), rows(html), strict=True))
    assert [row[0] for row in shown.values()] == [
        "linear, before balanced finetuning",
        "linear, after balanced finetuning answers",
        "nearest mean",
    ]
    old, new = ("red", "green"), ("yellow", "orange")
    for answer, (_, taken, _, *groups) in shown.items():
        confusion = published(workshop, 2, answer)
        answered = [k for row in confusion.values() for k, n in row.items() for _ in range(n)]
        assert taken == percent(sum(k in new for k in answered) / len(answered)), answer
        wanted = [percent(share(confusion, group)) for group in ((*old, *new), old, new)]
        assert [cell.split(" %")[0] + " %" for cell in groups] == wanted


def test_the_exemplars_shown_are_the_versions_own_best_first_as_the_model_sees_them(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    assert learn(workshop, "blue").version == 2
    version = workshop.registry.manifest(2)
    memory = json.loads(workshop.registry.read(version, "exemplars.json"))["exemplars"]
    shown = section(report_page.page(workshop, 2), "exemplars")
    found = {text(head): images for head, images in re.findall(r"<h3>(.*?)</h3>(.*?)</div></div>", shown, re.DOTALL)}
    assert list(found) == ["blue new", "red", "green"]
    for entry in version.classes:
        images = found[f"{entry.name} new" if entry.id in version.newest else entry.name]
        ids = memory[str(entry.id)]
        assert 0 < len(ids[: outcome.SHOWN]) <= len(ids)
        assert re.findall(r'title="\d+: (\w+)"', images) == ids[: outcome.SHOWN]
        assert f"{len(ids)} exemplars" in text(images)
        sources = re.findall(r'src="data:image/webp;base64,([^"]*)"', images)
        seen = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in sources]
        np.testing.assert_array_equal(seen, examples.pixels(workshop, ids[: outcome.SHOWN], version.preprocess))


def test_an_exemplar_whose_bytes_were_deleted_leaves_a_place_that_says_so(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    version = workshop.registry.manifest(1)
    ids = json.loads(workshop.registry.read(version, "exemplars.json"))["exemplars"]["1"]
    examples.forget(workshop, ids[1:2])
    first, second = (one for memory in outcome.outcome(workshop, 1).memories[:1] for one in memory.shown[:2])
    assert (first.sha256, first.missing, second.sha256, second.webp) == (ids[0], "", ids[1], None)
    assert "deleted since" in text(section(report_page.page(workshop, 1), "exemplars"))


def test_a_rejected_increment_has_a_page_with_the_reason_and_the_gates_figures(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, gate=(GateCheck(check="parity_top1", limit=1.0, min_images=100),))
    ended = learn(workshop, "blue")
    assert (ended.state, ended.version) == ("rejected", 2)
    html = report_page.page(workshop, ended.id)
    assert f"Rejected: {ended.reason}" in text(html)
    assert ["parity top1", "refused", "1", "1", ended.facts["gate"][0]["message"]] in rows(section(html, "facts"))
    assert len(rows(section(html, "classes"))) == 3
    assert "<img" in section(html, "exemplars")


def test_an_increment_that_published_nothing_has_a_page_that_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> steps.Facts:
        raise Failed("the lights went out")

    workshop = prepared(tmp_path)
    monkeypatch.setitem(rollout.STEPS, "publish", replace(rollout.STEPS["publish"], run=fail))
    ended = learn(workshop, "blue")
    assert (ended.state, ended.version) == ("failed", None)
    html = report_page.page(workshop, ended.id)
    assert "Failed: in step 'publish': the lights went out" in text(html)
    without = f"Increment {ended.id} ended as failed, and has published no version; "
    assert f"{without}of its evaluation the shares are left" in text(section(html, "classes"))
    assert f"{without}which exemplars it chose is not known." in text(section(html, "exemplars"))
    shown = {row[0]: row[2:4] for row in rows(section(html, "classes"))}
    assert shown["red"][0].startswith("100.0 %")  # of the version before
    assert shown["blue new"] == ["–", percent(ended.facts["evaluation"]["linear"]["per_class"]["3"])]
    assert "<polyline" in section(html, "losses")


def test_while_it_goes_on_the_page_shows_what_its_folder_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = prepared(tmp_path)

    def stop(*_: Any) -> steps.Facts:
        raise KeyboardInterrupt

    add(workshop, ["blue"])
    started = rollout.start(workshop)
    html = text(report_page.page(workshop, 2))
    assert "bic · no version · not begun · queued" in html
    assert "is in state queued, and has published no version; it was not evaluated" in html
    monkeypatch.setitem(rollout.STEPS, "export", replace(rollout.STEPS["export"], run=stop))
    with pytest.raises(KeyboardInterrupt):
        rollout.carry_all(workshop)
    found = outcome.outcome(workshop, started.id)
    assert (found.rollout.state, found.version) == ("export", None)
    assert [(one.name, one.after and one.after.images) for one in found.classes] == [
        ("red", 4),
        ("green", 4),
        ("blue", 4),
    ]
    assert [memory.name for memory in found.memories] == ["blue", "red", "green"]
    assert not any(found.notes.values())
    assert "It has not been judged." in text(report_page.html(found))


def test_a_version_of_before_evaluation_json_gives_its_shares_and_the_page_says_so(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    first = workshop.registry.manifest(1)
    entries = [entry for entry in first.files if entry.name != "evaluation.json"]
    old = workshop.registry.publish(replace(first, parent=1), {}, reuse=entries)
    workshop.swap(old.version, 1)
    assert learn(workshop, "blue").facts["teacher"] == old.version
    html = section(report_page.page(workshop, 2), "classes")
    assert "Version 2 has no evaluation.json to read. Before has no image counts and no intervals." in text(html)
    red = next(row for row in rows(html) if row[0] == "red")
    assert red[2] == percent(first.results["linear"]["per_class"]["1"])
    assert "…" in red[3]


def test_an_enrolment_carries_no_evaluation_and_the_page_compares_with_the_version_of_its_model(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    add(workshop, ["blue"])
    enrolled = enrol.enrol(workshop)
    assert isinstance(enrolled, Manifest)
    assert "evaluation.json" not in [entry.name for entry in enrolled.files]
    ended = learn(workshop, "blue")
    assert ended.facts["teacher"] == enrolled.version
    found = outcome.outcome(workshop, ended.id)
    assert found.before == workshop.registry.manifest(1)
    assert not any(found.notes.values())
    assert "Before: version 1, linear answer (version 2 has its model" in text(report_page.html(found))


def test_loss_is_a_line_for_each_term_that_counts_in_each_phase(tmp_path: Path) -> None:
    assert set(report_page.OF_TERM) == set(TERMS)
    workshop = prepared(tmp_path)
    assert learn(workshop, "blue", method="eeil").state == "done"
    found = outcome.outcome(workshop, 2)
    told = [event.data for event in workshop.store.events(2) if event.kind == "epoch"]
    assert {phase: [dict(loss) for _, loss in epochs] for phase, epochs in found.losses.items()} == {
        phase: [data["loss"] for data in told if data["phase"] == phase] for phase in ("main", "balanced")
    }
    html = section(report_page.html(found), "losses")
    terms = sum(any(loss[t] for _, loss in epochs) for epochs in found.losses.values() for t in TERMS)
    assert html.count("<polyline") == terms > 2


def test_the_page_refers_to_nothing_outside_itself_and_names_cannot_break_it(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    name = '<script src="x.js">&'
    examples.add(workshop, name, pictures("blue"))
    rollout.start(workshop, [name])
    assert rollout.carry_all(workshop)[-1].state == "done"
    html = report_page.page(workshop, 2)
    assert "&lt;script src=" in html
    real = re.findall(r"<[^>]*>", html)
    assert [tag for tag in real if re.match(r"</?(script|link|iframe|object|embed|a|base)\b", tag)] == []
    assert [
        tag for tag in real if re.search(r"\b(src|href|srcset|data|action)=", tag) and 'src="data:' not in tag
    ] == []
    assert not re.search(r"https?://|@import|url\(", html)


def test_the_command_writes_the_page_and_prints_its_path_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop = prepared(tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    home = ["--home", str(tmp_path / "home")]
    assert main(["increment", "show", "1", "--report", *home]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'increment-1.html'}\n"
    assert (tmp_path / "increment-1.html").read_text(encoding="utf-8") == report_page.page(workshop, 1)
    assert main(["increment", "show", "1", "--report", "other.html", "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "other.html")}
    assert main(["increment", "show", "9", "--report", *home]) == 2
    assert "no increment has id 9" in capsys.readouterr().err
    with pytest.raises(Missing):
        report_page.page(workshop, 9)
