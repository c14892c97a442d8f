"""Rows of the last layer for classes that wait for training: what they may take from the others, and what they give."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts import BIRDS, tiny_images, tiny_version
from parts_rollout import add, pictures, prepared

from lifelist.deploy import changes, enrol, rollout, withdrawn
from lifelist.deploy.settings import ExampleOptions
from lifelist.deploy.workshop import Workshop
from lifelist.exporter import provisional, session
from lifelist.exporter.errors import Corrupt
from lifelist.exporter.fold import unit
from lifelist.exporter.imagery import LOOKS
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.preprocess import decode
from lifelist.exporter.provisional import HELD_OUT, HeldOut, Provisional
from lifelist.exporter.registry import Registry
from lifelist.exporter.session import Loaded


def held(n: int = 500, dim: int = 8, seed: int = 0) -> HeldOut:
    """Some held-out answers: most are right."""
    random = np.random.default_rng(seed)
    embedding = unit(random.normal(size=(n, dim)))
    best, right = random.normal(8, 3, n), random.random(n) < 0.9
    labels = random.integers(0, 3, n)
    logits = (best[:, None] - random.uniform(0.1, 3, (n, 3))).astype(np.float32)
    logits[np.arange(n), np.where(right, labels, (labels + 1) % 3)] = best
    return HeldOut(embedding, logits, np.arange(3), labels, random.random((n, len(LOOKS))).astype(np.float32))


@pytest.mark.parametrize("most_lost", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_rows_cost_at_most_the_stated_share_of_right_answers_and_no_less_than_they_may(
    most_lost: float, classes: int
) -> None:
    found, means = held(), unit(np.random.default_rng(9).normal(size=(classes, 8)))
    scale, offset = found.fit(means, most_lost)
    right = int(found.right.sum())

    def lost(by: float) -> int:
        rows = Provisional(tuple(range(classes)), scale, by).logits(found.embedding, means)
        return int((found.right & (rows.max(axis=1) > found.best)).sum())

    assert lost(offset) == int(most_lost * right)
    assert lost(offset + 0.01) > int(most_lost * right)
    assert scale == pytest.approx(found.best.std() / (found.embedding @ means.T).max(axis=1).std(), rel=1e-5)


def test_held_out_answers_are_read_as_they_were_written() -> None:
    again = HeldOut.from_bytes(held().as_bytes())
    for name in ("embedding", "logits", "rows", "labels", "looks", "best", "right"):
        np.testing.assert_array_equal(getattr(again, name), getattr(held(), name))
    with pytest.raises(Corrupt, match="cannot be read"):
        HeldOut.from_bytes(b"nothing")


def test_what_an_older_version_did_not_keep_of_held_out_images_is_nan() -> None:
    kept = held()
    older = HeldOut.from_bytes(replace(kept, looks=kept.looks[:, :3].copy()).as_bytes())
    assert older.looks.shape == (len(kept.labels), len(LOOKS))
    np.testing.assert_array_equal(older.looks[:, :3], kept.looks[:, :3])
    assert np.isnan(older.looks[:, LOOKS.index("size")]).all()


def with_rows(registry: Registry, data: bytes) -> Loaded:
    """The tiny version, whose classes 3 and 4 are enrolled, with this file of rows."""
    whole = tiny_version(registry, BIRDS[:3], enrolled=BIRDS[3:5])
    made = registry.publish(whole, {provisional.FILE: data}, reuse=whole.files)
    return session.load(registry, made.version, provider="cpu")


def test_a_provisional_row_is_a_logit_like_the_others(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    loaded = with_rows(registry, Provisional((3, 4), 20.0, -3.0).as_bytes())
    plain = session.load(registry, 1, provider="cpu")
    (logits, embedding), (bare, _) = loaded.run(tiny_images(5)), plain.run(tiny_images(5))
    means = dict(zip(plain.means.ids, plain.means.means(), strict=True))
    wanted = np.concatenate([bare, 20 * embedding @ np.stack([means[3], means[4]]).T - 3], axis=1)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    scores = np.exp(wanted - wanted.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    for ranking, image in zip(loaded.linear(logits, 9), scores, strict=True):
        assert dict(ranking) == {k: pytest.approx(image[row], abs=1e-6) for row, k in enumerate((0, 1, 2, 3, 4))}
    assert loaded.run(tiny_images(0))[0].shape == (0, 5)
    classes = tuple(replace(entry, retired=entry.id == 4) for entry in loaded.manifest.classes)
    retired = registry.publish(replace(loaded.manifest, classes=classes), {}, reuse=loaded.manifest.files)
    shared = session.load(registry, retired.version, share=loaded)
    assert {k for ranking in shared.linear(logits, 9) for k, _ in ranking} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        Provisional((3,), 1.0, 0.0).as_bytes(),
        Provisional((4, 3), 1.0, 0.0).as_bytes(),  # their order is that of the columns
        Provisional((3, 4, 5), 1.0, 0.0).as_bytes(),
        json.dumps({"ids": [3, 4], "scale": "much", "offset": 0}).encode(),
        b'{"ids": [3, 4], "scale": NaN, "offset": 0}',
        b'{"ids": [3, 4], "scale": 1}',
        b"[]",
    ],
)
def test_rows_that_are_not_of_the_enrolled_classes_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match=r"provisional\.json"):
        with_rows(Registry(str(tmp_path)), data)


# ---- on the way to live


def live(workshop: Workshop) -> Manifest:
    found = workshop.live
    assert found is not None
    return found


def answered(workshop: Workshop, name: str) -> list[str]:
    """What the last layer of live says to new pictures of a class."""
    loaded = session.load(workshop.registry, live(workshop).version)
    images = np.stack([decode(data, loaded.manifest.preprocess) for _, data in pictures(name, 20, first=200)])
    titles = {entry.id: entry.name for entry in loaded.manifest.classes}
    return [titles[ranking[0][0]] for ranking in loaded.linear(loaded.run(images)[0], 1)]


def has(version: Manifest, name: str) -> bool:
    return any(entry.name == name for entry in version.files)


def test_an_enrolled_class_is_in_the_linear_answer_until_an_increment_trains_a_row_of_its_own(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, examples=ExampleOptions(provisional_loss=0.2))
    before = answered(workshop, "red").count("red")
    add(workshop, ["blue", "yellow"])
    version = enrol.enrol(workshop)
    assert version is not None
    assert has(version, provisional.FILE)
    assert version.file(HELD_OUT) == workshop.registry.manifest(1).file(HELD_OUT)
    assert answered(workshop, "blue").count("blue") > 10
    assert answered(workshop, "red").count("red") >= before - 4
    changes.change(workshop, 3, {"retired": True})
    assert "blue" not in answered(workshop, "blue")
    withdrawn.make_live(workshop, version.version)
    rollout.start(workshop, ["yellow"])
    ended = rollout.carry_all(workshop)[-1]
    assert ended.state == "done", ended.reason
    assert [(c.name, c.state) for c in live(workshop).classes[2:]] == [("yellow", "trained"), ("blue", "enrolled")]
    assert json.loads(workshop.registry.read(live(workshop), provisional.FILE))["ids"] == [3]
    assert live(workshop).file(HELD_OUT) != version.file(HELD_OUT)
    rollout.start(workshop, ["blue"])
    assert rollout.carry_all(workshop)[-1].state == "done"
    assert not has(live(workshop), provisional.FILE)


def test_upon_a_version_that_kept_no_held_out_answers_there_are_no_provisional_rows(tmp_path: Path) -> None:
    workshop = prepared(tmp_path)
    older = live(workshop)
    made = workshop.registry.publish(older, {}, reuse=[entry for entry in older.files if entry.name != HELD_OUT])
    workshop.swap(made.version, 1)
    add(workshop, ["blue"])
    version = enrol.enrol(workshop)
    assert version is not None
    assert not has(version, provisional.FILE)
    assert "blue" not in answered(workshop, "blue")
