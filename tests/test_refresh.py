"""New images of classes that are known already, alone or mixed with new classes: every method takes them."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts_training import TINY, digits, together

from lifelist.exporter.errors import BadInput
from lifelist.training import increment, rebalance
from lifelist.training.data import GATE, HOLDOUT, TRAINING, Images
from lifelist.training.increment import learn, sort_images
from lifelist.training.job import Class, Learned, Task, read_task, write_task
from lifelist.training.loop import Phase
from lifelist.training.loss import increment_loss
from lifelist.training.methods import METHODS

OPTIONS = replace(TINY, epochs=0, batch_size=0, memory_total=60)
PATTERN = torch.tensor([TRAINING, GATE, TRAINING, TRAINING, HOLDOUT])  # of a class's images, over and over
ONE, THREE, SEVEN, EIGHT = 1, 3, 7, 8
NEWS = 6 * int((PATTERN == TRAINING).sum())  # training images that a class brings


def images(shown: int, class_id: int, count: int = 30) -> Images:
    """The first pictures of the digit `shown`, as images of the class `class_id`."""
    which = (digits().images.labels == shown).nonzero()[:count, 0]
    found = digits().images.take(which)
    return Images(found.pixels, torch.full((count,), class_id), found.ids)


@functools.cache
def base() -> tuple[Task, Learned]:
    """Zero, one and three are known, by BiC: what a method makes of a refreshed class is seen with any teacher."""
    given = together(*(images(c, c) for c in (0, ONE, THREE)))
    task = Task(
        options=OPTIONS,
        new=tuple(Class(c, str(c)) for c in (0, ONE, THREE)),
        images=given,
        roles=PATTERN.repeat(18).to(torch.uint8),
    )
    return task, learn(task)


def following(method: str, *, new: tuple[int, ...] = ()) -> Task:
    """Pictures of an eight come as new images of the class 1; perhaps with `new` classes."""
    before, learned = base()
    old = before.images
    place = {image_id: k for k, image_id in enumerate(old.ids)}
    remembered = [place[i] for lists in (learned.exemplars, learned.holdout) for ids in lists.values() for i in ids]
    of_gate = (before.roles == GATE).nonzero()[:, 0].tolist()
    which = torch.tensor([*remembered, *of_gate])
    fresh = [images(EIGHT, ONE), *(images(c, c) for c in new)]
    return Task(
        options=replace(OPTIONS, method=method),
        old=before.new,
        new=tuple(Class(c, str(c)) for c in new),
        refreshed={ONE: NEWS},
        heads=learned.heads,
        teacher=learned.checkpoint,
        bias=learned.bias,
        mean=learned.mean,
        std=learned.std,
        images=together(old.take(which), *fresh),
        roles=torch.cat([before.roles[which], PATTERN.repeat(6 * len(fresh)).to(torch.uint8)]),
    )


@functools.cache
def refreshed(method: str) -> Learned:
    return learn(following(method))


@functools.cache
def mixed(method: str) -> Learned:
    task = following(method, new=(SEVEN,))
    return learn(replace(task, options=replace(task.options, epochs=40)))  # so many that no processor's bits decide


def right(method: str, learned: Learned, class_id: int) -> float:
    return float(learned.evaluation[METHODS[method].answers_by]["per_class"][str(class_id)])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_new_images_of_a_known_class_without_a_new_class(method: str) -> None:
    """Half of the gate's images of the class 1 are eights, which the base had never seen: it was right in 0.5."""
    learned = refreshed(method)
    assert learned.class_ids == (0, ONE, THREE)
    assert learned.heads == (3,)
    assert learned.bias is None
    assert learned.evaluation["linear"]["new"] is None
    row = METHODS[method]
    if row.frozen and row.answers_by == "nearest_mean":  # one mean in features that stay is near neither kind of image
        assert not torch.equal(learned.means[1], base()[1].means[1])
    else:
        assert right(method, learned, ONE) > (0.5 if row.answers_by == "nearest_mean" else 0.65)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_new_images_of_a_known_class_and_a_new_class_together(method: str) -> None:
    learned = mixed(method)
    assert learned.class_ids == (0, ONE, THREE, SEVEN)
    assert learned.heads == (3, 1)
    assert right(method, learned, ONE) >= 0.5
    assert right(method, learned, SEVEN) > 0.5


def test_what_is_forgotten_by_replaying_methods_is_little() -> None:
    for method in ("bic", "eeil", "icarl", "wa"):
        for known in (0, THREE):
            assert right(method, refreshed(method), known) >= 0.8


@pytest.mark.parametrize("method", ["bic", "eeil", "icarl", "wa"])
def test_a_refreshed_class_chooses_its_exemplars_anew_and_the_others_keep_theirs(method: str) -> None:
    before, learned = base()[1], mixed(method)
    eights = set(images(EIGHT, ONE).ids)
    assert any(image_id in eights for image_id in learned.exemplars[ONE])
    assert any(image_id not in eights for image_id in learned.exemplars[ONE])
    for known in (0, THREE):
        count = len(learned.exemplars[known])
        assert 0 < count < len(before.exemplars[known])  # four classes share what three did
        assert learned.exemplars[known] == before.exemplars[known][:count]
    assert learned.holdout[ONE] == before.holdout[ONE][: len(learned.holdout[ONE])]  # those that came first


def test_all_images_of_a_refreshed_class_are_trained_on_and_its_holdout_and_gate_images_are_not() -> None:
    task = following("bic")
    found = sort_images(task, METHODS["bic"])
    for images_, role in ((found.training, TRAINING), (found.gate, GATE)):
        ids = {i for i, c in zip(images_.ids, images_.labels.tolist(), strict=True) if c == ONE}
        assert ids == set(task.images.take(task.of(ONE, role)).ids)
    assert torch.bincount(found.holdout.labels)[[0, ONE, THREE]].unique().numel() == 1


def test_images_of_a_refreshed_class_count_as_new_and_nothing_is_distilled_on_them() -> None:
    student, teacher = torch.zeros(2, 4), torch.zeros(2, 4)
    rows = torch.tensor([1, 3])  # of a refreshed class, of another
    terms = increment_loss(METHODS["bic"], student, teacher, rows, [], refreshed=[1])
    log4 = torch.log(torch.tensor(4.0))
    # λ = (n-r)/(n+m) = 3/4 weighs distilling; each image is half of the batch
    torch.testing.assert_close(terms, torch.stack([log4 / 8, log4 * 0, log4 / 8, log4 * 3 / 8]))
    finetuned = increment_loss(METHODS["finetune"], student, teacher, rows, [], refreshed=[1])
    torch.testing.assert_close(finetuned, torch.stack([log4 / 2, log4 * 0, log4 * 0, log4 * 0]))


def test_finetuning_sees_the_refreshed_classes_and_no_other_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    monkeypatch.setattr(increment, "train", lambda student, phase, run: seen.append(set(phase.rows.tolist())))
    learn(following("finetune", new=(SEVEN,)))
    assert seen == [{1, 3}]  # the rows of the one and of the seven


@pytest.mark.parametrize("all_of_them", [False, True])
def test_the_balanced_set_has_as_many_images_of_a_refreshed_class_as_of_any_other(all_of_them: bool) -> None:
    task = following("eeil")
    task = replace(task, refreshed={0: 1, ONE: NEWS, THREE: 1}) if all_of_them else task
    with pytest.MonkeyPatch.context() as patch:
        seen: list[Phase] = []
        patch.setattr(increment, "train", lambda student, phase, run: seen.append(phase))
        patch.setattr(rebalance, "train", lambda student, phase, run: seen.append(phase))
        learn(task)
    main, balanced = (torch.bincount(phase.rows) for phase in seen)
    assert main[1] > main[0]
    share = 20 if all_of_them else 18  # of 60 images; of the untouched classes, a tenth of it is hold-out
    assert balanced.tolist() == [share] * 3


def test_a_task_with_refreshed_classes_comes_back_from_its_folder(tmp_path: Path) -> None:
    task = following("bic")
    write_task(tmp_path, task)
    found = read_task(tmp_path)
    assert found.refreshed == {ONE: NEWS}
    assert found.fingerprint == task.fingerprint
    assert replace(task, refreshed={0: 1, ONE: NEWS}).fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, refreshed={}), "at least one new class, or new images of a known one"),
        (
            lambda t: replace(t, refreshed={ONE: NEWS, 9: 1}),
            r"refreshed classes should be old ones, \[0, 1, 3\]; \[9\] are not",
        ),
        (
            lambda t: replace(t, roles=t.roles.masked_fill(t.images.labels == ONE, GATE)),
            r"no training images of 1 \(1\)",
        ),
        (lambda t: replace(t, refreshed={ONE: 1000}), r"class 1 should bring 1 … \d+ new training images, not 1000"),
    ],
)
def test_a_task_whose_refreshed_classes_do_not_fit_says_why(change: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        change(following("bic"))  # type: ignore[operator]
