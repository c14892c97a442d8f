"""A class is answerable as soon as it has images, and enrolling it loses nothing that happens meanwhile."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts import SIZE, blob_path, flip_one_bit, tiny_images, tiny_version
from parts_rollout import add, pictures, settings

from lifelist.deploy import enrol, examples
from lifelist.deploy.workshop import Workshop, open_workshop
from lifelist.exporter import answering, index, session
from lifelist.exporter.errors import Unavailable
from lifelist.exporter.fold import unit
from lifelist.exporter.preprocess import decode


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Version 1, of heron, gull and swift (ids 100 …), is live; our own classes begin at 1."""
    made = open_workshop(settings(tmp_path))
    tiny_version(made.registry, first_id=100, live=True)
    return made


def test_before_the_first_version_nothing_is_enrolled(tmp_path: Path) -> None:
    workshop = open_workshop(settings(tmp_path))
    add(workshop, ["red"])
    assert enrol.enrol(workshop) is None


def test_a_new_class_answers_by_its_mean_in_a_version_that_shares_the_model(workshop: Workshop) -> None:
    add(workshop, ["red", "blue"])
    version = enrol.enrol(workshop)
    assert version is not None
    assert workshop.live == version
    assert (version.kind, version.parent, version.default_answer) == ("enrolment", 1, "nearest_mean")
    assert [(c.id, c.name, c.state, c.increment) for c in version.classes[3:]] == [
        (1, "red", "enrolled", 1),
        (2, "blue", "enrolled", 1),
    ]
    for name in (session.MODEL, "checkpoint.safetensors", "exemplars.json"):
        assert version.file(name) == workshop.registry.manifest(1).file(name)
    loaded = session.load(workshop.registry, version.version)
    for class_id, name in ((1, "red"), (2, "blue")):
        unseen = [decode(data, version.preprocess) for _, data in pictures(name, 5, first=100)]
        best = loaded.nearest_mean(loaded.run(np.stack(unseen))[1], 1)
        assert [ranking[0][0] for ranking in best] == [class_id] * 5
    before = session.load(workshop.registry, 1).means.means()
    np.testing.assert_allclose(loaded.means.means()[:3], before, atol=1e-6)


def test_the_mean_is_of_unit_embeddings_of_training_images_only(workshop: Workshop) -> None:
    add(workshop, ["red"])
    version = enrol.enrol(workshop)
    assert version is not None
    loaded = session.load(workshop.registry, version.version)
    training = [e.sha256 for e in examples.kept(workshop.store) if e.role == "training"]
    images = examples.pixels(workshop, training, version.preprocess)
    mean = dict(zip(loaded.means.ids, loaded.means.means(), strict=True))[1]
    np.testing.assert_allclose(mean, unit(loaded.run(images)[1].mean(0)), atol=1e-6)
    assert enrol.sources(workshop.registry, version) == {1: training}


def test_mirror_images_count_half_where_the_model_was_trained_on_them(workshop: Workshop) -> None:
    loaded = session.load(workshop.registry, 1)
    images = tiny_images(4)
    assert images.shape[1:] == (SIZE, SIZE, 3)
    plain = enrol.class_mean(loaded, images, mirrored=False)
    mirrored = enrol.class_mean(loaded, images, mirrored=True)
    both = np.concatenate([loaded.run(images)[1], loaded.run(images[:, :, ::-1])[1]])
    np.testing.assert_allclose(mirrored, unit(both.mean(0)), atol=1e-6)
    assert not np.allclose(plain, mirrored, atol=1e-4)


def test_enrolling_again_makes_a_version_only_if_there_are_new_images(workshop: Workshop) -> None:
    add(workshop, ["red"], 5)
    first = enrol.enrol(workshop)
    assert first is not None
    assert enrol.enrol(workshop) is None
    add(workshop, ["red"], 8)
    add(workshop, ["blue"], 5)
    second = enrol.enrol(workshop)
    assert second is not None
    assert second.version == first.version + 1
    assert second.parent == first.version
    assert [c.name for c in second.classes[3:]] == ["red", "blue"]


def test_a_mean_whose_images_are_the_same_is_taken_over_to_the_bit(workshop: Workshop) -> None:
    add(workshop, ["red"])
    first = enrol.enrol(workshop)
    for example in examples.kept(workshop.store):  # were it computed again, it would not find them
        workshop.images.remove(example.sha256)
    add(workshop, ["blue"])
    second = enrol.enrol(workshop)
    assert first is not None
    assert second is not None
    red = [session.load(workshop.registry, v.version).means.means()[3] for v in (first, second)]
    np.testing.assert_array_equal(*red)


def test_if_live_moves_meanwhile_the_class_is_enrolled_into_what_is_live_then(workshop: Workshop) -> None:
    registry, calls = workshop.registry, []

    def swap(version: int, expected: int | None) -> None:
        calls.append(version)
        if len(calls) == 1:  # an increment is swapped in just before
            tiny_version(registry, ("heron", "gull", "swift", "wren"), first_id=100, live=True, seed=1)
        registry.promote(version, expected)

    add(workshop, ["red"])
    version = enrol.enrol(replace(workshop, swap=swap))
    assert version is not None
    assert [c.name for c in version.classes] == ["heron", "gull", "swift", "wren", "red"]
    assert len(calls) == 2
    assert workshop.live == version


def test_when_live_never_stands_still_the_error_says_that_the_images_are_kept(workshop: Workshop) -> None:
    def swap(version: int, expected: int | None) -> None:
        now = workshop.registry.ref("live")
        assert now is not None
        workshop.registry.promote(now.version, now.generation)
        workshop.registry.promote(version, expected)

    add(workshop, ["red"])
    with pytest.raises(Unavailable, match="the images are kept"):
        enrol.enrol(replace(workshop, swap=swap))
    assert len(examples.kept(workshop.store)) == 20


def test_an_enrolment_claims_no_figures_and_no_verdict_of_its_parent(tmp_path: Path) -> None:
    workshop = open_workshop(settings(tmp_path))
    tiny_version(
        workshop.registry, first_id=100, live=True, passed=False, changes={"results": {"linear": {"all": 1.0}}}
    )
    parent = workshop.live
    add(workshop, ["red"], 5)
    version = enrol.enrol(workshop)
    assert parent is not None
    assert version is not None
    assert (dict(version.results), version.gate) == ({}, ())  # of fewer classes, and about another version
    assert version.parity == parent.parity  # the model is the same


def test_a_class_that_live_has_enrolled_stays_when_its_images_are_gone(workshop: Workshop) -> None:
    add(workshop, ["red"], 5)
    first = enrol.enrol(workshop)
    examples.forget(workshop, [e.sha256 for e in examples.kept(workshop.store)])
    assert enrol.enrol(workshop) is None
    add(workshop, ["blue"], 5)
    second = enrol.enrol(workshop)
    assert first is not None
    assert second is not None
    assert [c.name for c in second.classes[3:]] == ["red", "blue"]
    red = [session.load(workshop.registry, v.version).means.means()[3] for v in (first, second)]
    np.testing.assert_array_equal(*red)


def test_what_is_enrolled_is_not_worse_for_some_of_its_images_that_are_gone(workshop: Workshop) -> None:
    add(workshop, ["red"], 8)
    assert enrol.enrol(workshop) is not None
    examples.forget(workshop, [e.sha256 for e in examples.kept(workshop.store)][:4])
    assert enrol.enrol(workshop) is None


def test_an_enrolment_that_could_not_go_live_is_used_and_not_published_again(workshop: Workshop) -> None:
    def refuse(version: int, expected: int | None) -> None:
        raise Unavailable("no replica lives")

    add(workshop, ["red"], 5)
    for _ in range(3):
        with pytest.raises(Unavailable):
            enrol.enrol(replace(workshop, swap=refuse))
    assert workshop.registry.versions() == [1, 2]
    version = enrol.enrol(workshop)
    assert version == workshop.registry.manifest(2) == workshop.live


def test_an_enrolment_that_could_not_go_live_is_left_if_there_are_more_images_or_it_is_damaged(
    workshop: Workshop,
) -> None:
    def refuse(version: int, expected: int | None) -> None:
        raise Unavailable("no replica lives")

    for count in (5, 8):
        add(workshop, ["red"], count)
        with pytest.raises(Unavailable):
            enrol.enrol(replace(workshop, swap=refuse))
    assert workshop.registry.versions() == [1, 2, 3]
    flip_one_bit(blob_path(workshop.registry, workshop.registry.manifest(3), answering.MEANS))
    version = enrol.enrol(workshop)
    assert version is not None
    assert version.version == 4
    assert workshop.registry.verify(4) == []


def test_a_class_more_is_a_node_more_in_the_graph_of_means_that_is_there(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MOST_EXACT", 1)
    add(workshop, ["red"])
    first = enrol.enrol(workshop)
    assert first is not None
    before = session.load(workshop.registry, first.version).means
    monkeypatch.setattr(index, "NEIGHBOURS", 8)  # of a graph that were built anew
    add(workshop, ["blue"])
    second = enrol.enrol(workshop)
    assert second is not None
    after = session.load(workshop.registry, second.version).means
    assert (before.exact, after.exact) == (False, False)
    assert after.ids == (*before.ids, 2)
    assert after.index.hnsw.nb_neighbors(1) == before.index.hnsw.nb_neighbors(1) == 32
    np.testing.assert_array_equal(after.means()[:-1], before.means())
    add(workshop, ["red"], 30)  # its mean is another now, so that the graph is another too
    third = enrol.enrol(workshop)
    assert third is not None
    assert session.load(workshop.registry, third.version).means.index.hnsw.nb_neighbors(1) == 8
