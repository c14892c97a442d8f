"""The table of methods, the teacher, and what training may see: the rest of methods.md section 2, by number."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts_training import BLACK_AND_WHITE, TINY, bic, digest, noise, small_phase, tasks, with_noise

from lifelist.exporter.errors import BadSetting, Failed
from lifelist.exporter.manifest import BiasCorrection
from lifelist.training import evaluate, loop, network
from lifelist.training.checkpoint import pack, unpack
from lifelist.training.data import GATE, HOLDOUT, TRAINING
from lifelist.training.forms import FORMS
from lifelist.training.increment import learn, load_network, sort_images
from lifelist.training.job import Task
from lifelist.training.loop import Phase, Run, Teacher, batches, learning_rate, scaled, start, train
from lifelist.training.methods import METHODS, Schedule
from lifelist.training.options import TrainingOptions
from lifelist.training.pixels import Pixels
from lifelist.training.rebalance import REBALANCE


def run_of(options: TrainingOptions = TINY) -> Run:
    return start(options, **BLACK_AND_WHITE)


# ------------------------------------------------------------------------------------------------------ the table


def test_the_table_is_that_of_the_design() -> None:
    x, o = True, False
    found = {name: (m.terms, m.form, m.rebalance, m.answers_by) for name, m in METHODS.items()}
    assert found == {
        "bic": ((x, x, x, x), "softmax", "bias-correction", "linear"),
        "eeil": ((x, o, x, x), "per-head", "balanced-finetuning", "linear"),
        "eeil-all": ((x, x, x, x), "per-head", "balanced-finetuning", "linear"),
        "icarl": ((x, x, x, x), "sigmoid", "none", "nearest_mean"),
        "wa": ((x, x, x, x), "softmax", "weight-aligning", "linear"),
        "finetune": ((x, o, o, o), "softmax", "none", "linear"),
        "replay": ((x, o, x, o), "softmax", "none", "linear"),
        "joint": ((x, o, x, o), "softmax", "none", "linear"),
        "ncm": ((x, o, x, o), "softmax", "class-means", "nearest_mean"),
        "ridge": ((x, o, x, o), "softmax", "ridge", "linear"),
    }
    assert [name for name, m in METHODS.items() if m.frozen] == ["ncm", "ridge"]


def test_every_row_names_a_form_and_a_rebalance_that_exist() -> None:
    assert {m.form for m in METHODS.values()} == set(FORMS)
    assert {m.rebalance for m in METHODS.values()} == set(REBALANCE)


def test_no_code_asks_which_method_it_is() -> None:
    for file in Path("training").glob("*.py"):
        assert "method ==" not in file.read_text(), file


@pytest.mark.parametrize(
    ("method", "epoch", "rate"),
    [
        *[("bic", epoch, rate) for epoch, rate in ((0, 0.1), (99, 0.1), (100, 0.01), (150, 1e-3), (249, 1e-4))],
        *[("eeil", epoch, rate) for epoch, rate in ((9, 0.1), (10, 0.01), (20, 1e-3), (39, 1e-4))],
        *[("icarl", epoch, rate) for epoch, rate in ((48, 2.0), (49, 0.4), (62, 0.4), (63, 0.08), (69, 0.08))],
    ],
)
def test_the_papers_schedules_are_the_papers(method: str, epoch: int, rate: float) -> None:
    schedule = METHODS[method].schedules["paper"].increment
    assert learning_rate(schedule, epoch, 0.5) == pytest.approx(rate)
    assert epoch < schedule.epochs


def test_the_papers_decay_is_the_papers() -> None:
    paper = {name: m.schedules["paper"].increment for name, m in METHODS.items()}
    assert [paper[name].weight_decay for name in ("bic", "wa", "eeil", "icarl")] == [2e-4, 2e-4, 1e-4, 2e-5]
    assert [name for name in paper if not paper[name].decays_biases] == ["icarl"]
    assert {name: s.epochs for name, s in paper.items() if name in ("bic", "eeil", "icarl")} == {
        "bic": 250,
        "eeil": 40,
        "icarl": 70,
    }


@pytest.mark.parametrize(
    ("method", "what", "epochs", "rate", "milestones", "factor", "decay", "views", "drops_last", "colour"),
    [
        ("bic", "base", 250, 0.1, (100, 150, 200), 0.1, 2e-4, 1, False, False),
        ("bic", "increment", 250, 0.1, (100, 150, 200), 0.1, 2e-4, 1, False, False),
        ("wa", "increment", 250, 0.1, (100, 150, 200), 0.1, 2e-4, 1, False, False),
        ("eeil", "base", 100, 0.1, (25, 50, 75), 0.1, 1e-4, 12, False, True),
        ("eeil", "increment", 40, 0.1, (10, 20, 30), 0.1, 1e-4, 12, False, True),
        ("eeil", "balanced", 30, 0.01, (10, 20), 0.1, 1e-4, 12, False, True),
        ("eeil-all", "increment", 40, 0.1, (10, 20, 30), 0.1, 1e-4, 12, False, True),
        ("icarl", "base", 70, 2.0, (49, 63), 0.2, 2e-5, 1, True, False),
        ("icarl", "increment", 70, 2.0, (49, 63), 0.2, 2e-5, 1, True, False),
    ],
)
def test_every_number_of_the_papers_schedules(
    method: str,
    what: str,
    epochs: int,
    rate: float,
    milestones: tuple[int, ...],
    factor: float,
    decay: float,
    views: int,
    drops_last: bool,
    colour: bool,
) -> None:
    assert getattr(METHODS[method].schedules["paper"], what) == Schedule(
        epochs=epochs,
        batch_size=128,
        learning_rate=rate,
        shape="steps",
        milestones=milestones,
        factor=factor,
        momentum=0.9,
        weight_decay=decay,
        decays_biases=method != "icarl",
        views=views,
        colour=colour,
        drops_last=drops_last,
    )


def test_a_short_schedule_warms_up_then_falls_to_nothing() -> None:
    schedule = METHODS["bic"].schedules["short"].base
    rates = [learning_rate(schedule, epoch, 0.0) for epoch in range(schedule.epochs)]
    top = rates.index(max(rates))
    assert 0 < top < schedule.epochs / 3
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < schedule.learning_rate / 50


def test_options_that_ask_for_fewer_epochs_move_the_milestones_too() -> None:
    paper = METHODS["eeil"].schedules["paper"]
    assert paper.balanced is not None
    options = replace(TINY, epochs=20, learning_rate=0.2)
    tune = scaled(paper.balanced, options, paper.increment)
    assert (tune.epochs, tune.milestones) == (15, (5, 10))
    assert tune.learning_rate == pytest.approx(0.02)


def test_a_method_that_does_not_exist_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(BadSetting, match=r"'icrl'.*bic, eeil.*mean 'icarl'"):
        TrainingOptions(method="icrl")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"selection": "best"}, "selection 'best'.*herding, nearest, random"),
        ({"schedule": "long"}, "schedule 'long'.*paper, short"),
        ({"device": "gpu"}, "device 'gpu' does not exist; there are auto, cpu, cuda"),
        ({"learning_rate": float("inf")}, "learning_rate should be a number, not inf"),
        ({"learning_rate": float("nan")}, "learning_rate should be a"),
        ({"batch_size": 1}, "batch_size should be at least 2.*not 1"),
        ({"memory_total": -1}, "memory_total should be at least 0, not -1"),
        ({"image_size": 32, "resize_to": 16}, "resize_to 16 is below image_size 32"),
    ],
)
def test_a_wrong_option_says_what_would_be_right(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        replace(TINY, **wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_a_device_that_is_not_here_is_a_wrong_option_too() -> None:
    with pytest.raises(BadSetting, match=r"device 'cuda:1' is not here: 0 CUDA devices work; auto takes the CPU"):
        start(replace(TINY, device="cuda:1"), mean=(0, 0, 0), std=(1, 1, 1))


def test_options_come_back_from_json_as_they_were() -> None:
    options = replace(TINY, method="wa", learning_rate=0.3, colour=True)
    assert TrainingOptions.from_dict(json.loads(json.dumps(options.as_dict()))) == options
    with pytest.raises(BadSetting, match="no option lr"):
        TrainingOptions.from_dict({"lr": 1})
    with pytest.raises(BadSetting, match="epochs should be int, not '3'"):
        TrainingOptions.from_dict({"epochs": "3"})


# ---------------------------------------------------------------------------------------------------- the teacher


def test_b13_i5_a_teacher_is_in_eval_mode_and_keeps_its_statistics_through_an_epoch() -> None:
    live = network.build("resnet32", classes=3, image_size=8, seed=1)
    assert live.training
    student, teacher = live.copy(), Teacher(live)
    student.grow(2, torch.Generator().manual_seed(0))
    before = digest(teacher.network)
    train(student, small_phase("bic", teacher, n=3, classes=5), run_of())
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert digest(teacher.network) == before
    assert digest(student) != before


def test_a_teacher_is_corrected_in_exactly_the_rows_that_it_learnt_last() -> None:
    live = network.build("resnet32", classes=9, image_size=8, seed=1)
    x = torch.randn(4, 3, 8, 8)
    plain = Teacher(live)(x)
    right = Teacher(live, BiasCorrection(alpha=0.5, beta=-1.0, first_row=5, last_row=9))(x)
    torch.testing.assert_close(right[:, :5], plain[:, :5], rtol=0, atol=0)
    torch.testing.assert_close(right[:, 5:], 0.5 * plain[:, 5:] - 1.0)
    assert not right.requires_grad


def test_b14_one_pair_is_active_and_an_older_one_is_learnt_through_the_teacher() -> None:
    first, second = bic()[1], bic()[2]
    assert first[1].bias is not None
    assert second[1].bias is not None
    assert (first[1].bias.first_row, first[1].bias.last_row) == (3, 5)
    assert (second[1].bias.first_row, second[1].bias.last_row) == (5, 7)
    assert second[0].bias == first[1].bias  # what corrects the teacher
    task = replace(second[0], bias=replace(first[1].bias, beta=first[1].bias.beta - 3))
    assert learn(task).checkpoint != second[1].checkpoint


def test_a_student_starts_from_the_uncorrected_checkpoint() -> None:
    task = bic()[2][0]
    seen: list[torch.Tensor] = []

    class Stop(Exception):
        pass

    def first_epoch(student: network.Network, phase: Phase, run: Run) -> None:
        seen.append(student.head.weight.detach().clone())
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifelist.training.increment.train", first_epoch)
        with pytest.raises(Stop):
            learn(task)
    assert task.teacher is not None
    torch.testing.assert_close(seen[0][:5], unpack(task.teacher, "")["head.weight"], rtol=0, atol=0)


def test_b15_training_knows_no_bias_parameters() -> None:
    names = {name.split(".")[0] for name in unpack(bic()[2][1].checkpoint, "")}
    assert names == {"backbone", "head"}


# ------------------------------------------------------------------------------------- what training may see


@pytest.mark.parametrize("role", [HOLDOUT, GATE])
def test_b4_b5_no_weight_depends_on_a_pixel_that_is_not_for_training(role: int) -> None:
    for task, learned in bic():
        assert bool((task.roles == role).any())
        assert learn(with_noise(task, role)).checkpoint == learned.checkpoint


def test_b4_b5_no_image_ever_plays_two_roles() -> None:
    seen: dict[str, int] = {}
    for task, learned in bic():
        for image_id, role in zip(task.images.ids, task.roles.tolist(), strict=True):
            assert seen.setdefault(image_id, role) == role
        assert all(seen[i] == TRAINING for ids in learned.exemplars.values() for i in ids)
        assert all(seen[i] == HOLDOUT for ids in learned.holdout.values() for i in ids)
        material = sort_images(task, METHODS["bic"])
        sets = [set(images.ids) for images in (material.training, material.holdout, material.gate)]
        assert sum(map(len, sets)) == len(set.union(*sets))


def test_b6_the_holdout_has_as_many_images_of_each_class_old_and_new() -> None:
    task, _ = bic()[1]
    for class_id, fewer in ((0, 3), (4, 2)):  # an old class with less, and a new one with less still
        drop = task.of(class_id, HOLDOUT).nonzero()[fewer:, 0]
        keep = torch.ones(len(task.images), dtype=torch.bool)
        keep[drop] = False
        task = replace(task, images=task.images.take(keep), roles=task.roles[keep])
        material = sort_images(task, METHODS["bic"])
        assert torch.bincount(material.rows(task, material.holdout)).tolist() == [fewer] * 5


def test_b19_every_image_is_seen_once_in_an_epoch_however_rare_its_class() -> None:
    lot = torch.Generator().manual_seed(0)
    seen = torch.cat(batches(100, 32, 1, lot, drops_last=False))
    assert sorted(seen.tolist()) == list(range(100))
    assert sorted(torch.cat(batches(100, 32, 3, lot, drops_last=False)).tolist()) == sorted([*range(100)] * 3)


def test_a_last_batch_is_left_out_where_the_schedule_says_so_or_where_it_is_a_single_image() -> None:
    lot = torch.Generator().manual_seed(0)
    assert [len(b) for b in batches(70, 32, 1, lot, drops_last=True)] == [32, 32]
    assert [len(b) for b in batches(65, 32, 1, lot, drops_last=False)] == [32, 32]
    assert [len(b) for b in batches(20, 32, 1, lot, drops_last=True)] == [20]


def test_i12_exemplars_are_trained_on() -> None:
    task, learned = bic()[1]
    old = torch.isin(task.images.labels, torch.tensor([c.id for c in task.old]))
    changed = with_noise(task, TRAINING)
    pixels = torch.where(old[:, None, None, None], changed.images.pixels[:], task.images.pixels[:])
    only_exemplars = replace(task, images=replace(task.images, pixels=Pixels(pixels)))
    assert learn(only_exemplars).checkpoint != learned.checkpoint


def test_finetuning_sees_nothing_of_old_classes() -> None:
    def finetune(task: Task) -> Task:
        return replace(task, options=replace(task.options, method="finetune"))

    task, _ = bic()[1]
    old = torch.isin(task.images.labels, torch.tensor([c.id for c in task.old]))
    pixels = torch.where(old[:, None, None, None], 255 - task.images.pixels[:], task.images.pixels[:])
    other = replace(task, images=replace(task.images, pixels=Pixels(pixels)))
    assert learn(finetune(task)).checkpoint == learn(finetune(other)).checkpoint


def test_joint_training_keeps_everything_and_starts_anew() -> None:
    found = tasks(replace(TINY, method="joint"), groups=((0, 1), (2,)))
    task, learned = found[1]
    assert all(len(ids) == int(task.of(c, TRAINING).sum()) for c, ids in learned.exemplars.items())
    other = load_network(found[0][1].checkpoint, task.options, 2)
    other.head.weight.data += 1
    assert learn(replace(task, teacher=pack(other.state_dict()))).checkpoint == learned.checkpoint


def test_e5_gradient_noise_has_the_scale_of_the_authors_code() -> None:
    net = network.build("resnet32", classes=10, image_size=8)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loop.add_gradient_noise(net, epoch=1, batch_size=128, lot=torch.Generator().manual_seed(0))
    noise = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert float(noise.std()) == pytest.approx(0.3 / 2**0.55 / 128, rel=0.01)
    assert float(noise.std()) == pytest.approx(1.6e-3, rel=0.01)


def test_e5_gradient_noise_is_off_unless_asked_for() -> None:
    plain, noisy = (network.build("resnet32", classes=3, image_size=8) for _ in range(2))
    assert not TINY.gradient_noise
    train(plain, small_phase("eeil", None, 0, 3), run_of())
    train(noisy, small_phase("eeil", None, 0, 3), run_of(replace(TINY, gradient_noise=True)))
    assert digest(plain) != digest(noisy)


def test_a_loss_that_is_not_a_number_ends_the_increment_with_a_reason() -> None:
    net = network.build("resnet32", classes=3, image_size=8)
    net.head.weight.data[0, 0] = torch.nan
    with pytest.raises(Failed, match=r"nan.*lower learning_rate"):
        train(net, small_phase("bic", None, 0, 3), run_of())


def test_i10_features_do_not_depend_on_how_many_images_are_looked_at_together() -> None:
    net = network.build("resnet32", classes=3, image_size=8)
    pixels, run = noise(2 * evaluate.BATCH + 3), run_of()
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    together = evaluate.features(net, pixels, run)
    assert max(sizes) == evaluate.BATCH
    torch.testing.assert_close(together[-3:], evaluate.features(net, pixels[-3:], run))


def test_b3_two_passes_over_the_holdout_give_the_same_logits() -> None:
    net, run = network.build("resnet32", classes=3, image_size=8), run_of(replace(TINY, crop=True, flip=True))
    net.train()
    first, second = (evaluate.features(net, noise(20), run) for _ in range(2))
    assert torch.equal(first, second)
    assert net.training  # and looking changes nothing
