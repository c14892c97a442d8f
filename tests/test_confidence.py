"""How probable answers are: the fit beside scikit-learn and a search by hand, and estimates of accuracy that hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts import tiny_images, tiny_version
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from lifelist.exporter import confidence
from lifelist.exporter.answering import Answering
from lifelist.exporter.confidence import LEAST, Evidence, fit, probabilities
from lifelist.exporter.manifest import Confidence, Confidences
from lifelist.exporter.provisional import HeldOut
from lifelist.exporter.registry import Registry
from lifelist.monitoring import quality, seen
from lifelist.monitoring.figures import DAY, NONE, Figure

IDS = np.array([3, 5, 8, 13])


def drawn(
    count: int, random: np.random.Generator, sharp: float = 2.0, boast: float = 3.0
) -> tuple[Evidence, np.ndarray, np.ndarray]:
    """What a network says that is `boast` times too sure; N class ids; whether its best is right."""
    logits = sharp * random.normal(size=(count, len(IDS)))
    chosen = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)  # by the probabilities softmax(logits)
    return Evidence(IDS, boast * logits), IDS[chosen], chosen == logits.argmax(axis=1)


def fitted(found: Evidence, labels: np.ndarray) -> Confidence:
    made = fit(found, labels)
    assert made is not None
    return made


def of_answers(made: Confidence, found: Evidence) -> np.ndarray:
    """How probable it is that each answer is right."""
    return probabilities(made, found)[np.arange(len(found.scores)), found.scores.argmax(axis=1)]


def test_the_scale_is_the_one_that_held_out_images_are_least_surprised_by() -> None:
    found, labels, _ = drawn(3000, np.random.default_rng(0))
    rows = np.arange(len(labels)), np.searchsorted(IDS, labels)
    scales = np.geomspace(0.05, 5, 400)
    surprise = [-log_softmax(scale * found.scores, axis=1)[rows].mean() for scale in scales]
    made = fitted(found, labels)
    assert made.scale == pytest.approx(scales[int(np.argmin(surprise))], rel=0.02)
    assert made.scale == pytest.approx(1 / 3, rel=0.1)
    assert made.images == 3000


def test_the_share_that_is_right_is_scikit_learns_isotonic_regression() -> None:
    found, labels, right = drawn(800, np.random.default_rng(1))
    made = fitted(found, labels)
    sure = softmax(made.scale * found.scores, axis=1).max(axis=1)
    wanted = IsotonicRegression(y_min=1 / 802, y_max=1 - 1 / 802, out_of_bounds="clip").fit(sure, right)
    np.testing.assert_allclose(made.right, wanted.predict(made.sure), atol=2e-3)
    assert of_answers(made, found).mean() == pytest.approx(right.mean(), abs=0.005)


def test_probabilities_sum_to_one_and_that_of_the_answer_is_the_share_that_is_right() -> None:
    random = np.random.default_rng(2)
    found, labels, _ = drawn(500, random)
    made = fitted(found, labels)
    extreme = Evidence(IDS, np.vstack([found.scores, [[900, 0, 0, 0], [0, 0, 0, 0], [-1e4, 5, -1e4, -1e4]]]))
    shown = probabilities(made, extreme)
    np.testing.assert_allclose(shown.sum(axis=1), 1)
    assert (shown >= 0).all()
    best = extreme.scores.argmax(axis=1)
    np.testing.assert_array_equal(shown[np.arange(500), best[:500]], np.interp(
        softmax(made.scale * found.scores, axis=1).max(axis=1), made.sure, made.right
    ))  # fmt: skip


@pytest.mark.parametrize("sharp", [1.2, 2.0, 5.0])
def test_accuracy_is_estimated_where_images_are_harder_or_easier_than_the_held_out_ones(sharp: float) -> None:
    random = np.random.default_rng(3)
    found, labels, _ = drawn(2000, random)
    made = fitted(found, labels)
    others, _, right = drawn(4000, random, sharp=sharp)
    raw = softmax(others.scores, axis=1).max(axis=1).mean()
    assert raw - right.mean() > 0.08  # what the network says of itself
    assert of_answers(made, others).mean() == pytest.approx(right.mean(), abs=0.03)


def test_images_of_classes_that_cannot_be_named_are_left_out() -> None:
    found, labels, _ = drawn(200, np.random.default_rng(4))
    strange = labels.copy()
    strange[:50] = 99
    assert fitted(found, strange) == fitted(Evidence(IDS, found.scores[50:]), labels[50:])
    strange[LEAST - 1 :] = 99
    assert fit(found, strange) is None


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(str(tmp_path_factory.mktemp("registry")))


@pytest.mark.parametrize(("held_out", "answers"), [(150, 2000), (600, 150), (300, 300)])
def test_the_interval_of_an_estimate_holds_what_labels_would_say(
    registry: Registry, held_out: int, answers: int
) -> None:
    random = np.random.default_rng(5)
    held = 0
    sure = tuple(np.linspace(0.3, 1, 51).tolist())
    version = tiny_version(registry, changes={"confidences": Confidences(Confidence(held_out, 1.0, sure, sure), None)})
    for _ in range(150):
        found, labels, _ = drawn(held_out, random)
        others, _, right = drawn(answers, random)
        believed = of_answers(fitted(found, labels), others)
        one = Figure("", DAY, version.version, "estimated", "all", NONE, answers, answers, believed.sum(), answers)
        share = quality.share(one, registry)
        assert share.low is not None
        assert share.high is not None
        held += share.low <= right.mean() <= share.high
    assert held / 150 >= 0.93


# ---- classes that are merged or retired, and versions of more than one increment


def answering(registry: Registry, **changes: object) -> Answering:
    """Four classes, of which the last came with the first increment; held-out images are hard to tell."""
    plain = tiny_version(registry, ("a", "b", "c", "d"), increments=(0, 0, 0, 1))
    classes = tuple(replace(one, **changes.get(one.name, {})) for one in plain.classes)  # type: ignore[arg-type]
    version = tiny_version(registry, ("a", "b", "c", "d"), increments=(0, 0, 0, 1), changes={"classes": classes})
    bare = Answering.of(registry, version.version)
    held = said(2000, seed=1)
    manifest = replace(version, confidences=bare.fitted(held))
    return Answering(manifest=manifest, means=bare.means)


def said(count: int, seed: int) -> HeldOut:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 4)).astype(np.float32)
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    embedding = random.normal(size=(count, 8)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return HeldOut(embedding, 2 * logits, np.arange(4), labels, np.zeros((count, 3), np.float32))


CHANGES = {
    "nothing": {},
    "merged": {"b": {"merged_into": 0}},
    "retired": {"b": {"retired": True}},
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", ["linear", "nearest_mean"])
def test_estimates_are_of_the_classes_that_are_answered(registry: Registry, name: str, kind: str) -> None:
    version = answering(registry, **CHANGES[name])
    shown = said(3000, seed=2)
    found, believed = seen.see(version, kind, shown.logits, shown.embedding, shown.looks)  # type: ignore[arg-type]
    assert believed is not None
    answered = {entry.id for entry in version.manifest.answerable}
    assert set(believed.ids.tolist()) == answered
    assert set(found.best.tolist()) <= answered
    np.testing.assert_allclose(believed.probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(believed.ids[believed.answered], found.best)
    np.testing.assert_array_equal(believed.right, found.confidence)
    if kind == "linear":
        instead = version.manifest.instead
        labels = np.array([-1 if (k := instead.get(t, t)) is None else k for t in shown.labels.tolist()])
        true = (found.best == labels)[labels >= 0].mean()  # a retired class is none that it could name
        assert found.confidence[labels >= 0].mean() == pytest.approx(true, abs=0.05)


@pytest.mark.parametrize("name", CHANGES)
def test_groups_of_an_estimate_are_sums_over_images_as_by_hand(registry: Registry, name: str) -> None:
    version = answering(registry, **CHANGES[name])
    shown = said(300, seed=3)
    _, believed = seen.see(version, "linear", shown.logits, shown.embedding, shown.looks)
    assert believed is not None
    figures = {(f.group, f.class_id): f for f in seen.estimated(version, believed, 600, ("m", 60), ("h", 3600))}
    new = {entry.id for entry in version.manifest.classes if entry.increment == 1}
    for (group, class_id), figure in figures.items():
        total = right = 0.0
        for row, answered in zip(believed.probabilities, believed.answered, strict=True):
            for k, (of, probability) in enumerate(zip(believed.ids.tolist(), row, strict=True)):
                if {"all": True, "new": of in new, "old": of not in new, "class": of == class_id}[group]:
                    total += 2 * probability  # each stands for two answers
                    right += 2 * probability * (k == answered)
        assert (figure.total, figure.right) == pytest.approx((total, right))
        assert figure.share.total == pytest.approx(total / 2)  # and is no two images
        assert figure.at == ("h" if group == "class" else "m")
    assert {group for group, _ in figures} == {"all", "old", "new", "class"}


def test_a_version_without_calibration_estimates_nothing(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    version = Answering.of(registry, tiny_version(registry).version)
    from lifelist.exporter import session

    logits, embedding = session.load(registry, 1, provider="cpu").run(tiny_images(3))
    found, believed = seen.see(version, "linear", logits, embedding, np.zeros((3, 3), np.float32))
    assert believed is None
    assert np.isnan(found.confidence).all()
    assert np.isnan(found.unknown).all()
    assert found.best.tolist() == [0, 1, 2]
    assert confidence.fit(Evidence(IDS, np.zeros((5, 4))), IDS[[0, 1, 2, 3, 0]]) is None
