"""One class that was added under two names is told, and nothing else is."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from parts_rollout import Small
from parts_training import BLACK_AND_WHITE, TINY, digits

from lifelist.deploy import examples
from lifelist.training.data import GATE, Images, roles_on_arrival
from lifelist.training.evaluate import alike
from lifelist.training.increment import _tell_alike, learn
from lifelist.training.job import Class, Task
from lifelist.training.loop import Event, start
from lifelist.training.network import NETWORKS
from lifelist.training.options import TrainingOptions
from lifelist.training.pixels import Pixels

assert NETWORKS["small"] is Small  # type: ignore[index]
SHORT = replace(TINY, epochs=0, batch_size=0)
KESTREL, COMMON = 3, 4  # both show the digit 3


@functools.cache
def base(split: bool, options: TrainingOptions = SHORT, per_class: int = 60) -> tuple[str, ...]:
    """What is told of an increment with the digits 0, 1, 2, and 3: in two halves under two names, or with a 7."""
    shown = {0: (0, 0), 1: (1, 0), 2: (2, 0), KESTREL: (3, 0), COMMON: (3, 1) if split else (7, 1)}
    parts = []
    for class_id, (digit, first) in shown.items():  # every other image: neighbours are of one hand
        which = (digits().images.labels == digit).nonzero()[first::2, 0][:per_class]
        found = digits().images.take(which)
        parts.append(Images(found.pixels, torch.full((len(found),), class_id), found.ids))
    labels = torch.cat([part.labels for part in parts])
    names = ("zero", "one", "two", "kestrel", "common kestrel")
    events: list[Event] = []
    learn(
        Task(
            options=options,
            new=tuple(Class(k, name) for k, name in enumerate(names)),
            images=Images(
                Pixels(torch.cat([p.pixels[:] for p in parts])), labels, tuple(i for p in parts for i in p.ids)
            ),
            roles=roles_on_arrival(labels, gate=0.3, holdout=0.1, generator=torch.Generator().manual_seed(0)),
        ),
        on_event=events.append,
    )
    return tuple(event["message"] for event in events if event.get("what") == "classes.alike")


def test_one_class_under_two_names_is_told_by_both_names_with_counts_and_a_remedy() -> None:
    (message,) = base(split=True)
    assert message.startswith("kestrel and common kestrel are taken for one another in ")
    assert " of 48 images, as often as by chance: if they are one class under two names, go back" in message


def test_ordinary_classes_are_not_told() -> None:
    assert base(split=False) == ()


def test_a_network_that_has_hardly_learned_does_not_cry_wolf() -> None:
    assert base(split=False, options=replace(SHORT, epochs=1)) == ()


def few_of(digit: int, half: int, class_id: int) -> Images:
    """Twenty images of one half of a digit's, neighbours in different halves."""
    found = digits().images.take((digits().images.labels == digit).nonzero()[half::2, 0][:20])
    return Images(found.pixels, torch.full((len(found),), class_id), found.ids)


def together(*parts: Images) -> Images:
    pixels, labels = torch.cat([p.pixels[:] for p in parts]), torch.cat([p.labels for p in parts])
    return Images(Pixels(pixels), labels, tuple(i for p in parts for i in p.ids))


def arriving_later(method: str, digit: int, seed: int) -> list[str]:
    """What is told of a class that comes to the digits 0 to 3: the other half of the 3, or another digit."""
    options = replace(SHORT, method=method, network="small", memory_total=90, seed=seed)
    pattern = [examples.ROLES.index(role) for role in itertools.islice(examples.roles(0.2, 0.1), 20)]
    first, new = together(*(few_of(k, 0, k) for k in range(4))), few_of(digit, 1, 4)
    roles = torch.tensor(pattern * 4, dtype=torch.uint8)
    old = tuple(Class(k, str(k)) for k in range(4))
    base = learn(Task(options=options, new=old, images=first, roles=roles))
    kept = [i for lists in (base.exemplars, base.holdout) for ids in lists.values() for i in ids]
    which = torch.tensor([*(first.ids.index(i) for i in kept), *(roles == GATE).nonzero()[:, 0].tolist()])
    learned = learn(
        Task(
            options=options,
            old=old,
            new=(Class(4, "twin"),),
            heads=base.heads,
            teacher=base.checkpoint,
            mean=base.mean,
            std=base.std,
            images=together(first.take(which), new),
            roles=torch.cat([roles[which], torch.tensor(pattern, dtype=torch.uint8)]),
        )
    )
    return [message for message in learned.warnings if "taken for one another" in message]


@pytest.mark.parametrize(("method", "seed"), [("bic", 0), ("wa", 0), ("wa", 1)])  # the last: by its own answer alone
def test_a_twin_that_arrives_later_is_told_once_and_another_class_is_not(method: str, seed: int) -> None:
    (message,) = arriving_later(method, 3, seed)
    assert message.startswith("3 and twin are taken for one another in ")
    assert arriving_later(method, 7, seed) == []


@pytest.mark.parametrize(
    ("nearest", "linear", "counts", "told"),
    [
        (((2, 2, 6), (2, 3, 6), (3, 3, 6), (3, 2, 6)), ((2, 3, 12), (3, 3, 12)), (9, 9), 1),  # by both
        (((2, 2, 9), (2, 3, 3), (3, 3, 9), (3, 2, 3)), ((2, 3, 12), (3, 3, 12)), (9, 9), 1),  # a little by nearest mean
        (((2, 2, 12), (3, 3, 12)), ((2, 3, 12), (3, 3, 12)), (9, 9), 0),  # a short training
        (((2, 2, 9), (2, 3, 3), (3, 3, 9), (3, 2, 3)), ((2, 3, 12), (3, 3, 12)), (180, 9), 0),  # the counts
        (((2, 2, 9), (2, 3, 3), (3, 3, 9), (3, 2, 3)), ((2, 2, 9), (2, 3, 3), (3, 3, 9), (3, 2, 3)), (9, 9), 0),
    ],
)
def test_the_last_layer_is_believed_of_a_pair_that_the_nearest_mean_doubts_too(
    nearest: tuple[tuple[int, int, int], ...],
    linear: tuple[tuple[int, int, int], ...],
    counts: tuple[int, int],
    told: int,
) -> None:
    labels = torch.tensor([0, 1, *[2] * counts[0], *[3] * counts[1]])
    task = Task(
        options=SHORT,
        new=tuple(Class(k, str(k)) for k in range(4)),
        images=Images(
            Pixels(torch.zeros(len(labels), 8, 8, 3, dtype=torch.uint8)), labels, tuple(map(str, range(len(labels))))
        ),
        roles=torch.zeros(len(labels), dtype=torch.uint8),
    )
    events: list[Event] = []
    by_mean, rows = answers(*SOUND, *nearest)
    by_last_layer, _ = answers(*SOUND, *linear)
    _tell_alike(by_mean, by_last_layer, rows, task, start(SHORT, **BLACK_AND_WHITE, tell=events.append))
    assert len(events) == told


def answers(*groups: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(predicted, rows) of groups of (row, predicted row, images)."""
    pairs = [(row, predicted) for row, predicted, count in groups for _ in range(count)]
    rows, predicted = torch.tensor(pairs).T
    return predicted, rows


SOUND = ((0, 0, 20), (1, 1, 20))


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ((*SOUND, (2, 2, 6), (2, 3, 6), (3, 3, 6), (3, 2, 6)), [(2, 3, 12, 24)]),  # by chance
        ((*SOUND, (2, 3, 12), (3, 3, 12)), [(2, 3, 12, 24)]),  # all taken for one of them
        ((*SOUND, (2, 2, 10), (2, 3, 2), (3, 3, 10), (3, 2, 2)), []),  # mostly right
        ((*SOUND, (2, 3, 4), (3, 3, 3)), []),  # too few images
        ((*SOUND, (2, 3, 1), (3, 3, 12)), []),  # of one of them
        ((*SOUND, (2, 2, 4), (2, 3, 4), (2, 0, 4), (3, 3, 4), (3, 2, 4), (3, 1, 4)), []),  # anything is confused
        (((0, 0, 9), (0, 1, 11), (1, 1, 20), (1, 0, 20), (2, 3, 12), (3, 3, 12)), []),  # little is known
        (((2, 3, 12), (3, 3, 12)), []),  # nothing else is known
    ],
)
def test_a_pair_is_told_by_the_stated_rule(
    groups: tuple[tuple[int, int, int], ...], found: list[tuple[int, int, int, int]]
) -> None:
    assert alike(*answers(*groups), new=[3]) == found


def test_a_pair_of_old_classes_is_not_told_again() -> None:
    given = answers((0, 0, 20), (1, 2, 12), (2, 2, 12), (3, 3, 20))
    assert alike(*given, new=[2]) == [(1, 2, 12, 24)]
    assert alike(*given, new=[3]) == []


def test_without_images_nothing_is_told() -> None:
    assert alike(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), new=[0]) == []
