"""Bias correction, balanced fine-tuning, weight aligning (acceptance tests 5 and 6; B1 to B18, E1 to E4)."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from parts_training import BLACK_AND_WHITE, TINY, bic, digest, noise, tasks
from torch import Tensor
from torch.nn.functional import cross_entropy

from lifelist.exporter.errors import BadInput
from lifelist.exporter.fold import fold_bias
from lifelist.exporter.manifest import BiasCorrection
from lifelist.training import evaluate, network, rebalance
from lifelist.training.data import GATE, HOLDOUT, TRAINING
from lifelist.training.evaluate import features, head_logits, unit
from lifelist.training.exemplars import herd
from lifelist.training.increment import learn, load_network
from lifelist.training.loop import Event, Phase, Run, corrected, learning_rate, start
from lifelist.training.methods import METHODS
from lifelist.training.pixels import Pixels
from lifelist.training.rebalance import LARGEST_ALPHA, Increment, balanced_finetuning, balanced_set, fit_bias


def objective(logits: Tensor, rows: Tensor, first_new: int, alpha: Tensor, beta: Tensor) -> Tensor:
    """What stage 2 minimises, written out."""
    q = torch.cat([logits[:, :first_new], alpha * logits[:, first_new:] + beta], dim=1)
    return cross_entropy(q, rows) + 0.05 * beta**2


def biased(scale: float, shift: float, count: int = 400, classes: int = 7, first_new: int = 4) -> tuple[Tensor, Tensor]:
    """(logits float64, rows): calibrated ones, of which the new classes' were then scaled and shifted."""
    lot = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, generator=lot, dtype=torch.float64)
    rows = torch.multinomial(torch.softmax(logits, 1), 1, generator=lot)[:, 0]
    logits[:, first_new:] = (logits[:, first_new:] - shift) / scale
    return logits, rows


def an_increment(
    method: str = "bic",
    counts: tuple[int, ...] = (6, 6, 6, 20, 20),
    n: int = 3,
    held: int = 3,
    events: list[Event] | None = None,
) -> tuple[network.Network, Increment]:
    """The end of a main phase on noise: counts of training images of each class, and the network."""
    n = 3
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    options = replace(TINY, epochs=2)
    run = start(options, **BLACK_AND_WHITE, tell=events.append if events is not None else print)
    increment = Increment(
        method=METHODS[method],
        schedules=METHODS[method].schedules["short"],
        run=run,
        n=n,
        heads=(n, len(counts) - n),
        pixels=Pixels(noise(len(rows))),
        rows=rows,
        held_pixels=Pixels(noise(held * len(counts), seed=9)),
        held_rows=torch.arange(len(counts)).repeat(held),
    )
    return network.build("resnet32", classes=len(counts), image_size=8, seed=2), increment


# ------------------------------------------------------------------------------------------------ bias correction


@pytest.mark.parametrize(("scale", "shift"), [(0.6, -0.5), (1.0, 0.0), (0.4, -1.5), (2.0, 0.3)])
def test_b1_b9_the_fitted_bias_is_the_minimum_of_cross_entropy_on_raw_logits(scale: float, shift: float) -> None:
    logits, rows = biased(scale, shift)
    pair = torch.tensor(fit_bias(logits, rows, first_new=4), dtype=torch.float64, requires_grad=True)
    alpha, beta = pair.unbind()
    (slope,) = torch.autograd.grad(objective(logits, rows, 4, alpha, beta), pair)
    assert slope.abs().max() < 1e-8
    assert float(pair.detach()[0]) == pytest.approx(scale, rel=0.3)


def test_b1_a_softmax_put_before_the_loss_would_be_noticed() -> None:
    logits, rows = biased(0.5, -1.0)
    wrong = torch.tensor(fit_bias(torch.softmax(logits, 1), rows, first_new=4), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(objective(logits, rows, 4, *wrong.unbind()), wrong)
    assert slope.abs().max() > 1e-2


def breach(logits: Tensor, rows: Tensor, first_new: int, found: tuple[float, float]) -> float:
    """How far `found` is from a minimum within the limits: the slope, or its part that points inwards at a limit."""
    pair = torch.tensor(found, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(objective(logits, rows, first_new, *pair.unbind()), pair)
    by_alpha, by_beta = slope.tolist()
    if found[0] == 0:
        by_alpha = min(by_alpha, 0.0)  # there the objective may only rise with alpha
    elif found[0] == LARGEST_ALPHA:
        by_alpha = max(by_alpha, 0.0)
    return max(abs(by_alpha), abs(by_beta))


def test_b9_a_fit_from_logits_of_any_size_ends_at_the_minimum() -> None:
    for factor in (0.01, 1.0, 30.0):
        logits, rows = biased(1.0, 0.0)
        assert breach(logits * factor, rows, 4, fit_bias(logits * factor, rows, 4)) < 1e-6


@pytest.mark.parametrize("scale", [5, 15, 30, 60])
def test_b9_a_fit_to_a_few_saturated_images_ends_at_a_minimum_and_never_worse_than_no_correction(scale: int) -> None:
    lot = torch.Generator().manual_seed(scale)
    for _ in range(80):
        n, m, held = (int(torch.randint(1, 5, (), generator=lot)) for _ in range(3))
        rows = torch.arange(n + m).repeat(held)
        logits = scale * torch.randn(len(rows), n + m, generator=lot, dtype=torch.float64)
        found = fit_bias(logits, rows, n)
        plain, fitted = (
            float(objective(logits, rows, n, *torch.tensor(p, dtype=torch.float64))) for p in ((1.0, 0.0), found)
        )
        assert fitted <= plain + 1e-9
        assert 0 <= found[0] <= LARGEST_ALPHA
        assert breach(logits, rows, n, found) < 1e-5


def test_a_correction_that_cannot_be_right_says_so_and_is_not_applied_where_new_classes_would_be_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for found, applied, warned in (
        ((0.0, 0.7), (1.0, 0.0), ["bias.at-limit"]),
        ((LARGEST_ALPHA, 0.1), (LARGEST_ALPHA, 0.1), ["bias.at-limit"]),
        ((3.56, -0.4), (3.56, -0.4), ["bias.unusual"]),
        ((0.19, -0.4), (0.19, -0.4), ["bias.unusual"]),
        ((0.39, -0.4), (0.39, -0.4), []),  # the least and the most of what is published, and of docs/accuracy
        ((0.92, -0.12), (0.92, -0.12), []),
        ((1.28, -0.1), (1.28, -0.1), []),
    ):
        events: list[Event] = []
        net, increment = an_increment(events=events)
        monkeypatch.setattr(rebalance, "fit_bias", lambda logits, rows, n, found=found: found)
        assert rebalance.bias_correction(net, increment) == BiasCorrection(*applied, 3, 5)
        assert [e["what"] for e in events] == warned


def test_separable_images_do_not_make_the_correction_run_away() -> None:
    rows = torch.arange(20) % 4
    logits = 10 * torch.nn.functional.one_hot(rows, 4).double() - 5
    alpha, beta = fit_bias(logits, rows, first_new=2)
    assert alpha == LARGEST_ALPHA
    assert abs(beta) < 2
    alpha, _ = fit_bias(-logits, rows, first_new=2)
    assert 0 <= alpha <= LARGEST_ALPHA


def test_a_fit_needs_images_of_old_and_of_new_classes() -> None:
    with pytest.raises(BadInput, match=r"below and from 4; got \[0, 1\]"):
        fit_bias(torch.randn(10, 7), torch.arange(10) % 2, first_new=4)


def test_b2_stage_two_leaves_every_tensor_of_the_network_as_it_was() -> None:
    net, increment = an_increment()
    net.train()
    before = digest(net)
    found = rebalance.bias_correction(net, increment)
    assert digest(net) == before
    assert (found.first_row, found.last_row) == (3, 5)


def test_b10_the_correction_is_used_where_accuracy_is_measured_and_folds_to_the_same_answers() -> None:
    task, learned = bic()[2]
    assert learned.bias is not None
    net = load_network(learned.checkpoint, task.options, 7)
    run = start(task.options, mean=learned.mean, std=learned.std)
    gate = task.images.take(task.roles == GATE)
    raw = features(net, gate.pixels, run)
    explicit = head_logits(net, raw)
    explicit[:, 5:7] = learned.bias.alpha * explicit[:, 5:7] + learned.bias.beta
    right = (explicit.argmax(1) == gate.labels).double().mean()
    assert learned.evaluation["linear"]["all"] == pytest.approx(float(right), abs=1e-6)
    weight, bias = fold_bias(net.head.weight.detach().numpy(), net.head.bias.detach().numpy(), learned.bias)
    folded = raw @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    torch.testing.assert_close(folded, explicit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(corrected(head_logits(net, raw), learned.bias), explicit)
    strong = replace(learned.bias, beta=-100.0)
    assert not bool((corrected(head_logits(net, raw), strong).argmax(1) >= 5).any())


def test_b17_too_few_holdout_images_leave_the_answers_uncorrected_and_say_so() -> None:
    events: list[Event] = []
    net, increment = an_increment(held=1, events=events)
    assert rebalance.bias_correction(net, increment) == BiasCorrection(1.0, 0.0, 3, 5)
    assert [e["what"] for e in events] == ["bias.not-fitted"]
    assert "needs 2 hold-out images of each class, and has 1" in events[0]["message"]
    fitted = rebalance.bias_correction(*an_increment(held=2, events=events))
    assert fitted != BiasCorrection(1.0, 0.0, 3, 5)
    assert not any(e["what"] == "bias.not-fitted" for e in events[1:])


def test_b17_a_class_of_two_images_still_learns() -> None:
    task, _ = bic()[1]
    rare = task.of(4, TRAINING).nonzero()[2:, 0]
    keep = ~((task.images.labels == 4) & (task.roles != GATE))
    keep[task.of(4, TRAINING).nonzero()[:2, 0]] = True
    assert not bool(keep[rare].any())
    learned = learn(replace(task, images=task.images.take(keep), roles=task.roles[keep]))
    assert len(learned.exemplars[4]) == 2
    assert learned.bias == BiasCorrection(1.0, 0.0, 3, 5)
    assert any("hold-out" in warning for warning in learned.warnings)
    assert learned.means.isfinite().all()


def test_b18_a_group_of_classes_that_collapses_raises_an_alarm() -> None:
    events: list[Event] = []
    tasks(replace(TINY, method="finetune", epochs=6), groups=((0, 1), (2, 3)), on_event=events.append)
    assert any(e["kind"] == "warning" and e["what"] == "group.collapsed" for e in events)


# -------------------------------------------------------------------------------------------- balanced fine-tuning


def test_e2_the_balanced_set_has_as_many_images_of_every_class() -> None:
    net, increment = an_increment("eeil")
    which = balanced_set(net, increment)
    assert torch.bincount(increment.rows[which]).tolist() == [6] * 5
    for row in (3, 4):
        images = (increment.rows == row).nonzero()[:, 0]
        ranked = images[herd(unit(features(net, increment.pixels[images], increment.run)), 6)]
        assert which[increment.rows[which] == row].tolist() == ranked.tolist()


def test_e2_a_class_with_fewer_images_shows_them_more_than_once() -> None:
    net, increment = an_increment("eeil", counts=(6, 2, 6, 3, 20))
    which = balanced_set(net, increment)
    assert torch.bincount(increment.rows[which]).tolist() == [6] * 5
    assert len(set(which[increment.rows[which] == 1].tolist())) == 2


def test_e1_the_teacher_of_balanced_finetuning_is_the_snapshot_and_covers_the_newest_head() -> None:
    net, increment = an_increment("eeil")
    before = digest(net)
    seen: list[Phase] = []

    def record(student: network.Network, phase: Phase, run: Run) -> None:
        seen.append(phase)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebalance, "train", record)
        balanced_finetuning(net, increment)
    (phase,) = seen
    assert phase.teacher is not None
    assert phase.teacher.network is not net
    assert digest(phase.teacher.network) == before
    assert phase.teacher.bias is None
    assert phase.n == 5
    assert [(h.start, h.stop) for h in phase.heads] == [(0, 3), (3, 5)]


def test_balanced_finetuning_trains_the_network_and_leaves_it_in_eval_mode() -> None:
    net, increment = an_increment("eeil")
    before = digest(net)
    balanced_finetuning(net, increment)
    assert digest(net) != before
    assert not net.training


def test_e4_balanced_finetuning_runs_at_the_papers_rates() -> None:
    for name in ("eeil", "eeil-all"):
        tune = METHODS[name].schedules["paper"].balanced
        assert tune is not None
        assert tune.epochs == 30
        assert [learning_rate(tune, epoch, 0) for epoch in (0, 9, 10, 19, 20, 29)] == pytest.approx(
            [0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
        )


def test_without_exemplars_balanced_finetuning_is_left_out_and_says_so() -> None:
    events: list[Event] = []
    net, increment = an_increment("eeil", counts=(0, 0, 0, 5, 5), events=events)
    before = digest(net)
    balanced_finetuning(net, increment)
    assert digest(net) == before
    assert [e["what"] for e in events] == ["balanced.left-out"]


# ------------------------------------------------------------------------------------------------ weight aligning


def test_weight_aligning_gives_new_rows_the_mean_length_of_the_old_and_leaves_the_rest() -> None:
    net, increment = an_increment("wa")
    old = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net.head.weight[3:] *= 4
    rebalance.weight_aligning(net, increment)
    lengths = net.head.weight.detach().norm(dim=1)
    assert float(lengths[3:].mean()) == pytest.approx(float(lengths[:3].mean()), rel=1e-6)
    cosine = torch.nn.functional.cosine_similarity(net.head.weight[3:], old["head.weight"][3:])
    torch.testing.assert_close(cosine, torch.ones(2))
    for name, value in net.state_dict().items():
        if name != "head.weight":
            assert torch.equal(value, old[name])
    assert torch.equal(net.head.weight[:3], old["head.weight"][:3])


@pytest.mark.parametrize(("length", "told"), [(4.0, []), (1.0, []), (0.5, ["alignment.unusual"])])
def test_new_rows_that_aligning_makes_longer_are_told(length: float, told: list[str]) -> None:
    events: list[Event] = []
    net, increment = an_increment("wa", events=events)
    with torch.no_grad():
        net.head.weight[3:] *= length * net.head.weight[:3].norm(dim=1).mean() / net.head.weight[3:].norm(dim=1).mean()
    rebalance.weight_aligning(net, increment)
    assert [e["what"] for e in events if e["kind"] == "warning"] == told


def test_the_checkpoint_of_wa_is_the_aligned_network_and_has_no_correction() -> None:
    task, _ = bic()[1]
    learned = learn(replace(task, options=replace(task.options, method="wa")))
    net = load_network(learned.checkpoint, task.options, 5)
    lengths = net.head.weight.detach().norm(dim=1)
    assert float(lengths[3:].mean()) == pytest.approx(float(lengths[:3].mean()), rel=1e-5)
    assert learned.bias is None


def test_what_was_not_corrected_is_measured_too() -> None:
    task, learned = bic()[1]
    assert learned.bias is not None
    net = load_network(learned.checkpoint, task.options, 5)
    run = start(task.options, mean=learned.mean, std=learned.std)
    gate = task.images.take(task.roles == GATE)
    answers = head_logits(net, features(net, gate.pixels, run)).argmax(1)
    assert learned.evaluation["linear_uncorrected"] == evaluate.accuracy(answers, gate.labels, range(5), 3)
    assert bool((task.roles == HOLDOUT).any())
    assert dataclasses.asdict(learned.bias).keys() == {"alpha", "beta", "first_row", "last_row"}
