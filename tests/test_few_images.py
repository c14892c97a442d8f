"""A class of one to five images, and one of seven beside one of a thousand: every method, or what to use instead."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from parts_rollout import Small
from parts_training import TINY, digits, together

from lifelist.deploy import examples
from lifelist.exporter.errors import Failed
from lifelist.training.data import GATE, HOLDOUT, TRAINING, Images
from lifelist.training.increment import learn
from lifelist.training.job import Class, Learned, Task
from lifelist.training.methods import METHODS
from lifelist.training.network import NETWORKS
from lifelist.training.pixels import Pixels

assert NETWORKS["small"] is Small  # type: ignore[index]
OPTIONS = replace(TINY, network="small", epochs=0, batch_size=0, memory_total=90)
PATTERN = [examples.ROLES.index(role) for role in itertools.islice(examples.roles(0.2, 0.1), 30)]  # as a server has it


def images(digit: int, first: int, count: int) -> Images:
    return digits().images.take((digits().images.labels == digit).nonzero()[first : first + count, 0])


def many(digit: int, count: int) -> Images:
    """A hundred images of a digit over and over, each time under other noise."""
    pixels = images(digit, 40, 100).pixels[:].repeat(count // 100, 1, 1, 1)
    noise = torch.randint(-30, 31, pixels.shape, generator=torch.Generator().manual_seed(0))
    noisy = (pixels.int() + noise).clamp(0, 255).to(torch.uint8)
    return Images(Pixels(noisy), torch.full((count,), digit), tuple(f"{digit}, {k}" for k in range(count)))


@functools.cache
def base() -> tuple[Task, Learned]:
    """Zero, one and two are known, by BiC."""
    task = Task(
        options=OPTIONS,
        new=tuple(Class(c, str(c)) for c in (0, 1, 2)),
        images=together(*(images(c, 0, 30) for c in (0, 1, 2))),
        roles=torch.tensor(PATTERN * 3, dtype=torch.uint8),
    )
    return task, learn(task)


def following(method: str, *brought: tuple[Images, list[int]]) -> Learned:
    """What comes of an increment with the images of one class each, and their roles."""
    before, learned = base()
    place = {image_id: k for k, image_id in enumerate(before.images.ids)}
    kept = [place[i] for lists in (learned.exemplars, learned.holdout) for ids in lists.values() for i in ids]
    which = torch.tensor([*kept, *(before.roles == GATE).nonzero()[:, 0].tolist()])
    new = [int(some.labels[0]) for some, _ in brought]
    return learn(
        Task(
            options=replace(OPTIONS, method=method),
            old=before.new,
            new=tuple(Class(c, str(c)) for c in new),
            heads=learned.heads,
            teacher=learned.checkpoint,
            bias=learned.bias,
            mean=learned.mean,
            std=learned.std,
            images=together(before.images.take(which), *(some for some, _ in brought)),
            roles=torch.cat([before.roles[which], *(torch.tensor(r, dtype=torch.uint8) for _, r in brought)]),
        )
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_class_of_a_few_images_in_the_roles_of_a_server_is_learned(method: str, count: int) -> None:
    roles = PATTERN[:count]
    training = roles.count(TRAINING)
    assert (training, roles.count(GATE), roles.count(HOLDOUT)) == {
        1: (1, 0, 0), 2: (1, 1, 0), 3: (2, 1, 0), 5: (3, 1, 1)
    }[count]  # fmt: skip
    if training == 1 and method == "finetune":  # the new image is all that it sees
        with pytest.raises(Failed, match=r"needs at least 2\. Add images, or choose a method that replays"):
            following(method, (images(4, 0, count), roles))
        return
    learned = following(method, (images(4, 0, count), roles))
    assert learned.means.isfinite().all()
    assert len(learned.exemplars[4]) == training
    assert learned.evaluation["linear"]["per_class"]["4"] in ([None] if count == 1 else [0.0, 1.0])
    uncorrected = any("bias correction needs 2 hold-out images of each class" in said for said in learned.warnings)
    assert uncorrected == METHODS[method].holdout  # one image is held out at most


@pytest.mark.parametrize("method", METHODS)
def test_five_images_are_enough_for_a_class_mean(method: str) -> None:
    roles = [TRAINING] * 5 + [GATE] * 30
    learned = following(method, (images(4, 0, 35), roles))
    assert learned.evaluation["nearest_mean"]["per_class"]["4"] >= 0.5


@pytest.mark.parametrize("method", METHODS)
def test_seven_images_beside_a_thousand_are_answered_or_it_is_said_what_to_use(method: str) -> None:
    thousand = (together(many(3, 1000), images(3, 0, 30)), [TRAINING] * 900 + [HOLDOUT] * 100 + [GATE] * 30)
    seven = (together(images(4, 0, 7), images(4, 40, 30)), [TRAINING] * 6 + [HOLDOUT] + [GATE] * 30)
    learned = following(method, thousand, seven)
    per_class = learned.evaluation[METHODS[method].answers_by]["per_class"]
    assert per_class["3"] >= (0.4 if METHODS[method].frozen else 0.8)  # features that stay know three other classes
    assert len(learned.exemplars[4]) == 6
    assert not any("taken for one another" in message for message in learned.warnings)  # it is the counts, and no twin
    said = [message for message in learned.warnings if "4 has 6 images to train on, 3 900" in message]
    row = METHODS[method]
    if row.answers_by == "nearest_mean" or row.frozen:  # a class weighs the same, however many images it has
        assert said == []
        assert per_class["4"] >= 0.6
    else:
        assert len(said) == 1
        assert "or choose method icarl, which answers by nearest mean" in said[0]
