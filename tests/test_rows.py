"""Classes that are retired or merged: what a version answers from the moment that it says so, in both ways."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import BIRDS, DIM, tiny_images, tiny_version

from lifelist.exporter import answering, index, session
from lifelist.exporter.errors import BadManifest
from lifelist.exporter.fold import unit
from lifelist.exporter.manifest import ClassEntry, Manifest
from lifelist.exporter.ranking import Ranking
from lifelist.exporter.registry import Registry
from lifelist.exporter.session import Loaded

LOGITS = np.array([[1, 2, 4, 0], [1000, 0, -1000, 3], [5, 5, 5, 5]], np.float32)
TOGETHER = np.exp([1.0, 2.0, 4.0, 0.0])  # of the first row


@pytest.fixture(params=["exact", "graph"])
def whole(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Registry, Manifest]:
    """Version 1: classes 0 to 3 have a row and a mean, 4 and 5 a mean; of both kinds of index."""
    if request.param == "graph":
        monkeypatch.setattr(index, "MOST_EXACT", 1)
    registry = Registry(str(tmp_path / "registry"))
    return registry, tiny_version(registry, BIRDS[:4], enrolled=BIRDS[4:6])


def saying(whole: tuple[Registry, Manifest], **said: dict[str, Any]) -> Loaded:
    """A version like the whole one that says something else of the classes named."""
    registry, manifest = whole
    classes = tuple(replace(entry, **said.get(entry.name, {})) for entry in manifest.classes)
    changed = registry.publish(replace(manifest, kind="change", classes=classes), {}, reuse=manifest.files)
    return session.load(registry, changed.version, provider="cpu")


def total(rankings: list[Ranking]) -> list[float]:
    return [sum(score for _, score in ranking) for ranking in rankings]


def test_a_retired_class_is_never_answered_and_the_others_share_its_probability(
    whole: tuple[Registry, Manifest],
) -> None:
    loaded = saying(whole, swift={"retired": True}, robin={"retired": True})
    found = loaded.linear(LOGITS, 9)
    assert total(found) == pytest.approx([1, 1, 1])
    left = TOGETHER[[1, 0, 3]]
    assert [class_id for class_id, _ in found[0]] == [1, 0, 3]
    assert [score for _, score in found[0]] == pytest.approx(left / left.sum())
    assert found[2] == [(k, pytest.approx(1 / 3)) for k in (0, 1, 3)]
    _, embedding = loaded.run(tiny_images(6))
    nearest = loaded.nearest_mean(embedding, 99)
    assert {class_id for ranking in nearest for class_id, _ in ranking} == {0, 1, 3, 5}
    plain = session.load(whole[0], 1).nearest_mean(embedding, 99)
    assert nearest == [[(k, s) for k, s in ranking if k not in (2, 4)] for ranking in plain]


def test_a_merged_class_adds_its_probability_to_its_target_and_the_better_mean_of_the_two_counts(
    whole: tuple[Registry, Manifest],
) -> None:
    loaded = saying(whole, heron={"merged_into": 2}, robin={"merged_into": 1})
    found = loaded.linear(LOGITS, 9)
    assert total(found) == pytest.approx([1, 1, 1])
    scores = TOGETHER / TOGETHER.sum()
    shown = np.exp(loaded.rows.logits(LOGITS[:1]))
    assert (shown / shown.sum())[0] == pytest.approx(loaded.probabilities(LOGITS[:1])[0])
    assert [class_id for class_id, _ in found[0]] == [2, 1, 3]
    assert [score for _, score in found[0]] == pytest.approx([scores[0] + scores[2], scores[1], scores[3]])
    assert found[1][0] == (2, pytest.approx(1))  # its row has least of all, and that of heron has everything
    images = tiny_images(6)
    _, embedding = loaded.run(images)
    plain = [dict(ranking) for ranking in session.load(whole[0], 1).nearest_mean(embedding, 99)]
    for ranking, means in zip(loaded.nearest_mean(embedding, 99), plain, strict=True):
        wanted = {1: max(means[1], means[4]), 2: max(means[0], means[2]), 3: means[3], 5: means[5]}
        assert dict(ranking) == wanted
        assert [score for _, score in ranking] == sorted(wanted.values(), reverse=True)
    assert [ranking[0][0] for ranking in loaded.nearest_mean(embedding, 1)] == [2, 1, 2, 3, 1, 5]
    assert [len(ranking) for ranking in loaded.nearest_mean(embedding, 3)] == [3] * 6


def test_a_trained_class_that_is_merged_into_an_enrolled_one_lets_the_last_layer_name_it(
    whole: tuple[Registry, Manifest],
) -> None:
    found = saying(whole, swift={"merged_into": 5}).linear(LOGITS, 1)
    assert found[0] == [(5, pytest.approx(TOGETHER[2] / TOGETHER.sum()))]


def test_a_version_in_which_all_classes_answer_takes_no_rows_apart(whole: tuple[Registry, Manifest]) -> None:
    loaded = saying(whole, heron={"name": "grey heron", "aliases": ("heron",)})
    assert loaded.rows.order is None


def test_similarities_have_a_column_for_each_class_that_is_answered_by_id(whole: tuple[Registry, Manifest]) -> None:
    loaded = saying(whole, heron={"merged_into": 2}, gull={"retired": True}, robin={"merged_into": 3})
    _, embedding = loaded.run(tiny_images(6))
    plain = session.load(whole[0], 1).similarities(embedding)
    wanted = np.stack([plain[:, [0, 2]].max(axis=1), plain[:, [3, 4]].max(axis=1), plain[:, 5]], axis=1)
    assert loaded.similarities(embedding) == pytest.approx(wanted, abs=1e-6)
    for ranking, of_image in zip(loaded.nearest_mean(embedding, 9), wanted, strict=True):
        assert dict(ranking) == pytest.approx(dict(zip((2, 3, 5), of_image, strict=True)), abs=1e-6)


def test_as_many_classes_as_are_asked_for_are_answered_though_a_graph_reaches_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 classes in 20 groups far apart: the edges of the graph stay inside the groups."""
    count, retired, wanted = 2000, set(range(100, 300)), 1000
    lot = np.random.default_rng(0)
    means = np.repeat(unit(lot.normal(size=(20, DIM))), count // 20, axis=0) + 1e-3 * lot.normal(size=(count, DIM))
    registry = Registry(str(tmp_path / "registry"))
    small = tiny_version(registry)
    more = (ClassEntry(k, f"bird {k}", "enrolled", 1, retired=k in retired) for k in range(3, count))
    draft = replace(small, kind="enrolment", classes=(*small.classes, *more))
    monkeypatch.setattr(index, "MOST_EXACT", 1)
    files = {answering.MEANS: index.build(range(count), means)}
    loaded = session.load(registry, registry.publish(draft, files, reuse=[small.file(session.MODEL)]).version)
    assert not loaded.means.exact
    _, embedding = loaded.run(tiny_images())
    assert (loaded.means.index.search(embedding, wanted)[1] < 0).any()  # what it pads with
    exact = {k: column for k, column in enumerate((embedding @ unit(means).T).T) if k not in retired}
    for place, ranking in enumerate(loaded.nearest_mean(embedding, wanted)):
        assert len({k for k, _ in ranking}) == wanted
        assert [score for _, score in ranking] == pytest.approx([exact[k][place] for k, _ in ranking], abs=1e-5)
        assert [score for _, score in ranking] == sorted((score for _, score in ranking), reverse=True)


def test_no_image_is_no_trouble(whole: tuple[Registry, Manifest]) -> None:
    loaded = saying(whole, heron={"retired": True}, robin={"merged_into": 1})
    logits, embedding = loaded.run(tiny_images(0))
    assert (loaded.linear(logits, 5), loaded.nearest_mean(embedding, 5)) == ([], [])


@pytest.mark.parametrize(
    ("said", "former", "message"),
    [
        ({"heron": {"merged_into": 9}}, {}, r"merges \['heron'\] into classes that are not answered"),
        ({"heron": {"merged_into": 0}}, {}, r"merges \['heron'\] into classes that are not answered"),
        ({"heron": {"merged_into": 1}, "gull": {"merged_into": 2}}, {}, r"merges \['heron'\]"),
        ({"heron": {"merged_into": 1}, "gull": {"retired": True}}, {}, r"merges \['heron'\]"),
        ({"heron": {"aliases": ("gull",)}}, {}, "lists a class name twice"),
        ({name: {"retired": True} for name in BIRDS[:4]}, {}, "none of its trained classes is left"),
        ({}, {"retired": False}, r"lists \['stork'\] as former classes; those are retired or merged"),
        ({}, {"retired": True, "name": "heron"}, "lists a class name twice"),
        ({}, {"retired": True, "id": 3}, "lists a class id twice"),
    ],
)
def test_what_a_manifest_may_not_say_of_its_classes(
    said: dict[str, Any], former: dict[str, Any], message: str, whole: tuple[Registry, Manifest]
) -> None:
    classes = tuple(replace(entry, **said.get(entry.name, {})) for entry in whole[1].classes)
    stork = {"id": 9, "name": "stork", "state": "trained", "increment": 0}
    gone = (ClassEntry(**(stork | former)),) if former else ()
    with pytest.raises(BadManifest, match=message):
        replace(whole[1], classes=classes, former=gone)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"retired": True, "merged_into": 1}, "is retired, and merged into class 1"),
        ({"aliases": (" heron",)}, "is named ' heron'"),
    ],
)
def test_what_an_entry_may_not_say(said: dict[str, Any], message: str) -> None:
    with pytest.raises(BadManifest, match=message):
        ClassEntry(0, "heron", "trained", 0, **said)


def test_what_is_said_of_classes_is_read_again_and_a_manifest_from_before_says_nothing_of_it(
    whole: tuple[Registry, Manifest],
) -> None:
    registry, manifest = whole
    loaded = saying(whole, heron={"merged_into": 2, "aliases": ("grey heron",)}, gull={"retired": True})
    assert registry.manifest(loaded.version).classes == loaded.manifest.classes
    assert registry.diff(1, loaded.version)["classes"] == {
        "said": {
            "heron": {"aliases": {"from": (), "to": ("grey heron",)}, "merged_into": {"from": None, "to": 2}},
            "gull": {"retired": {"from": False, "to": True}},
        }
    }
    assert manifest.former == ()
