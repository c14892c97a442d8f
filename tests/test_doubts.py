"""What speaks against an estimate: drift in more windows than chance rejects, an audit or a probe apart from it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts import BIRDS, tiny_version

from lifelist.deploy.store import Store
from lifelist.exporter.manifest import Confidence, Confidences
from lifelist.exporter.registry import Registry
from lifelist.monitoring import feedback, figures, probe, quality, tables, times
from lifelist.monitoring.database import put
from lifelist.monitoring.figures import HOUR, MINUTE, NONE, Figure, stretch
from lifelist.monitoring.intervals import Share
from lifelist.monitoring.options import MonitoringOptions
from lifelist.monitoring.probe import GateImage, Probed
from lifelist.serving.prediction import Prediction

NOON = 1_800_000_000.0 // HOUR * HOUR
SURE = tuple(np.linspace(0, 1, 51).tolist())


class Place:
    """A database and a registry with one version of three classes, whose estimate says 90 % of 1,000 answers."""

    def __init__(self, folder: Path, enrolled: Sequence[str] = ()) -> None:
        self.store = Store(f"sqlite:///{folder}/lifelist.db")
        self.registry = Registry(str(folder / "registry"))
        calibrated = Confidences(Confidence(2000, 1.0, SURE, SURE), None)
        self.version = tiny_version(
            self.registry, BIRDS[:3], enrolled=enrolled, changes={"confidences": calibrated}
        ).version
        of_classes = [(0, 100), (1, 200), (2, 700)]
        rows = [("all", NONE, 1000), *(("class", class_id, images) for class_id, images in of_classes)]
        self.add([("estimated", group, class_id, images, 0.9) for group, class_id, images in rows])

    def add(self, rows: Sequence[tuple[str, str, int, int, float]]) -> None:
        made = []
        for source, group, class_id, images, share in rows:
            seconds = HOUR if group == "class" else MINUTE
            key = stretch(NOON, seconds), seconds, self.version, source, group, class_id
            made.append(Figure(*key, images, images, images * share, images))  # type: ignore[arg-type]
        with self.store.writing() as connection:
            figures.add(connection, made)

    def test(self, rejected: Sequence[bool], test: str = "embedding", at: float = NOON) -> None:
        """One window after the other."""
        rows = [
            {"at": times.text(at + k), "version": self.version, "window": "short", "test": test, "images": 150,
             "score": 0.1, "p_value": 0.001, "rejected": one}
            for k, one in enumerate(rejected)
        ]  # fmt: skip
        with self.store.writing() as connection:
            put(connection, tables.drift, rows)

    def doubts(self, since: float = NOON - MINUTE, until: float = NOON + MINUTE) -> list[str]:
        return quality.doubts(self.store, self.registry, MonitoringOptions(), self.version, since, until)


def test_classes_that_were_enrolled_are_a_doubt(tmp_path: Path) -> None:
    place = Place(tmp_path, enrolled=BIRDS[3:5])
    assert place.doubts() == [
        "2 of 5 classes were enrolled and not yet trained: there was no held-out image of them, to see how often "
        "answers that look so sure are right"
    ]
    place.store.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


def test_nothing_speaks_against_an_estimate_without_more(place: Place) -> None:
    assert place.doubts() == []
    assert place.doubts(NOON + 2 * HOUR, NOON + 3 * HOUR) == []  # there is none
    place.test([False] * 20)
    assert place.doubts() == []


@pytest.mark.parametrize(
    ("windows", "rejected", "doubted"), [(1, 1, True), (20, 1, False), (20, 3, True), (20, 20, True)]
)
def test_more_windows_that_differ_than_chance_rejects_are_a_doubt(
    place: Place, windows: int, rejected: int, doubted: bool
) -> None:
    place.test([k < rejected for k in range(windows)])
    found = place.doubts()
    if doubted:
        (said,) = found
        assert said.endswith(f"in {rejected} of {windows} windows of answers, by embedding")
    else:
        assert found == []
    assert place.doubts(NOON + HOUR, NOON + 2 * HOUR) == []


def test_other_shares_of_classes_are_no_doubt_and_tests_are_named_by_how_often(place: Place) -> None:
    place.test([True] * 5, test="classes")
    assert place.doubts() == []
    place.test([True] * 5, test="sharpness")
    place.test([True] * 3 + [False] * 2, test="unknown")
    assert place.doubts() == [
        "images are otherwise than the held-out ones in 5 of 5 windows of answers, by sharpness, unknown"
    ]


@pytest.mark.parametrize(("right", "doubted"), [(0.9, False), (0.85, False), (0.6, True)])
def test_an_audit_that_is_apart_from_the_estimate_is_a_doubt(place: Place, right: float, doubted: bool) -> None:
    for k in range(100):
        made = Prediction(place.version, 0, "linear", NOON, weight=20.0)
        feedback.record(place.store, f"p{k}", made, 0 if k < 100 * right else 1, label_days=9, at=NOON + 5)
    found = place.doubts()
    assert bool(found) == doubted
    if doubted:
        assert found[0].startswith("the audit found 60.0% (50.2% to 69.1%), the estimate is 90.0% (87.5% to 92.1%)")


def probed(place: Place, wrong: Sequence[int], rounds: int = 1) -> None:
    """Forty gate images of each class, of which some classes are answered wrongly, one round after the other."""
    images = [GateImage(f"{class_id}-{k}", class_id) for class_id in range(3) for k in range(40)]
    for number in range(rounds):
        answers = [Probed(i, place.version, (i.class_id + (i.class_id in wrong)) % 3) for i in images]
        probe.record(place.store, place.registry, answers, NOON + number)


def test_a_probe_counts_as_traffic_does_before_it_is_held_against_the_estimate(place: Place) -> None:
    probed(place, wrong=[0])  # a third of the gate images, and a tenth of the traffic
    assert place.doubts() == []
    probed(place, wrong=[2])
    (said,) = place.doubts()
    assert said.startswith("a probe of classes as they come found ")


@pytest.mark.parametrize("rounds", [1, 8])
def test_a_gate_image_that_is_probed_again_is_no_further_image(place: Place, rounds: int) -> None:
    probed(place, wrong=[1], rounds=rounds)
    asked = quality.Asked(NOON - HOUR, NOON + HOUR, groups=("all", "class"), sources=("probe",))
    found = {(one.group, one.class_id): one for one in quality.totals(place.store, place.registry, asked)}
    assert {key: one.images for key, one in found.items()} == {
        ("all", NONE): 120,
        **{("class", k): 40 for k in range(3)},
    }
    (of_all,) = [one.share for key, one in found.items() if key[0] == "all"]
    assert of_all.total == pytest.approx(120)
    assert of_all.ratio == pytest.approx(2 / 3)
    assert found["class", 1].right == 0
    points = quality.curve(place.store, place.registry, asked)
    assert {one.images for one in points if one.group == "all"} == {120}


def test_of_less_than_half_an_image_no_share_is_told_and_parts_of_images_add_up(place: Place) -> None:
    def of_old(at: float, total: float) -> Figure:
        return Figure(
            stretch(at, MINUTE), MINUTE, place.version, "estimated", "old", NONE, 0, total, 0.1 * total, total
        )

    def shown() -> tuple[int, Share]:
        (found,) = quality.totals(place.store, place.registry, quality.Asked(NOON, NOON + HOUR, ("old",)))
        return found.images, quality.share(found, place.registry)

    with place.store.writing() as connection:
        figures.add(connection, [of_old(NOON, 0.3)])
    assert shown() == (0, Share.of(0, 0))
    with place.store.writing() as connection:
        figures.add(connection, [of_old(NOON + k * MINUTE, 0.4) for k in range(1, 26)])
    images, share = shown()
    assert images == 10
    assert share.ratio == pytest.approx(0.1)


def test_an_estimate_rests_on_all_held_out_images_where_the_newest_classes_are_retired(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    made = tiny_version(registry, BIRDS[:4], increments=(0, 0, 1, 1))
    calibrated = Confidences(Confidence(2000, 1.0, SURE, SURE), None)
    classes = tuple(replace(entry, retired=entry.increment == 1) for entry in made.classes)
    draft = replace(made, version=0, kind="change", parent=1, classes=classes, confidences=calibrated)
    version = registry.publish(draft, {}, reuse=made.files).version
    key = stretch(NOON, MINUTE), MINUTE, version, "estimated"
    every, old = (quality.share(Figure(*key, g, NONE, 1000, 1000, 900, 1000), registry) for g in ("all", "old"))  # type: ignore[arg-type]
    assert old == every


def test_a_curve_of_classes_is_by_the_hour_as_they_are_counted(place: Place) -> None:
    for k in (1, 20):
        made = Prediction(place.version, 0, "linear", NOON + k * MINUTE)
        feedback.record(place.store, f"p{k}", made, 0, label_days=9, at=NOON + HOUR)
    asked = quality.Asked(NOON, NOON + HOUR, ("class",), ("feedback",))
    (labels,) = quality.curve(place.store, place.registry, asked)
    assert (labels.images, labels.seconds, asked.seconds) == (2, HOUR, HOUR)
    assert quality.Asked(NOON, NOON + HOUR).seconds == MINUTE
