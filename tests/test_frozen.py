"""The methods whose backbone is frozen after the base: nearest class mean and ridge regression, from sums alone."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts_training import BLACK_AND_WHITE, TINY, few, noise, tasks
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lifelist.exporter import graph, parity
from lifelist.exporter.errors import BadInput, Corrupt
from lifelist.exporter.manifest import Preprocess
from lifelist.training import evaluate, network, rebalance
from lifelist.training.checkpoint import unpack
from lifelist.training.data import GATE, TRAINING
from lifelist.training.experiment import Result, next_task, run_experiment
from lifelist.training.increment import learn, load_network
from lifelist.training.job import Learned, Task, read_result, read_task, write_result, write_task
from lifelist.training.loop import Event, start
from lifelist.training.methods import METHODS
from lifelist.training.network import Network
from lifelist.training.rebalance import RHOS, Increment, fit_scale, ridge
from lifelist.training.statistics import Statistics, Sums, add, as_bytes, from_bytes, solve, without

FROZEN = tuple(name for name, method in METHODS.items() if method.frozen)
COUNTS = {4: 30, 0: 7, 9: 100, 2: 1}  # images of each class: uneven, and in no order
DIM = 12


def features_of(class_id: int) -> Tensor:
    """N×12 float32: what a backbone might make of a class, with very different spreads of its numbers."""
    lot = torch.Generator().manual_seed(class_id)
    spread = torch.logspace(-2, 1, DIM)
    return (torch.randn(COUNTS[class_id], DIM, generator=lot) + torch.randn(DIM, generator=lot)).abs() * spread


def collected(class_ids: Sequence[int]) -> Statistics:
    found: Statistics = {}
    for class_id in class_ids:
        found = add(found, class_id, Sums.of(features_of(class_id)))
    return found


def in_rows(statistics: Statistics, class_ids: Sequence[int] = tuple(COUNTS)) -> list[Sums]:
    return [statistics[class_id] for class_id in class_ids]


def written_out(class_ids: Sequence[int], rho: float) -> Tensor:
    """C×(D+1): the same regression as least squares on every image, weighed, with the penalty as rows below them."""
    x = torch.cat([features_of(c).double() for c in class_ids])
    y = torch.cat([torch.full((COUNTS[c],), row) for row, c in enumerate(class_ids)])
    weight = (1 / torch.bincount(y)[y].double()).sqrt()[:, None]
    penalty = rho * (weight * x).square().sum(0).mean()
    below = torch.cat([penalty.sqrt() * torch.eye(DIM, dtype=torch.float64), torch.zeros(DIM, 1)], 1)
    rows = torch.cat([weight * torch.cat([x, torch.ones(len(x), 1)], 1), below])
    wanted = torch.cat([weight * one_hot(y), torch.zeros(DIM, len(class_ids))])
    return torch.linalg.lstsq(rows, wanted).solution.T


def solved(classes: Sequence[Sums], rho: float = 1e-3) -> Tensor:
    weight, bias = solve(classes, rho)
    return torch.cat([weight, bias[:, None]], 1)


def apart(one: Tensor, other: Tensor) -> float:
    """Relative difference."""
    return float((one - other).norm() / other.norm())


# ----------------------------------------------------------------------------------------------------------- sums


@pytest.mark.parametrize("rho", [1e-5, 1e-3, 1.0])
def test_ridge_from_sums_is_ridge_on_all_images_with_each_class_weighing_the_same(rho: float) -> None:
    assert apart(solved(in_rows(collected([*COUNTS])), rho), written_out([*COUNTS], rho)) < 1e-6


def test_classes_in_any_order_give_the_same_ridge() -> None:
    wanted = solved(in_rows(collected([*COUNTS])))
    for order in itertools.permutations(COUNTS):
        assert apart(solved(in_rows(collected(order))), wanted) < 1e-6
        rows = [order.index(class_id) for class_id in COUNTS]
        assert apart(solved(in_rows(collected(order), order))[rows], wanted) < 1e-6  # rows may be in any order, too


@pytest.mark.parametrize("at", [1, 50, 99])
def test_images_of_a_known_class_that_come_later_count_as_if_they_had_been_there(at: int) -> None:
    raw = features_of(9)
    found = add({}, 9, Sums.of(raw[:at]))
    for class_id in (4, 0, 2):
        found = add(found, class_id, Sums.of(features_of(class_id)))
    found = add(found, 9, Sums.of(raw[at:]))
    assert found[9].count == 100
    assert apart(solved(in_rows(found)), solved(in_rows(collected([*COUNTS])))) < 1e-6
    assert torch.allclose(found[9].mean, evaluate.class_mean(raw), atol=1e-6)


def test_a_class_that_is_removed_might_never_have_been() -> None:
    left = [4, 0, 2]
    found = without(collected([*COUNTS]), 9)
    assert set(found) == set(left)
    assert torch.equal(solved(in_rows(found, left)), solved(in_rows(collected(left), left)))


def test_mirror_images_weigh_half_in_means_and_in_ridge() -> None:
    plain, mirrored = features_of(4), features_of(9)[:30]
    both = Sums.of(plain, mirrored)
    assert both.count == 30
    assert torch.allclose(both.mean, evaluate.class_mean(plain, mirrored), atol=1e-6)
    once = Sums.of(torch.cat([plain, mirrored]))  # the same as twice as many images
    assert torch.allclose(both.products, once.products / 2)


def test_features_that_are_all_zero_are_no_error() -> None:
    weight, bias = solve([Sums.of(torch.zeros(3, 4)), Sums.of(torch.zeros(5, 4))], 1e-3)
    assert torch.equal(weight, torch.zeros(2, 4, dtype=torch.float64))
    assert torch.allclose(bias, torch.full((2,), 0.5, dtype=torch.float64))


def test_statistics_are_written_and_read_and_those_of_another_network_are_refused() -> None:
    found = collected([*COUNTS])
    data = as_bytes(found)
    assert data == as_bytes(collected(sorted(COUNTS)))
    assert len(data) < 4 * (8 * (DIM + (DIM + 1) * (DIM + 2) // 2) + 16) + 500
    again = from_bytes(data, DIM)
    assert torch.equal(solved(in_rows(again)), solved(in_rows(found)))
    assert {c: sums.count for c, sums in again.items()} == COUNTS
    with pytest.raises(Corrupt, match=r"for features of 64 numbers"):
        from_bytes(data, 64)


# ---------------------------------------------------------------------------------------------------------- scores


def test_the_scale_is_the_likeliest_one() -> None:
    lot = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 5, generator=lot, dtype=torch.float64)
    rows = torch.multinomial(torch.softmax(3 * logits, 1), 1, generator=lot)[:, 0]
    scale = fit_scale(logits, rows)
    assert scale == pytest.approx(3, rel=0.2)
    weight = 1 / torch.bincount(rows)[rows]
    wanted = one_hot(rows) * (1 - 1 / 501) + 1 / 501 / 5

    def loss(s: float) -> float:
        return float((weight * cross_entropy(s * logits, wanted, reduction="none")).sum())

    assert loss(scale) < min(loss(scale * 1.01), loss(scale / 1.01))


def test_answers_that_are_all_right_have_a_scale_too_and_more_images_make_surer() -> None:
    logits = torch.eye(4, dtype=torch.float64)
    few_images, many = fit_scale(logits, torch.arange(4)), fit_scale(logits.repeat(50, 1), torch.arange(4).repeat(50))
    assert 1 < few_images < many < 20
    assert torch.softmax(many * logits, 1).diagonal().min() == pytest.approx(1 - 0.75 / 201, abs=1e-6)


def an_increment(held: int) -> tuple[Network, Increment]:
    """Three classes of noise that a fresh network tells apart badly, with `held` hold-out images of each."""
    run = start(TINY, **BLACK_AND_WHITE)  # type: ignore[arg-type]
    found = network.build("resnet32", classes=3, image_size=8, seed=2).eval()
    pixels, rows = noise(90), torch.arange(90) % 3
    pixels[:, :2, :2, 0] = (80 * rows).to(torch.uint8)[:, None, None]
    kept, apart = slice(0, 60), slice(60, 60 + 3 * held)
    increment = Increment(
        method=METHODS["ridge"],
        schedules=METHODS["ridge"].schedules["short"],
        run=run,
        n=2,
        heads=(2, 1),
        pixels=pixels[kept],
        rows=rows[kept],
        held_pixels=pixels[apart],
        held_rows=rows[apart],
        statistics=[Sums.of(evaluate.features(found, pixels[kept][rows[kept] == row], run)) for row in range(3)],
    )
    return found, increment


def parallel(one: Tensor, other: Tensor) -> bool:
    """Whether one is the other times a positive number."""
    return torch.allclose(evaluate.unit(one.flatten()), evaluate.unit(other.flatten().to(one)), atol=1e-5)


def test_rho_is_the_one_that_errs_least_on_holdout_images_and_never_looks_at_fewer_than_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, increment = an_increment(held=10)
    raw = evaluate.features(found, increment.held_pixels, increment.run).double()
    errors = {}
    for rho in RHOS:
        weight, bias = solve(increment.statistics, rho)
        errors[rho] = float((raw @ weight.T + bias - one_hot(increment.held_rows, 3)).square().mean())
    best = min(RHOS, key=lambda rho: errors[rho])
    assert best not in (rebalance.RHO, RHOS[0])
    ridge(found, increment)
    assert parallel(found.head.weight, solve(increment.statistics, best)[0])
    found, increment = an_increment(held=1)
    ridge(found, increment)
    assert parallel(found.head.weight, solve(increment.statistics, rebalance.RHO)[0])


# ------------------------------------------------------------------------------------------------ whole increments


@functools.cache
def taught(
    method: str,
    groups: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3, 4), (5, 6)),
    flip: bool = False,
    memory: int = 0,
) -> tuple[tuple[Task, Learned], ...]:
    """Increments without any memory, and without hold-out images but where there is memory."""
    roles = few()[1].clone()
    roles[roles == 1] = TRAINING
    options = replace(TINY, method=method, memory_total=memory, flip=flip, epochs=20)
    return tuple(tasks(options, groups=groups, roles=roles))


def everything(class_ids: Sequence[int], learned: Learned, flip: bool = False) -> dict[int, list[Tensor]]:
    """Raw features of every training image of each class, with the network that was learned: plain, and mirrored."""
    dataset, roles = few()
    run = start(TINY, mean=learned.mean, std=learned.std)
    found = load_network(learned.checkpoint, TINY, len(learned.class_ids))
    of = {c: dataset.images.pixels[(dataset.images.labels == c) & (roles != GATE)] for c in class_ids}
    views = (False, True) if flip else (False,)
    return {c: [evaluate.features(found, pixels, run, mirrored=v) for v in views] for c, pixels in of.items()}


def backbone(learned: Learned) -> dict[str, Tensor]:
    return {k: v for k, v in unpack(learned.checkpoint, "it").items() if k.startswith("backbone.")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", FROZEN)
def test_only_the_base_trains_and_its_backbone_is_that_of_plain_classification(method: str) -> None:
    base, *increments = taught(method)
    assert same(backbone(base[1]), backbone(taught("replay", groups=((0, 1, 2),))[0][1]))
    assert all(same(backbone(learned), backbone(base[1])) for _, learned in increments)
    events: list[Event] = []
    learn(increments[0][0], on_event=events.append)
    assert events == []


def test_after_any_increments_ridge_is_that_of_all_images_at_once() -> None:
    learned = taught("ridge")[-1][1]
    views = everything(learned.class_ids, learned)
    wanted = solve([Sums.of(*views[c]) for c in learned.class_ids], rebalance.RHO)
    assert learned.statistics is not None
    kept = from_bytes(learned.statistics, 64)
    found = solve([kept[c] for c in learned.class_ids], rebalance.RHO)
    assert apart(found[0], wanted[0]) < 1e-6
    head = unpack(learned.checkpoint, "it")
    assert parallel(head["head.weight"], wanted[0])
    assert parallel(head["head.bias"], wanted[1])


@pytest.mark.parametrize("increments", [((5, 6), (3, 4)), ((3,), (6, 4, 5)), ((3, 4, 5, 6),)])
@pytest.mark.parametrize("method", FROZEN)
def test_order_and_grouping_of_increments_do_not_matter(method: str, increments: tuple[tuple[int, ...], ...]) -> None:
    one, two = taught(method)[-1][1], taught(method, groups=((0, 1, 2), *increments))[-1][1]
    rows = [two.class_ids.index(class_id) for class_id in one.class_ids]
    assert torch.allclose(two.means[rows], one.means, atol=1e-6)
    heads = [unpack(learned.checkpoint, "it") for learned in (one, two)]
    for name in ("head.weight", "head.bias"):
        assert parallel(heads[1][name][rows], heads[0][name])
    assert one.evaluation["linear"]["per_class"] == two.evaluation["linear"]["per_class"]


@pytest.mark.parametrize("method", FROZEN)
def test_new_images_of_a_known_class_join_its_sums_and_its_exemplars_are_not_counted_again(method: str) -> None:
    whole = taught(method, memory=60)[0][0]
    later = whole.of(1, TRAINING).nonzero()[5:, 0]
    at_first = torch.ones(len(whole.images), dtype=torch.bool).index_fill(0, later, False)
    before = learn(replace(whole, images=whole.images.take(at_first), roles=whole.roles[at_first]))
    place = {image_id: k for k, image_id in enumerate(whole.images.ids)}
    which = torch.cat([torch.tensor([place[i] for ids in before.exemplars.values() for i in ids]), later])
    task = replace(
        whole,
        old=whole.new,
        new=(),
        refreshed={1: len(later)},
        heads=before.heads,
        teacher=before.checkpoint,
        statistics=before.statistics,
        mean=before.mean,
        std=before.std,
        images=whole.images.take(which),
        roles=whole.roles[which],
    )
    after = learn(task)
    assert before.exemplars[1]
    assert after.statistics is not None
    found, wanted = from_bytes(after.statistics, 64)[1], Sums.of(*everything([1], after)[1])
    assert found.count == wanted.count
    assert torch.allclose(found.products, wanted.products, rtol=1e-6)
    assert torch.allclose(after.means[1], wanted.mean, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("method", FROZEN)
def test_class_means_are_those_of_every_image_ever_seen(method: str, flip: bool) -> None:
    learned = taught(method, flip=flip)[-1][1]
    assert not any(learned.exemplars.values())
    assert not any("no exemplar" in warning for warning in learned.warnings)
    for mean, views in zip(learned.means, everything(learned.class_ids, learned, flip).values(), strict=True):
        assert torch.allclose(mean, evaluate.class_mean(*views), atol=1e-6)


def test_the_last_layer_of_ncm_answers_by_nearest_mean() -> None:
    for _, learned in taught("ncm"):
        assert learned.answers_by == "nearest_mean"
        head = unpack(learned.checkpoint, "it")
        assert not head["head.bias"].any()
        raw = torch.cat([plain for (plain,) in everything(learned.class_ids, learned).values()])
        logits = evaluate.unit(raw) @ head["head.weight"].T
        scale = head["head.weight"].norm(dim=1).mean()
        assert torch.allclose(logits / scale, evaluate.unit(raw) @ learned.means.T, atol=1e-6)


@pytest.mark.parametrize("method", FROZEN)
def test_exemplars_stand_for_the_images_of_a_teacher_without_statistics_and_a_warning_says_so(method: str) -> None:
    task = taught("replay", memory=60)[1][0]
    assert task.statistics is None
    learned = learn(replace(task, options=replace(task.options, method=method)))
    assert learned.statistics is not None
    kept = from_bytes(learned.statistics, 64)
    assert {c: kept[c].count for c in (0, 1, 2)} == {c: int(task.of(c, TRAINING).sum()) for c in (0, 1, 2)}
    assert any("exemplars stand for" in warning for warning in learned.warnings)
    after = learn(replace(learned_again(task, learned), options=replace(task.options, method=method)))
    assert not any("exemplars stand for" in warning for warning in after.warnings)


def learned_again(task: Task, learned: Learned) -> Task:
    """An increment of one more class upon `learned`."""
    dataset, roles = few()
    return next_task(dataset, roles, ((0, 1, 2), (3, 4), (5,)), [learned, learned], task.options)


def test_without_statistics_or_exemplars_of_an_old_class_the_error_names_it() -> None:
    task = taught("replay")[1][0]
    with pytest.raises(BadInput, match=r"neither statistics nor exemplars of classes 0 \(.*choose one that trains"):
        learn(replace(task, options=replace(task.options, method="ridge")))


def test_a_method_that_trains_learns_from_a_frozen_one_and_keeps_no_statistics() -> None:
    task = taught("ridge", memory=120)[1][0]
    assert task.statistics is not None
    learned = learn(replace(task, options=replace(task.options, method="wa")))
    assert learned.statistics is None
    assert not same(backbone(learned), backbone(taught("ridge", memory=120)[0][1]))


def test_statistics_travel_with_task_and_result_and_are_pinned(tmp_path: Path) -> None:
    task, learned = taught("ridge")[1]
    write_task(tmp_path, task)
    assert read_task(tmp_path).statistics == task.statistics
    assert read_task(tmp_path).fingerprint == task.fingerprint
    assert replace(task, statistics=learned.statistics).fingerprint != task.fingerprint
    write_result(tmp_path, learned, task.fingerprint)
    assert read_result(tmp_path).statistics == learned.statistics
    for name, read in (("statistics.safetensors", read_task), ("result/statistics.safetensors", read_result)):
        (tmp_path / name).write_bytes(as_bytes(collected([4])))
        with pytest.raises(Corrupt, match=r"statistics\.safetensors has sha256"):
            read(tmp_path)


# -------------------------------------------------------------------------------------------------- an experiment


@functools.cache
def experiment(method: str) -> Result:
    """Six digits, then two, then two, without any memory."""
    options = replace(TINY, method=method, memory_total=0, epochs=12)
    return run_experiment(few(60)[0], options, base_classes=6, classes_per_increment=2)


@pytest.mark.parametrize(("method", "least"), [("ncm", 0.5), ("ridge", 0.7)])
def test_an_experiment_without_memory_keeps_what_it_learned(method: str, least: float) -> None:
    result = experiment(method)
    last = result.accuracies()[-1]
    assert last is not None
    assert last > least  # 0.1 by chance
    assert [(step.method, step.reason, step.warnings) for step in result.steps] == [(method, "", ())] * 3
    assert f"method {method}, answers by" in result.table()


@pytest.mark.parametrize("method", FROZEN)
def test_both_fold_into_the_one_graph(method: str) -> None:
    learned = experiment(method).steps[-1]
    found = load_network(learned.checkpoint, TINY, 10)
    preprocess = Preprocess(8, 8, learned.mean, learned.std)
    weight, bias = (tensor.detach().numpy() for tensor in (found.head.weight, found.head.bias))
    onnx = graph.export(found, weight=weight, bias=bias, preprocess=preprocess)
    images = few(60)[0].images.pixels[:].numpy()
    gap = parity.compare(onnx, found, weight, bias, preprocess, images)
    assert gap.top1_agreement > 0.995
    assert gap.max_abs_logit_difference < 1e-3 * float(abs(weight).max())
    assert gap.max_abs_embedding_difference is not None
    assert gap.max_abs_embedding_difference < 1e-4


@pytest.mark.parametrize("method", FROZEN)
def test_probabilities_are_about_as_often_right_as_they_say(method: str) -> None:
    dataset, roles = few(60)
    learned = experiment(method).steps[-1]
    run = start(TINY, mean=learned.mean, std=learned.std)
    found = load_network(learned.checkpoint, TINY, 10)
    raw = evaluate.features(found, dataset.images.pixels[roles == GATE], run)
    sure = torch.softmax(evaluate.head_logits(found, raw), 1).max(1)
    right = (sure.indices == dataset.images.labels[roles == GATE]).double().mean()
    print(sure.values.mean(), right)
    assert float(sure.values.mean()) == pytest.approx(float(right), abs=0.15)
