"""Images of no known class: the calibration on held-out images, and what is answered by it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts import BIRDS, SIZE, encoded, images, tiny_images, tiny_version
from parts_rollout import NAMES, add, learn, pictures, settings
from test_classify import Site, error
from test_infer import asked, infer, values
from test_provisional import held

from lifelist.deploy import changes, enrol
from lifelist.deploy.settings import ExampleOptions
from lifelist.deploy.workshop import Workshop, open_workshop
from lifelist.exporter import session
from lifelist.exporter.errors import BadManifest
from lifelist.exporter.fold import unit
from lifelist.exporter.manifest import KnownScores, Manifest
from lifelist.exporter.preprocess import decode
from lifelist.exporter.provisional import HELD_OUT, HeldOut, Provisional
from lifelist.exporter.registry import Registry
from lifelist.exporter.unknowns import LEAST, calibrate, unknown_scores
from lifelist.serving.options import ServingOptions
from lifelist.serving.repository import outputs

KINDS = ("linear", "nearest_mean")


def some_means(classes: int = 4) -> np.ndarray:
    return unit(np.random.default_rng(3).normal(size=(classes, 8)))


def calibrated(found: HeldOut, means: np.ndarray, rows: Provisional | None = None) -> KnownScores:
    known = calibrate(found, means, rows)
    assert known is not None
    return known


@pytest.mark.parametrize("rows", [None, Provisional((7, 8), 12.0, 2.0)])
def test_an_unknown_score_is_the_share_of_held_out_images_that_look_more_known(rows: Provisional | None) -> None:
    found, means = held(2000), some_means()
    known = calibrated(found, means, rows)
    best = found.best
    if rows is not None:
        best = np.maximum(best, (12 * found.embedding @ means[-2:].T + 2).max(axis=1))
        assert (best > found.best).any()
    similar = (found.embedding @ means.T).max(axis=1)
    for scores, quantiles in ((best, known.linear), (similar, known.nearest_mean)):
        more = (scores[:, None] < scores).mean(axis=1)  # of each image, by counting
        np.testing.assert_allclose(unknown_scores(scores, quantiles), more, atol=0.005)
        assert unknown_scores([scores.min() - 1, scores.max() + 1], quantiles).tolist() == [1, 0]


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_false_alarms_on_other_known_images_are_as_frequent_as_was_chosen(rate: float) -> None:
    found, means = held(4000), some_means()
    halves = [found.of(slice(k, None, 2)) for k in (0, 1)]
    known = calibrated(halves[0], means)
    for scores, quantiles in (
        (halves[1].best, known.linear),
        ((halves[1].embedding @ means.T).max(axis=1), known.nearest_mean),
    ):
        alarms = (unknown_scores(scores, quantiles) > 1 - rate).mean()
        assert alarms == pytest.approx(rate, abs=4 * np.sqrt(rate / 2000))


def test_few_images_say_nothing_of_a_share() -> None:
    assert calibrate(held(LEAST - 1), some_means()) is None
    assert calibrated(held(LEAST), some_means()).images == LEAST


@pytest.mark.parametrize("linear", [(0.0, 1.0), tuple(map(float, range(101, 0, -1)))])
def test_quantiles_that_are_none_are_refused(linear: tuple[float, ...]) -> None:
    with pytest.raises(BadManifest, match="quantiles that rise"):
        KnownScores(50, linear, tuple(map(float, range(101))))


# ---- answers

KNOWN = KnownScores(200, tuple(np.linspace(2, 7, 101).tolist()), tuple(np.linspace(-0.5, 1, 101).tolist()))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 1 is live, and calibrated; version 2 is not."""
    made = Registry(str(tmp_path_factory.mktemp("registry")))
    tiny_version(made, live=True, changes={"known_scores": KNOWN})
    tiny_version(made, seed=1)
    return made


@pytest.fixture(scope="module")
def site(registry: Registry) -> Iterator[Site]:
    made = Site(registry)
    yield made
    made.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_has_the_unknown_score_of_the_kind_that_answers(site: Site, registry: Registry, kind: str) -> None:
    shown = np.concatenate([tiny_images(3), images(5, SIZE, seed=7)])
    logits, embedding = session.load(registry, 1, provider="cpu").run(shown)
    similar = embedding @ session.load(registry, 1, provider="cpu").means.means().T
    scores = logits.max(axis=1) if kind == "linear" else similar.max(axis=1)
    wanted = 1 - np.interp(scores, getattr(KNOWN, kind), np.linspace(0, 1, 101))
    assert 0 < wanted.mean() < 1
    found = []
    for one in shown:
        answer = site.post(f"?answer={kind}&top_k=1", content=encoded(one)).json()["images"][0]
        assert "unknown" not in answer
        found.append(answer["unknown_score"])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for rate in (0.05, 0.5, 1):
        for one, score in zip(shown, found, strict=True):
            answer = site.post(f"?answer={kind}&unknown_at={rate}", content=encoded(one)).json()["images"][0]
            assert answer["unknown"] is (score > 1 - rate)


def test_retired_classes_make_nothing_look_known(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    first = tiny_version(registry, changes={"known_scores": KNOWN})
    retired = tuple(replace(entry, retired=entry.id == 2) for entry in first.classes)
    registry.publish(replace(first, classes=retired), {}, reuse=first.files)
    before, after = (session.load(registry, number, provider="cpu") for number in (1, 2))
    logits, embedding = before.run(tiny_images(3))
    for kind in KINDS:
        found = []
        for loaded in (before, after):
            ranking = loaded.linear(logits, 1) if kind == "linear" else loaded.nearest_mean(embedding, 1)
            scores = loaded.unknown_scores(kind, logits, ranking)
            assert scores is not None
            found.append(scores)
        assert found[0][:2].tolist() == found[1][:2].tolist()
        assert found[1][2] > found[0][2]


def test_the_setting_holds_where_a_query_says_nothing(registry: Registry) -> None:
    site = Site(registry, ServingOptions(unknown_at=1.0))
    try:
        found = [site.post(query, content=encoded(tiny_images(1)[0])).json() for query in ("", "?unknown_at=0")]
    finally:
        site.close()
    assert found[0]["images"][0]["unknown"] is (found[0]["images"][0]["unknown_score"] > 0)
    assert "unknown" not in found[1]["images"][0]


@pytest.mark.parametrize("given", ["1.01", "-0.1", "nan", "inf", "", "five", "0_1", "１", "0.0" + 30 * "1"])
def test_a_rate_that_is_no_share_is_refused(site: Site, given: str) -> None:
    answer = site.post(f"?unknown_at={given}", content=encoded(tiny_images(1)[0]))
    assert answer.status_code == 400
    assert error(answer).startswith("unknown_at should be a share from 0 to 1, such as 0.05, not ")


def test_a_version_that_was_not_calibrated_answers_and_says_nothing_of_it(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    assert "unknown_score" not in outputs(tiny_version(registry, live=True))
    site = Site(registry)
    try:
        found = site.post("?unknown_at=0.05", content=encoded(tiny_images(1)[0])).json()["images"][0]
        assert (found["unknown_score"], found["unknown"]) == (None, None)
        assert found["classes"][0]["name"] == BIRDS[0]
        refused = infer(site, asked(None, "unknown_score"))
        assert refused.status_code == 400
        assert error(refused).startswith("there is no output 'unknown_score'; there are class_id, ")
    finally:
        site.close()


def test_unknown_scores_are_an_output_of_the_open_inference_protocol(site: Site, registry: Registry) -> None:
    assert outputs(registry.manifest(1))["unknown_score"] == ("FP32", [-1])
    found = values(infer(site, asked(tiny_images(3), "unknown_score", parameters={"answer": "nearest_mean"})))
    wanted = [
        site.post("?answer=nearest_mean", content=encoded(one)).json()["images"][0]["unknown_score"]
        for one in tiny_images(3)
    ]
    np.testing.assert_allclose(found["unknown_score"], wanted, atol=1e-5)


# ---- on the way to live


def live(workshop: Workshop) -> Manifest:
    found = workshop.live
    assert found is not None
    return found


def scores(workshop: Workshop, name: str, kind: str) -> np.ndarray:
    """The unknown scores that live gives to new pictures of a class."""
    loaded = session.load(workshop.registry, live(workshop).version)
    shown = np.stack([decode(data, loaded.manifest.preprocess) for _, data in pictures(name, 20, first=200)])
    logits, embedding = loaded.run(shown)
    rankings = loaded.linear(logits, 1) if kind == "linear" else loaded.nearest_mean(embedding, 1)
    found = loaded.unknown_scores(kind, logits, rankings)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_an_increment_is_calibrated_and_enrolments_are_anew(tmp_path: Path) -> None:
    workshop = open_workshop(settings(tmp_path, examples=ExampleOptions(provisional_loss=0.3)))
    assert learn(workshop, *NAMES[:2], count=60).state == "done"
    made = live(workshop)
    found = HeldOut.from_bytes(workshop.registry.read(made, HELD_OUT))
    means = session.load(workshop.registry, made.version).means.means()
    assert made.known_scores == calibrate(found, means)
    assert calibrated(found, means).images == 24
    assert max(scores(workshop, "red", kind).mean() for kind in KINDS) < 0.8
    before = scores(workshop, "blue", "nearest_mean")
    assert before.mean() > 0.95
    add(workshop, ["blue"])
    version = enrol.enrol(workshop)
    assert version is not None
    loaded = session.load(workshop.registry, version.version)
    assert loaded.provisional is not None
    assert version.known_scores == calibrate(found, loaded.means.means(), loaded.provisional)
    assert version.known_scores != calibrate(found, loaded.means.means())
    assert scores(workshop, "blue", "nearest_mean").mean() < before.mean() - 0.3
    renamed = changes.change(workshop, 2, {"name": "navy"})
    assert renamed.known_scores == version.known_scores


def test_a_base_without_held_out_images_is_not_calibrated(tmp_path: Path) -> None:
    workshop = open_workshop(settings(tmp_path, examples=ExampleOptions(gate_share=0), gate=()))
    assert learn(workshop, *NAMES[:2], count=60).state == "done"
    assert live(workshop).known_scores is None
