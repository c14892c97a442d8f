"""Which images are kept: greedy herding, the prefix property, the budget (acceptance tests 3 and 4)."""

import itertools
from dataclasses import replace

import pytest
import torch
from parts_training import TINY, bic, tasks

from lifelist.exporter.errors import BadInput
from lifelist.training import evaluate
from lifelist.training.evaluate import unit
from lifelist.training.exemplars import at_random, herd, nearest, shares
from lifelist.training.increment import learn, load_network
from lifelist.training.loop import start


def vectors(count: int = 200, dim: int = 16) -> torch.Tensor:
    """Unit rows, about a mean that is not zero."""
    return unit(torch.randn(count, dim, generator=torch.Generator().manual_seed(3)) + 0.5)


def test_herding_is_algorithm_4_of_the_paper() -> None:
    features = vectors().double()
    mean, chosen = features.mean(0), []
    for k in range(1, 41):
        total = features[chosen].sum(0) if chosen else torch.zeros(16)
        distance = (mean - (features + total) / k).norm(dim=1)
        distance[chosen] = torch.inf
        chosen.append(int(distance.argmin()))
    assert herd(features, 40).tolist() == chosen


def test_a_smaller_memory_is_a_prefix_of_a_larger_one() -> None:
    features = vectors()
    for select in (herd, nearest):
        whole = select(features, 200).tolist()
        assert sorted(whole) == list(range(200))
        assert all(select(features, m).tolist() == whole[:m] for m in (1, 7, 60))
    draws = [at_random(200, m, torch.Generator().manual_seed(5)).tolist() for m in (200, 60, 1)]
    assert draws[1:] == [draws[0][:60], draws[0][:1]]


def test_herding_follows_the_mean_better_than_the_nearest_images_do() -> None:
    features = vectors()
    far = {rule: (features[rule(features, 10)].mean(0) - features.mean(0)).norm() for rule in (herd, nearest)}
    assert far[herd] < far[nearest] / 2


def test_herding_never_picks_an_image_twice_even_among_copies() -> None:
    features = vectors(3).repeat(5, 1)
    assert sorted(herd(features, 15).tolist()) == list(range(15))


def test_e6_nearest_exemplars_are_nearest_among_unit_rows_not_among_normalised_columns() -> None:
    base = bic()[0][0]
    task = replace(base, options=replace(base.options, selection="nearest"))
    learned = learn(task)
    net = load_network(learned.checkpoint, task.options, 3)
    run = start(task.options, mean=learned.mean, std=learned.std)
    chosen = {"rows": [], "columns": []}  # type: dict[str, list[tuple[str, ...]]]
    for class_id in range(3):
        images = task.images.take(task.of(class_id, 0))
        raw = evaluate.features(net, images.pixels, run)
        for what, axis in (("rows", 1), ("columns", 0)):
            features = raw / raw.norm(dim=axis, keepdim=True).clamp(min=1e-12)
            order = (features - features.mean(0)).norm(dim=1).argsort()
            chosen[what].append(images.take(order[:5]).ids)
    assert [learned.exemplars[c][:5] for c in range(3)] == chosen["rows"] != chosen["columns"]


def test_asking_for_more_than_there_are_says_how_many_there_are() -> None:
    for ask in (lambda: herd(vectors(3), 4), lambda: nearest(vectors(3), 0)):
        with pytest.raises(BadInput, match="with 3 images; ask for 1 … 3"):
            ask()
    with pytest.raises(BadInput, match="with 3 images"):
        at_random(3, 4, torch.Generator())


@pytest.mark.parametrize("classes", [1, 6, 7, 10, 13, 100])
@pytest.mark.parametrize("memory", [0, 5, 100, 2000])
@pytest.mark.parametrize("reserved", [True, False])
def test_i14_the_memory_never_exceeds_its_budget_holdout_included(classes: int, memory: int, reserved: bool) -> None:
    exemplars, holdout = shares(replace(TINY, memory_total=memory), classes, reserved=reserved)
    assert classes * (exemplars + holdout) <= memory
    assert min(exemplars, holdout) >= 0
    assert reserved or holdout == 0


@pytest.mark.parametrize(
    ("memory", "classes", "expected"), [(2000, 10, (180, 20)), (2000, 100, (18, 2)), (400, 6, (60, 6))]
)
def test_a_tenth_of_the_memory_is_holdout(memory: int, classes: int, expected: tuple[int, int]) -> None:
    assert shares(replace(TINY, memory_total=memory), classes, reserved=True) == expected


def test_a_small_share_still_reserves_one_image_but_never_the_only_one() -> None:
    assert shares(replace(TINY, memory_total=30), 6, reserved=True) == (4, 1)
    assert shares(replace(TINY, memory_total=6), 6, reserved=True) == (1, 0)


def test_a_budget_for_each_class_does_not_shrink_as_classes_come() -> None:
    options = replace(TINY, memory_per_class=20)
    assert shares(options, 2, reserved=True) == shares(options, 200, reserved=True) == (18, 2)


def test_i9_a_class_is_ranked_once_and_later_keeps_a_prefix_of_that() -> None:
    found = bic()
    for (_, earlier), (_, later) in itertools.pairwise(found):
        for class_id, ids in earlier.exemplars.items():
            assert later.exemplars[class_id] == ids[: len(later.exemplars[class_id])]
        for class_id, ids in earlier.holdout.items():
            assert later.holdout[class_id] == ids[: len(later.holdout[class_id])]


def test_exemplars_and_holdout_together_stay_inside_the_budget_of_every_increment() -> None:
    for task, learned in bic():
        kept = sum(len(ids) for ids in (*learned.exemplars.values(), *learned.holdout.values()))
        assert kept <= task.options.memory_total
        assert set(learned.exemplars) == set(task.class_ids)


def test_new_classes_are_ranked_by_the_network_that_has_just_learnt_them() -> None:
    task, learned = bic()[1]
    net = load_network(learned.checkpoint, task.options, 5)
    run = start(task.options, mean=learned.mean, std=learned.std)
    images = task.images.take(task.of(4, 0))
    ranked = herd(unit(evaluate.features(net, images.pixels, run)), len(learned.exemplars[4]))
    assert learned.exemplars[4] == images.take(ranked).ids


@pytest.mark.parametrize("selection", ["nearest", "random"])
def test_other_selections_keep_as_many(selection: str) -> None:
    task = bic()[0][0]
    other = learn(replace(task, options=replace(task.options, selection=selection)))  # type: ignore[arg-type]
    assert {c: len(ids) for c, ids in other.exemplars.items()} == {c: len(i) for c, i in bic()[0][1].exemplars.items()}
    assert other.exemplars != bic()[0][1].exemplars
    assert other.checkpoint == bic()[0][1].checkpoint


def test_i3_class_means_include_mirrored_exemplars() -> None:
    task, learned = tasks(replace(TINY, flip=True), groups=((0, 1),))[0]
    net = load_network(learned.checkpoint, task.options, 2)
    run = start(task.options, mean=learned.mean, std=learned.std)
    place = {image_id: k for k, image_id in enumerate(task.images.ids)}
    pixels = task.images.pixels[[place[i] for i in learned.exemplars[1]]]
    plain, mirrored = (unit(evaluate.features(net, p, run)) for p in (pixels, pixels.flip(2)))
    torch.testing.assert_close(learned.means[1], unit((plain.mean(0) + mirrored.mean(0)) / 2))
    assert (learned.means[1] - unit(plain.mean(0))).norm() > 1e-4


def test_means_leave_mirrored_images_out_where_training_does_not_mirror() -> None:
    task, learned = bic()[0]
    net = load_network(learned.checkpoint, task.options, 3)
    run = start(task.options, mean=learned.mean, std=learned.std)
    place = {image_id: k for k, image_id in enumerate(task.images.ids)}
    for row in range(3):
        pixels = task.images.pixels[[place[i] for i in learned.exemplars[row]]]
        torch.testing.assert_close(learned.means[row], unit(unit(evaluate.features(net, pixels, run)).mean(0)))


def test_i8_means_are_those_of_the_network_that_answers_for_every_class() -> None:
    (_, first), (task, second) = bic()[0], bic()[1]
    assert second.means.shape == (5, second.embedding_dim)
    torch.testing.assert_close(second.means.norm(dim=1), torch.ones(5))
    assert not torch.allclose(second.means[:3], first.means)  # old classes' are made anew
    assert set(second.evaluation["nearest_mean"]["per_class"]) == {str(c) for c in task.class_ids}


def test_i13_means_are_of_exemplars_not_of_all_training_images() -> None:
    task, learned = tasks(replace(TINY, memory_total=12), groups=((0, 1),))[0]
    net = load_network(learned.checkpoint, task.options, 2)
    run = start(task.options, mean=learned.mean, std=learned.std)
    assert len(learned.exemplars[0]) == 5
    everything = unit(unit(evaluate.features(net, task.images.pixels[task.of(0, 0)], run)).mean(0))
    assert (learned.means[0] - everything).norm() > 1e-4


def test_nearest_mean_answers_are_those_of_the_largest_product_even_for_a_vector_of_zeros() -> None:
    means, raw = vectors(10), torch.randn(10_000, 16, generator=torch.Generator().manual_seed(2))
    raw[0] = 0
    distance = torch.cdist(unit(raw).double(), means.double())
    found = evaluate.by_nearest_mean(raw, means)
    assert torch.equal(found[1:], distance.argmin(1)[1:])
    assert 0 <= int(found[0]) < 10
