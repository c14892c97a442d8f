"""Images that are worth a label: chosen, bounded, shown, judged; none without consent."""

import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts import BIRDS, images, tiny_images, tiny_version
from parts_operator import Server, serving
from PIL import Image

from lifelist import Client
from lifelist.client.errors import RequestFailed
from lifelist.deploy.store import Store
from lifelist.deploy.watch import queue
from lifelist.deploy.workshop import Workshop
from lifelist.exporter import session
from lifelist.exporter.errors import Missing
from lifelist.exporter.imagery import looks
from lifelist.exporter.manifest import SURE_POINTS, Confidence, Confidences
from lifelist.exporter.registry import Blobs, Registry
from lifelist.exporter.storage import open_storage
from lifelist.monitoring import review, seen
from lifelist.monitoring.figures import DAY
from lifelist.monitoring.options import ReviewOptions
from lifelist.monitoring.review import Queue
from lifelist.monitoring.seen import Seen
from lifelist.serving import prediction
from lifelist.serving.observed import Observations
from lifelist.serving.prediction import Prediction, key_in

NOON = 1_800_000_000.0
_SURE = tuple(np.linspace(0, 1, SURE_POINTS).tolist())
CALIBRATED = Confidences(linear=Confidence(images=100, scale=1.0, sure=_SURE, right=_SURE), nearest_mean=None)
CONSENT = ReviewOptions(keep_images=True)


@pytest.fixture
def loaded(tmp_path: Path) -> session.Loaded:
    registry = Registry(str(tmp_path / "registry"))
    made = tiny_version(registry, live=True, changes={"confidences": CALIBRATED})
    return session.load(registry, made.version, provider="cpu")


def shown(loaded: session.Loaded, pixels: np.ndarray, first: int = 0) -> tuple[Observations, Seen]:
    """Images as the watcher gets them."""
    logits, embedding = loaded.run(pixels)
    best = np.array([ranking[0][0] for ranking in loaded.linear(logits, 1)])
    ids = tuple(f"p{first + k}" for k in range(len(pixels)))
    observed = Observations(
        loaded.version,
        "linear",
        "fp32",
        len(pixels),
        ids,
        np.full(len(pixels), NOON),
        best,
        logits,
        embedding,
        pixels,
        np.full(len(pixels), 16),
    )
    found, _ = seen.see(loaded, "linear", logits, embedding, looks(pixels, [16] * len(pixels)))
    return observed, found


def kept_by(tmp_path: Path, options: ReviewOptions = CONSENT, **more: object) -> Queue:
    store = Store(f"sqlite:///{tmp_path / 'lifelist.db'}")
    return Queue(store, Blobs(open_storage(tmp_path / "review")), options, **more)  # type: ignore[arg-type]


def test_what_is_sure_is_not_kept_and_what_is_not_is_and_says_why(tmp_path: Path, loaded: session.Loaded) -> None:
    queue = kept_by(tmp_path)
    assert queue.keep(loaded, *shown(loaded, tiny_images(3)), NOON) == 0  # 99 % sure
    between = ((tiny_images(3)[0].astype(int) + tiny_images(3)[1]) // 2).astype(np.uint8)[None]
    observed, found = shown(loaded, np.concatenate([between, images(60, seed=5)]), first=10)
    assert queue.keep(loaded, observed, found, NOON) > 0
    waits = queue.waiting(100)
    by_id = dict(zip(observed.ids, range(len(observed.ids)), strict=True))
    for one in waits:
        k = by_id[one.prediction_id]
        assert ("margin" in one.why) == (found.margin[k] < 0.2)
        other, differs = review.disagreeing(loaded, observed)
        assert ("disagree" in one.why) == bool(differs[k])
        assert "unknown" not in one.why  # this version was not calibrated
        assert one.predicted == observed.best[k]
        assert int(other[k]) in {class_id for class_id, _ in one.suggestions}
        pixels = np.asarray(Image.open(io.BytesIO(queue.image(one.prediction_id))))
        np.testing.assert_array_equal(pixels, observed.images[k])  # as the model saw it
    assert {one.prediction_id for one in waits} == {
        observed.ids[k]
        for k in range(len(found))
        if found.margin[k] < 0.2 or review.disagreeing(loaded, observed)[1][k]
    }
    assert [one.use for one in waits] == sorted((one.use for one in waits), reverse=True)


def uncertain(count: int, seed: int) -> np.ndarray:
    """Images, all different."""
    return images(count, seed=100 + seed)


def wide(**more: object) -> ReviewOptions:
    return ReviewOptions(**({"keep_images": True, "margin": 1.0} | more))  # type: ignore[arg-type]


def test_without_consent_nothing_is_kept(tmp_path: Path, loaded: session.Loaded) -> None:
    queue = kept_by(tmp_path, wide(keep_images=False))
    assert queue.keep(loaded, *shown(loaded, uncertain(20, 1)), NOON) == 0
    assert not (tmp_path / "review" / "blobs").exists()
    assert ReviewOptions().keep_images is False


def test_the_queue_is_bounded_in_all_and_by_the_hour_and_the_least_useful_go(
    tmp_path: Path, loaded: session.Loaded
) -> None:
    queue = kept_by(tmp_path, wide(images=8, per_hour=6))
    for hour in range(4):
        observed, found = shown(loaded, uncertain(20, hour), first=100 * hour)
        assert queue.keep(loaded, observed, found, NOON + 3601 * hour) == 6
        assert queue.keep(loaded, observed, found, NOON + 3601 * hour + 1) == 0
    waits = queue.waiting(100)
    assert len(waits) == 8
    assert len(queue.images.digests()) == 8  # no file is left behind
    queue.options = wide(images=8, per_hour=100)
    assert queue.keep(loaded, *shown(loaded, uncertain(20, 9), first=900), NOON + 9 * 3601)
    assert min(one.use for one in queue.waiting(100)) >= min(one.use for one in waits)


def test_the_same_image_is_kept_once_and_audited_ones_never(tmp_path: Path, loaded: session.Loaded) -> None:
    queue = kept_by(tmp_path, wide(), audited=lambda made: made == "p1")
    pixels = uncertain(2, 1)
    assert queue.keep(loaded, *shown(loaded, pixels), NOON) == 1
    assert queue.keep(loaded, *shown(loaded, pixels[:1], first=50), NOON) == 0
    assert [one.prediction_id for one in queue.waiting(10)] == ["p0"]


def test_what_waited_too_long_is_deleted_and_so_is_all_when_consent_is_taken_back(
    tmp_path: Path, loaded: session.Loaded
) -> None:
    queue = kept_by(tmp_path, wide(days=2))
    queue.keep(loaded, *shown(loaded, uncertain(3, 1)), NOON)
    for path in (tmp_path / "review" / "blobs").rglob("*"):
        if path.is_file():
            os.utime(path, (0, 0))  # as if it had been there for long
    queue.compact(NOON + DAY)
    assert len(queue.waiting(10)) == len(queue.images.digests()) == 3
    queue.compact(NOON + 2 * DAY + 1)
    assert queue.waiting(10) == queue.images.digests() == []
    queue.keep(loaded, *shown(loaded, uncertain(3, 2), first=10), NOON)
    queue.options = wide(keep_images=False)
    queue.compact(NOON + 1)
    assert queue.waiting(10) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    def calibrated(workshop: Workshop) -> None:
        changes = {"confidences": CALIBRATED}
        tiny_version(workshop.registry, BIRDS[:3], first_id=1, parent=1, live=True, changes=changes)

    with serving(tmp_path / "home", before=calibrated, review=wide()) as made:
        yield made


@pytest.fixture
def waiting(server: Server) -> list[str]:
    """Ids of real answers whose images wait."""
    shop, key = server.workshop, key_in(server.settings.secret_file)
    loaded = session.load(shop.registry, 2, provider="cpu")
    observed, found = shown(loaded, uncertain(4, 1))
    ids = tuple(prediction.seal(key, Prediction(2, int(best), "linear", time.time())) for best in observed.best)
    named = replace(observed, ids=ids)
    assert queue(server.settings, shop).keep(loaded, named, found, time.time()) == 4
    return list(ids)


def test_a_person_sees_an_image_labels_it_and_it_becomes_feedback(server: Server, waiting: list[str]) -> None:
    with Client(server.url) as client:
        found = client.reviews()
        assert (found["keeps_images"], found["open"], found["most"]) == (True, 4, 500)
        one = found["images"][0]
        assert {image["prediction_id"] for image in found["images"]} == set(waiting)
        assert one["predicted"]["name"] in BIRDS
        assert one["suggestions"][0]["name"] == one["predicted"]["name"]
        data = client.review_image(one["prediction_id"])
        assert Image.open(io.BytesIO(data)).size == (16, 16)
        truth = next(name for name in BIRDS if name != one["predicted"]["name"])
        said = client.review(one["prediction_id"], truth)
        assert said["state"] == "labelled"
        assert said["example"] is None
        assert said["judged"] is not None
        assert said["judged"]["truth"]["name"] == truth
        after = client.reviews()
        assert (after["open"], after["labelled"]) == (3, 1)
        with pytest.raises(RequestFailed, match="was labelled already; another label goes to POST /v1/feedback"):
            client.review(one["prediction_id"], "gull")
        with pytest.raises(RequestFailed, match="was labelled already"):
            client.review_image(one["prediction_id"])
        assert 'lifelist_feedback_total{outcome="wrong"} 1.0' in client.metrics()
        rows = client.quality(source="feedback")["figures"]
        assert rows == []  # the hard ones alone were asked for: they say nothing of how right answers are


def test_a_skipped_image_is_gone_and_nothing_is_said_of_it(server: Server, waiting: list[str]) -> None:
    with Client(server.url) as client:
        assert client.review(waiting[0], None)["state"] == "skipped"
        found = client.reviews()
        assert (found["open"], found["skipped"]) == (3, 1)
        assert 'lifelist_feedback_total{outcome="correct"} 0.0' in client.metrics()
    assert len(queue(server.settings, server.workshop).images.digests()) == 3


def test_an_image_becomes_an_example_of_a_class_even_of_a_new_one(server: Server, waiting: list[str]) -> None:
    with Client(server.url) as client:
        said = client.review(waiting[0], "wren", example=True)  # nobody knew it
        assert said["example"] is not None
        assert (said["example"]["status"], said["example"]["role"]) == ("accepted", "training")
        assert said["judged"] is not None
        assert said["judged"]["correct"] is False
        known = {one["name"]: one for one in client.classes()["classes"]}
        assert known["wren"]["state"] == "enrolled"  # it answers at once
        again = client.review(waiting[1], known["wren"]["id"], example=True)
        assert again["example"] is not None


def test_bad_verdicts_are_refused_and_the_image_waits_on(server: Server, waiting: list[str]) -> None:
    with Client(server.url) as client:
        for problem, call in (
            ("no class is named 'wren'", lambda: client.review(waiting[0], "wren")),
            ("no class has id|has that id", lambda: client.review(waiting[0], 4711, example=True)),
            ("is kept for review; GET /v1/review lists", lambda: client.review("nothing", "gull")),
            ("is kept for review; GET /v1/review lists", lambda: client.review_image("nothing")),
        ):
            with pytest.raises(RequestFailed, match=problem):
                call()
        assert client.reviews()["open"] == 4
        assert client.reviews(why="margin", limit=2)["images"] == client.reviews(limit=2)["images"]


def test_one_that_was_never_kept_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Missing):
        kept_by(tmp_path).one("x")
