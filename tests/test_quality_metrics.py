"""What the operator adds to /metrics: of classes, forgetting, bias, calibration, notices and increments."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import BIRDS, tiny_version
from parts_watching import label, values
from prometheus_client import CollectorRegistry

from lifelist.deploy.progress import Progress
from lifelist.deploy.quality import Quality
from lifelist.deploy.store import Store
from lifelist.exporter import confidence
from lifelist.exporter.manifest import BiasCorrection
from lifelist.exporter.registry import Registry
from lifelist.monitoring import confusions, figures, notices, probe, tables, times
from lifelist.monitoring.database import put
from lifelist.monitoring.figures import HOUR, MINUTE, NONE, Figure, stretch
from lifelist.monitoring.intervals import Share
from lifelist.monitoring.options import KINDS
from lifelist.monitoring.probe import GateImage, Probed

NOW = time.time()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Version 1 knows classes 0 to 3; version 2, which is live, learned 4 as well."""
    found = Registry(str(tmp_path / "registry"))
    tiny_version(found, BIRDS[:4], live=True)
    tiny_version(found, BIRDS[:5], increments=(0, 0, 0, 0, 1), live=True, parent=1)
    return found


@pytest.fixture
def page() -> CollectorRegistry:
    return CollectorRegistry()


def seen(store: Store, version: int, source: Any, images: dict[int, tuple[int, int]]) -> None:
    """Figures of classes, as they are counted: {class id: (images, right)}."""
    begins = stretch(NOW, HOUR)
    with store.writing() as connection:
        figures.add(
            connection,
            [
                Figure(begins, HOUR, version, source, "class", class_id, total, total, right, total)
                for class_id, (total, right) in images.items()
            ],
        )


def probed(store: Store, registry: Registry, version: int, answers: list[tuple[int, int]]) -> None:
    """Gate images k of these classes, and what a version took them for: (truth, predicted)."""
    said = [Probed(GateImage(f"{k:064}", truth), version, predicted) for k, (truth, predicted) in enumerate(answers)]
    probe.record(store, registry, said, NOW)


def test_the_classes_asked_about_most_are_shown_and_the_others_are_one(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    seen(store, 2, "estimated", {0: (10, 9), 1: (500, 450), 2: (3, 3), 3: (300, 150), 4: (1, 1)})
    seen(store, 2, "probe", {0: (20, 20), 1: (20, 10), 2: (20, 5), 3: (20, 20), 4: (20, 15)})
    seen(store, 1, "probe", {1: (20, 0)})  # of another version
    Quality(store, registry, page, shown=2)
    assert values(page, "lifelist_class_info") == {("1", "gull", "trained"): 1, ("3", "wren", "trained"): 1}
    images = values(page, "lifelist_class_recall_images")
    assert {key: value for key, value in images.items() if key[1] == "probe"} == {
        ("1", "probe"): 20, ("3", "probe"): 20, ("other", "probe"): 60,
    }  # fmt: skip
    ratios = values(page, "lifelist_class_recall_ratio")
    assert ratios["1", "probe"] == 0.5
    assert ratios["other", "probe"] == pytest.approx(40 / 60)
    assert values(page, "lifelist_class_recall_lower_ratio")["1", "probe"] < 0.5 - 0.15
    assert set(values(page, "lifelist_exemplars")) == {("1",), ("3",), ("other",)}
    assert values(page, "lifelist_classes") == {("trained",): 5, ("enrolled",): 0}


def test_gate_images_that_are_probed_again_are_no_more_images(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    for _ in range(3):
        probed(store, registry, 2, [(k, k if n else 0) for k in range(5) for n in range(4)])
    Quality(store, registry, page, shown=3)
    images = values(page, "lifelist_class_recall_images")
    assert images == {("0", "probe"): 4, ("1", "probe"): 4, ("2", "probe"): 4, ("other", "probe"): 8}
    ratios = values(page, "lifelist_class_recall_ratio")
    assert ratios == {("0", "probe"): 1, ("1", "probe"): 0.75, ("2", "probe"): 0.75, ("other", "probe"): 0.75}
    low = values(page, "lifelist_class_recall_lower_ratio")
    assert low["1", "probe"] == pytest.approx(Share.of(3, 4).low)
    assert low["other", "probe"] == pytest.approx(Share.of(6, 8).low)


def test_labels_count_for_recall_too_and_are_looked_at_again_after_a_while(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    for k in range(4):
        label(store, f"p{k}", 2, 0, 0 if k else 1, NOW - 5, weight=10.0)
    patient, eager = CollectorRegistry(), page
    Quality(store, registry, patient, holds=1e6), Quality(store, registry, eager, holds=0)
    for one in (patient, eager):
        assert values(one, "lifelist_class_recall_ratio")["0", "audit"] == 1.0
        assert values(one, "lifelist_class_recall_ratio")["1", "feedback"] == 0.0
    label(store, "p9", 2, 1, 1, NOW - 5, weight=10.0)
    assert values(eager, "lifelist_class_recall_ratio")["1", "feedback"] == 0.5
    assert values(patient, "lifelist_class_recall_ratio")["1", "feedback"] == 0.0


def test_the_latest_versions_and_the_live_one_have_series_however_many_answered(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    others = [tiny_version(registry, BIRDS[:5], parent=2).version for _ in range(12)]
    begins = stretch(NOW, MINUTE), MINUTE
    with store.writing() as connection:
        said = [Figure(*begins, version, "feedback", "all", NONE, 10, 10, 9, 10) for version in (1, 2, *others)]
        figures.add(connection, said)
    Quality(store, registry, page)
    shown = {int(version) for _, _, version in values(page, "lifelist_accuracy_ratio")}
    assert shown == {2, *others[-10:]}


def test_the_series_of_a_retired_class_go(store: Store, registry: Registry, page: CollectorRegistry) -> None:
    seen(store, 2, "estimated", {0: (10, 9), 1: (500, 450)})
    Quality(store, registry, page, holds=0)
    assert ("1", "gull", "trained") in values(page, "lifelist_class_info")
    from dataclasses import replace

    live = registry.manifest(2)
    entries = tuple(replace(entry, retired=entry.id == 1) for entry in live.classes)
    changed = registry.publish(replace(live, version=0, kind="change", parent=2, classes=entries), {}, reuse=live.files)
    registry.promote(changed.version, registry.ref("live").generation)  # type: ignore[union-attr]
    for name in ("lifelist_class_info", "lifelist_exemplars", "lifelist_class_recall_ratio"):
        assert not [key for key in values(page, name) if key[0] == "1"], name


def test_forgetting_is_the_mean_loss_of_old_classes_against_their_best_version(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    classes = [k for k in range(4) for _ in range(4)]  # four images of each old class
    before = [(truth, truth if k != 15 else 0) for k, truth in enumerate(classes)]  # class 3: 3 of 4
    now = [
        (truth, 4 if k in (0, 1, 4) else truth) for k, truth in enumerate(classes)
    ]  # class 0: 2 of 4, class 1: 3 of 4
    Quality(store, registry, page)
    assert values(page, "lifelist_forgetting_ratio") == {}
    probed(store, registry, 1, before)
    probed(store, registry, 2, [*now, (4, 4), (4, 4), (4, 4)])
    assert values(page, "lifelist_forgetting_ratio") == {(): pytest.approx((0.5 + 0.25 + 0 + 0) / 4)}  # 3 got better: 0
    # 19 images, 3 of the new class; 6 are answered as it, 13 as old ones
    assert values(page, "lifelist_bias_ratio") == {("new",): pytest.approx(6 / 3), ("old",): pytest.approx(13 / 16)}
    for name, images in (("forgetting", {(): 16}), ("bias", {("new",): 19, ("old",): 19})):
        ratio, low, high = (values(page, f"lifelist_{name}{end}_ratio") for end in ("", "_lower", "_upper"))
        assert values(page, f"lifelist_{name}_images") == images
        assert set(ratio) == set(low) == set(high)
        assert all(0 <= low[known] < ratio[known] < high[known] for known in ratio)
    assert values(page, "lifelist_bias_lower_ratio")["new",] == pytest.approx(Share.of(6, 19).low * 19 / 3)
    assert values(page, "lifelist_last_probe_timestamp_seconds")[()] == pytest.approx(NOW, abs=0.01)


def test_drift_is_shown_by_its_latest_test_of_the_live_version(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    row = {"test": "margin", "window": "short", "images": 50, "p_value": 0.5, "rejected": False}
    with store.writing() as connection:
        put(
            connection,
            tables.drift,
            [
                {**row, "at": times.text(NOW - 60), "version": 2, "score": 0.1},
                {**row, "at": times.text(NOW), "version": 2, "score": 0.7, "p_value": 0.001, "rejected": True},
                {**row, "at": times.text(NOW), "version": 1, "score": 0.9},
            ],
        )
    Quality(store, registry, page)
    assert values(page, "lifelist_drift_score") == {("margin", "short"): 0.7}
    assert values(page, "lifelist_drift_p_value") == {("margin", "short"): 0.001}
    assert values(page, "lifelist_drift_rejected") == {("margin", "short"): 1}


def test_notices_are_counted_from_the_start_of_the_process_and_never_fall(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    notices.tell(store, "swap", "before it began")
    Quality(store, registry, page)
    assert values(page, "lifelist_notices_total") == {(kind,): 0 for kind in KINDS}
    for kind in ("swap", "swap", "rollback"):
        notices.tell(store, kind, "after")
    assert values(page, "lifelist_notices_total")["swap",] == 2
    with store.writing() as connection:
        connection.execute(tables.notices.delete())
    notices.tell(store, "swap", "later")
    assert values(page, "lifelist_notices_total")["swap",] == 3
    assert values(page, "lifelist_notices_total")["rollback",] == 1


def test_an_audited_answer_that_is_labelled_twice_counts_once(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    quality = Quality(store, registry, page)
    for truth in (0, 1):
        label(store, "p", 2, 0, truth, NOW - 5, weight=10.0)
        quality.labelled("p", "correct", 5.0, audit=True)
    assert values(page, "lifelist_audit_labelled_total") == {(): 1}
    assert values(page, "lifelist_feedback_total")["correct",] == 2


def test_a_version_whose_files_are_gone_leaves_the_rest_of_the_page(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    from parts import blob_path

    Quality(store, registry, page)
    blob_path(registry, registry.manifest(2), "exemplars.json").unlink()
    assert len(values(page, "lifelist_class_info")) == 5


# ------------------------------------------------------------------------------------------------------ calibration


def answers(n: int, seed: int) -> tuple[confidence.Evidence, np.ndarray]:
    """Scores of three classes, and labels drawn by the probabilities that they mean."""
    random = np.random.default_rng(seed)
    scores = random.normal(0, 2, (n, 3))
    meant = np.exp(scores)
    meant /= meant.sum(axis=1, keepdims=True)
    labels = np.array([random.choice(3, p=row) for row in meant])
    return confidence.Evidence(np.arange(3), scores), labels


def test_the_calibration_error_is_small_where_confidence_is_earned_and_large_where_it_is_not() -> None:
    found, labels = answers(4000, seed=0)
    small = confidence.error(found, labels)
    wrong = labels.copy()
    wrong[::2] = (labels[::2] + 1) % 3  # every second image, which is what is fitted to, means something else
    large = confidence.error(found, wrong)
    assert small is not None
    assert large is not None
    assert small < 0.04 < 0.25 < large


def test_a_calibration_error_needs_enough_images_in_both_halves() -> None:
    found, labels = answers(30, seed=0)
    assert confidence.error(found, labels) is None


# -------------------------------------------------------------------------------------------------------- increments


def test_an_increment_is_followed_from_queue_to_end(store: Store, registry: Registry, page: CollectorRegistry) -> None:
    page.register(Progress(store, registry))
    assert values(page, "lifelist_increments")["queued",] == 0
    assert values(page, "lifelist_trainer_seconds_total") == {(): 0}
    rollout = store.add_rollout("bic", [])
    assert values(page, "lifelist_training_progress_ratio") == {(): 0}
    for state in ("intake", "train"):
        rollout = store.move(rollout, state)
        store.begin_step(rollout)
    epoch = {"phase": "main", "epoch": 3, "epochs": 4, "loss": {"classify_new": 0.5, "distil_old": 0.25}}
    store.tell(rollout.id, "epoch", epoch | {"images_per_second": 90.0, "seconds_left": 2.0})
    assert values(page, "lifelist_increments")["train",] == 1
    assert values(page, "lifelist_training_progress_ratio") == {(): 0.75}
    assert values(page, "lifelist_training_left_seconds") == {(): 2.0}
    assert values(page, "lifelist_training_images_per_second") == {(): 90.0}
    assert values(page, "lifelist_training_loss") == {("classify_new",): 0.5, ("distil_old",): 0.25}
    while_it_trains = values(page, "lifelist_trainer_seconds_total")[()]
    checks = [
        {"name": "classes", "passed": True, "found": None, "limit": None, "message": "as asked"},
        {"name": "old_accuracy", "passed": False, "found": 0.3, "limit": 0.1, "message": "worse"},
        {"name": "new_class_accuracy", "passed": True, "found": None, "limit": 0.5, "message": "not judged: 'wren'"},
    ]
    for state in ("export", "gate", "rejected"):
        rollout = store.move(rollout, state, {"gate": checks} if state == "rejected" else None)
        if state != "rejected":
            store.begin_step(rollout)
    assert values(page, "lifelist_training_progress_ratio") == {(): 1}
    assert values(page, "lifelist_training_left_seconds") == {(): 0}
    assert values(page, "lifelist_trainer_seconds_total")[()] >= while_it_trains
    assert set(values(page, "lifelist_increment_step_seconds")) == {("intake",), ("train",), ("export",), ("gate",)}
    found = values(page, "lifelist_gate_check")
    assert (found["classes",], found["old_accuracy",]) == (1, 0)
    assert math.isnan(found["new_class_accuracy",])
    assert values(page, "lifelist_gate_found") == {("old_accuracy",): 0.3}
    assert values(page, "lifelist_gate_limit") == {("old_accuracy",): 0.1, ("new_class_accuracy",): 0.5}
    assert values(page, "lifelist_increments")["rejected",] == 1


def test_a_gate_that_had_nothing_to_ask_is_not_inconclusive(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    page.register(Progress(store, registry))
    rollout = store.add_rollout("bic", [])
    none = {"name": "new_class_accuracy", "passed": True, "found": None, "limit": 0.5, "message": "no class is new"}
    store.move(rollout, "failed", {"gate": [none]})
    assert values(page, "lifelist_gate_check") == {("new_class_accuracy",): 1}


def test_corrections_are_those_of_the_increments_that_live_comes_from(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    def learned(version: int, parent: int, alpha: float, count: int) -> None:
        increments = (0, 0, 0, 0, *range(1, count - 3))
        changes = {"bias": BiasCorrection(alpha, 0.5, count - 1, count)}
        tiny_version(registry, BIRDS[:count], increments=increments, parent=parent, live=True, changes=changes)

    learned(3, 2, 0.8, 6)
    learned(4, 2, 0.9, 6)  # beside it: not an ancestor
    registry.promote(3, registry.ref("live").generation)  # type: ignore[union-attr]
    learned(5, 3, 0.7, 7)
    page.register(Progress(store, registry))
    assert values(page, "lifelist_bic_alpha") == {("3",): 0.7, ("2",): 0.8}
    assert values(page, "lifelist_bic_beta") == {("3",): 0.5, ("2",): 0.5}
    promoted = values(page, "lifelist_last_promotion_timestamp_seconds")[()]
    assert promoted == pytest.approx(time.time(), abs=60)


def test_the_page_names_every_metric_that_the_operator_adds(
    store: Store, registry: Registry, page: CollectorRegistry
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "monitoring" / "grafana.md").read_text()
    Quality(store, registry, page)
    page.register(Progress(store, registry))
    store.add_rollout("bic", [])
    names = {f"{family.name}{'_total' if family.type == 'counter' else ''}" for family in page.collect()}
    assert len(names) > 35
    assert {name for name in names if f"`{name}" not in text} == set()


def test_probes_of_the_same_images_again_and_again_confuse_no_more_than_one(store: Store, registry: Registry) -> None:
    said = [Probed(GateImage(f"{k:064}", 4 if k < 10 else 0), 2, 0 if k % 5 else 4) for k in range(30)]
    for k in range(12):
        probe.record(store, registry, said, NOW + 300 * k)
    found = confusions.found(store, registry, NOW - HOUR, NOW + 2 * HOUR, 2, "probe")
    assert found == {(4, 4): 2, (4, 0): 8, (0, 4): 4, (0, 0): 16}
    worst = confusions.worst(found, 10)
    assert [(one.truth, one.predicted, one.images, one.share) for one in worst] == [
        (4, 0, 8, Share.of(8, 10)), (0, 4, 4, Share.of(4, 20)),
    ]  # fmt: skip
    bias = confusions.bias(found, {4})
    assert bias == confusions.Bias(30, 10 / 30, Share.of(6, 30))
    assert confusions.bias({(0, 0): 16.0}, {4}) is None
