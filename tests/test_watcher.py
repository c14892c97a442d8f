"""The watcher looks: probes after swaps, alarms by intervals, drift against the version's own held-out images."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from parts_rollout import NAMES, add, learn, pictures, prepared, settings

from lifelist.deploy import enrol, examples
from lifelist.deploy.workshop import Workshop, open_workshop
from lifelist.exporter import answering, index, session
from lifelist.exporter.errors import Failed
from lifelist.exporter.imagery import LOOKS
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.preprocess import decode
from lifelist.exporter.provisional import HELD_OUT
from lifelist.monitoring import figures, notices, quality, tables
from lifelist.monitoring.intervals import Share
from lifelist.monitoring.options import MonitoringOptions
from lifelist.monitoring.probe import GateImage, Probed
from lifelist.monitoring.watcher import Outside, Watcher
from lifelist.serving.observed import Observations

NOON = float(int(time.time()))  # the registry notes real times, of swaps
OPTIONS = MonitoringOptions(window=50, long_window=400, hold_s=600)


class World:
    """A server without its server: what is live answers, in this process, by its own graph."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.answered: list[Observations] = []
        self.down = False
        self.asked: list[int] = []  # gate images in each probe

    @property
    def loaded(self) -> session.Loaded:
        live = self.workshop.live
        assert live is not None
        return session.load(self.workshop.registry, live.version, provider="cpu")

    def outside(self) -> Outside:
        def observe() -> Sequence[Observations]:
            found, self.answered = self.answered, []
            return found

        def probe(images: Sequence[GateImage]) -> Sequence[Probed]:
            if self.down:
                raise Failed("a probe was answered 503")
            self.asked.append(len(images))
            loaded = self.loaded
            shown = examples.pixels(self.workshop, [image.sha256 for image in images], loaded.manifest.preprocess)
            best = self._best(*loaded.run(shown), loaded)
            return [Probed(image, loaded.version, class_id) for image, class_id in zip(images, best, strict=True)]

        def gate() -> Sequence[GateImage]:
            kept = examples.kept(self.workshop.store)
            return [GateImage(found.sha256, found.class_id) for found in kept if found.role == "gate"]

        return Outside(observe, probe, gate)

    def _best(self, logits: np.ndarray, embedding: np.ndarray, loaded: session.Loaded) -> list[int]:
        linear = loaded.manifest.default_answer == "linear"
        rankings = loaded.linear(logits, 1) if linear else loaded.nearest_mean(embedding, 1)
        return [ranking[0][0] for ranking in rankings]

    def serve(self, images: np.ndarray, side: int = 8) -> None:
        """Images are asked about, as traffic; side: of the files, which the pictures of parts_rollout have."""
        loaded = self.loaded
        logits, embedding = loaded.run(images)
        best = self._best(logits, embedding, loaded)
        self.answered.append(
            Observations(
                loaded.version, loaded.manifest.default_answer, "fp32", len(images),
                tuple(map(str, range(len(images)))),
                np.full(len(images), NOON), np.array(best), logits, embedding, images, np.full(len(images), side),
            )
        )  # fmt: skip


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return prepared(tmp_path, count=200)


@pytest.fixture
def world(workshop: Workshop) -> World:
    return World(workshop)


def watcher(world: World, **changes: object) -> Watcher:
    options = OPTIONS.model_copy(update=changes)
    return Watcher(world.workshop.store, world.workshop.registry, options, world.outside(), seed=0)


def shown(world: World, names: Sequence[str], count: int, first: int, dim: float = 1.0) -> np.ndarray:
    """New pictures of classes, in turn; dim: how bright."""
    files = [pictures(name, count, first) for name in names]
    mixed = [data for together in zip(*files, strict=True) for _, data in together]
    pixels = np.stack([decode(data, world.loaded.manifest.preprocess) for data in mixed])
    return (pixels * dim).astype(np.uint8)


def raised(world: World) -> list[str]:
    return [one.name for one in notices.alarms(world.workshop.store) if one.state == "raised"]


def told(world: World) -> list[tuple[str, int | None]]:
    return [(one.kind, one.version) for one in reversed(notices.told(world.workshop.store))]


def of_probes(world: World) -> dict[tuple[int, str], tuple[float, float]]:
    found = figures.read(world.workshop.store, 0, 2 * NOON, sources=("probe",))
    return {(one.version, one.group): (one.right, one.total) for one in figures.over(found, None)}


def test_a_probe_asks_about_gate_images_at_the_start_then_every_few_minutes_and_after_each_swap(world: World) -> None:
    looks = watcher(world, probe_every_s=300, probe_images=30)
    for at in (0, 10, 299, 300, 310):
        looks.look(NOON + at)
    assert world.asked == [30, 30]
    assert of_probes(world) == {(1, "all"): (60, 60), (1, "old"): (60, 60)}
    (twice,) = figures.over(figures.read(world.workshop.store, 0, 2 * NOON, groups=("all",), sources=("probe",)), None)
    assert twice.share == Share.of(30, 30)  # the same thirty images, asked about twice, tell no more than once
    add(world.workshop, ["blue"], count=100)
    assert enrol.enrol(world.workshop) is not None
    looks.look(NOON + 320)
    assert world.asked == [30, 30, 30]
    assert of_probes(world)[2, "all"] == (30, 30)
    assert told(world) == [("swap", 2)]
    assert raised(world) == []


def test_where_answers_are_not_watched_alarms_end_and_swaps_are_told_all_the_same(world: World) -> None:
    world.down = True
    watcher(world).look(NOON)
    assert raised(world) == ["probe.failed"]
    add(world.workshop, ["blue"], count=100)
    assert enrol.enrol(world.workshop) is not None
    looks = watcher(world, enabled=False)
    looks.look(NOON + 1)
    looks.look(NOON + 1000)
    assert raised(world) == []
    assert told(world) == [("alarm", 1), ("swap", 2), ("cleared", None)]
    assert notices.alarms(world.workshop.store)[0].message == "nobody looks any more: monitoring.enabled is off"
    assert of_probes(world) == {}


def broken(workshop: Workshop, live: Manifest) -> Manifest:
    """A version that takes one class for the other: the mean of the first lies on the other side."""
    loaded = session.load(workshop.registry, live.version)
    means = loaded.means.means()
    means[0] = -means[0]
    files = {answering.MEANS: index.build(loaded.means.ids, means)}
    draft = replace(live, version=0, kind="change", parent=live.version, default_answer="nearest_mean")
    shared = [entry for entry in live.files if entry.name not in files]
    return workshop.registry.publish(draft, files, reuse=shared)


def test_a_version_that_harms_old_classes_is_named_by_the_first_probe(world: World) -> None:
    workshop, looks = world.workshop, watcher(world)
    looks.look(NOON)
    live = workshop.live
    assert live is not None
    bad = broken(workshop, live)
    workshop.swap(bad.version, 1)
    looks.look(NOON + 10)
    assert "accuracy.old" in raised(world)
    alarm = next(one for one in notices.told(workshop.store) if one.data.get("alarm") == "accuracy.old")
    assert alarm.version == bad.version
    assert alarm.data["before"] == live.version
    lost = f"right {-100 * alarm.data['change']:.1f} points less often than version 1"
    assert lost in alarm.message
    assert "of classes that version 1 knew" in alarm.message
    workshop.swap(live.version, 2)
    looks.look(NOON + 20)
    assert raised(world) == []
    assert [kind for kind, _ in told(world)].count("cleared") >= 1


def test_swaps_that_went_by_while_nobody_watched_are_told_by_the_next_watcher(world: World) -> None:
    workshop, first = world.workshop, watcher(world)
    first.look(NOON)
    assert "swap" not in {kind for kind, _ in told(world)}
    live = workshop.live
    assert live is not None
    numbers = [broken(workshop, live).version for _ in range(3)]
    workshop.swap(numbers[0], 1)
    watcher(world).look(NOON + 10)  # the first notice of a swap that there is
    assert [version for kind, version in told(world) if kind == "swap"] == numbers[:1]
    for generation, number in enumerate(numbers[1:], 2):
        workshop.swap(number, generation)
    for at in (20, 30):
        watcher(world).look(NOON + at)
    assert [version for kind, version in told(world) if kind == "swap"] == numbers


def test_probes_that_are_not_answered_are_told_once(world: World) -> None:
    looks = watcher(world, probe_every_s=10)
    world.down = True
    for at in (0, 10, 20):
        looks.look(NOON + at)
    assert raised(world) == ["probe.failed"]
    assert told(world) == [("alarm", 1)]
    again = watcher(world, probe_every_s=10)  # a watcher that was killed raises nothing anew
    again.look(NOON + 30)
    world.down = False
    again.look(NOON + 40)
    assert raised(world) == []
    assert told(world) == [("alarm", 1), ("cleared", 1)]


def test_quiet_traffic_raises_nothing_and_its_estimate_is_right(world: World) -> None:
    looks = watcher(world)
    for k in range(12):
        world.serve(shown(world, NAMES[:2], 25, first=1000 + 25 * k))
        looks.look(NOON + 5 * k)
    assert raised(world) == []
    (of_all,) = figures.over(
        figures.read(world.workshop.store, 0, 2 * NOON, sources=("estimated",), groups=("all",)), None
    )
    assert of_all.images == 600
    assert of_all.share.ratio == pytest.approx(1.0, abs=0.02)  # the colours are easily told


def test_darkness_raises_an_alarm_after_two_windows_and_day_ends_it(world: World) -> None:
    looks = watcher(world)
    seen_after = None
    for k in range(4):
        world.serve(shown(world, NAMES[:2], 25, first=1000 + 25 * k, dim=0.6))
        looks.look(NOON + k)
        if seen_after is None and "drift.brightness.short" in raised(world):
            seen_after = 50 * (k + 1)
    assert seen_after == 100
    for k in range(4):
        world.serve(shown(world, NAMES[:2], 25, first=2000 + 25 * k))
        looks.look(NOON + 10 + k)
    assert "drift.brightness.short" not in raised(world)


def test_a_version_keeps_how_large_its_held_out_images_came(tmp_path: Path) -> None:
    workshop = open_workshop(settings(tmp_path, image_size=16, epochs=1))
    assert learn(workshop, *NAMES[:2], count=30).state == "done"
    assert workshop.live is not None
    held = answering.held_out(workshop.registry, workshop.live)
    assert held is not None
    assert set(held.looks[:, LOOKS.index("size")].tolist()) == {3.0}  # log2 of 8 pixels; the model sees 16


def test_images_of_another_size_raise_an_alarm_though_those_held_out_were_all_of_one(world: World) -> None:
    looks = watcher(world)
    for k in range(2):
        world.serve(shown(world, NAMES[:2], 25, first=1000 + 25 * k))
        looks.look(NOON + k)
    tested = {row["test"]: row for row in quality.drift_tests(world.workshop.store, 1)}["size"]
    assert (tested["score"], tested["rejected"]) == (0, False)
    assert raised(world) == []
    for k in range(2):
        world.serve(shown(world, NAMES[:2], 25, first=2000 + 25 * k), side=4)
        looks.look(NOON + 10 + k)
    assert raised(world) == ["drift.size.short"]


def test_a_version_from_before_sizes_were_kept_is_tested_by_all_else_and_the_log_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    registry, live = world.workshop.registry, world.workshop.live
    assert live is not None
    held = answering.held_out(registry, live)
    assert held is not None
    older = replace(held, looks=held.looks[:, :3].copy())
    shared = [entry for entry in live.files if entry.name != HELD_OUT]
    made = registry.publish(replace(live, version=0, parent=1), {HELD_OUT: older.as_bytes()}, reuse=shared)
    looks = watcher(world)
    for k in range(2):
        world.serve(shown(world, NAMES[:2], 25, first=1000), side=4)
        looks.look(NOON - 10 + k)
    assert raised(world) == ["drift.size.short"]
    world.workshop.swap(made.version, 1)
    world.serve(shown(world, NAMES[:2], 25, first=1000), side=4)
    looks.look(NOON)
    assert raised(world) == []  # of what cannot be tested any more nothing is said
    tested = {row["test"] for row in quality.drift_tests(world.workshop.store, made.version)}
    assert "size" not in tested
    assert {"embedding", "brightness", "contrast", "sharpness"} <= tested
    (said,) = (record for record in caplog.records if record.getMessage() == "drift.untested")
    assert said.facts == {"version": made.version, "tests": ["size"]}  # type: ignore[attr-defined]


def test_other_shares_of_classes_are_found_in_short_windows_and_a_smaller_change_in_long_ones(world: World) -> None:
    looks, seconds = watcher(world, long_window=200), itertools.count()
    of_each = [shown(world, [name], 50, first=1000) for name in NAMES[:2]]

    def served(first: int, windows: int) -> None:
        for _ in range(windows):
            world.serve(np.concatenate([of_each[0][:first], of_each[1][: 50 - first]]))
            looks.look(NOON + next(seconds))

    served(25, 16)
    assert raised(world) == []
    served(33, 8)
    assert raised(world) == ["drift.classes.long"]
    served(48, 2)
    assert sorted(raised(world)) == ["drift.classes.long", "drift.classes.short"]


def drift_is_held(world: World, looks: Watcher, names: Sequence[str]) -> None:
    """Darker images raise nothing now, and do later."""
    for k in range(4):
        world.serve(shown(world, names, 25, first=1000 + 25 * k, dim=0.6))
        looks.look(NOON + 10 + k)
    assert raised(world) == []
    for k in range(4):
        world.serve(shown(world, NAMES[:2], 25, first=2000 + 25 * k, dim=0.6))
        looks.look(NOON + 10_000 + k)
    assert "drift.brightness.short" in raised(world)


def test_while_classes_have_just_changed_drift_raises_nothing(world: World) -> None:
    looks = watcher(world)
    looks.look(NOON)
    add(world.workshop, ["blue"], count=100)
    assert enrol.enrol(world.workshop) is not None
    drift_is_held(world, looks, NAMES[:3])


def test_after_an_increment_of_known_classes_drift_raises_nothing_either(world: World) -> None:
    looks = watcher(world)
    looks.look(NOON)
    assert learn(world.workshop, "red", count=240).version == 2
    drift_is_held(world, looks, NAMES[:2])


def test_several_windows_in_one_look_are_a_row_each(world: World) -> None:
    looks = watcher(world)
    world.serve(shown(world, NAMES[:2], 50, first=1000))
    world.serve(shown(world, NAMES[:2], 25, first=2000))  # by another replica
    looks.look(NOON)
    with world.workshop.store.reading() as connection:
        c = tables.drift.c
        assert connection.scalar(sa.select(sa.func.count()).where(c.test == "brightness")) == 3


def test_a_clock_that_is_set_back_stops_no_probe(world: World) -> None:
    looks = watcher(world, probe_every_s=300, probe_images=30)
    for at in (0, -7200, -7190, -6900):
        looks.look(NOON + at)
    assert world.asked == [30, 30, 30]


def test_a_class_that_is_enrolled_and_hardly_recognised_is_no_fall_of_the_version(world: World) -> None:
    looks = watcher(world)
    looks.look(NOON)
    mixed = [picture for name in NAMES[:2] for picture in pictures(name, 100, first=3000)]
    assert {result.status for result in examples.add(world.workshop, "mixed", mixed)} == {"accepted"}
    live = enrol.enrol(world.workshop)
    assert live is not None
    looks.look(NOON + 1)
    [probed] = figures.read(world.workshop.store, 0, NOON + 60, versions=[live.version], groups=("all",), whole=True)
    assert probed.right < 0.8 * probed.total
    assert raised(world) == []
