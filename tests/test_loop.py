"""How a batch becomes a gradient: on one core or several, at full size or zoomed out."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from parts_training import BLACK_AND_WHITE, TINY, noise, small_phase
from torch import nn

from lifelist.training import network
from lifelist.training.loop import SMALLEST_IMAGE, Run, _Cores, fitted, image_size, quickest, start
from lifelist.training.loss import increment_loss
from lifelist.training.methods import METHODS, Schedule
from lifelist.training.network import Network


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def a_network(name: str = "resnet32") -> Network:
    return network.build(name, classes=4, image_size=32, seed=3)


def a_run() -> Run:
    return start(replace(TINY, image_size=32), **BLACK_AND_WHITE)  # type: ignore[arg-type]


@pytest.mark.usefixtures("two_threads")
def test_two_cores_give_the_gradient_of_data_parallel_training() -> None:
    """The reference: each half by itself, with its own batch-norm statistics, weighed by its share of the images."""
    net, run = a_network().double(), a_run()  # in float32, other kernels for other sizes differ by percents here
    phase = replace(small_phase("finetune", None, 0, 4), schedule=Schedule(epochs=1, batch_size=48, learning_rate=0.1))
    images = run.normalised(noise(48, 32)).double()
    rows = torch.arange(48) % 4
    losses = []
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for half in (slice(0, 24), slice(24, 48)):
        alone = copy.deepcopy(net).train()
        loss = nn.functional.cross_entropy(alone.logits(images[half]), rows[half])
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        for name, parameter in alone.named_parameters():
            assert parameter.grad is not None
            expected[name] += parameter.grad / 2
    first = copy.deepcopy(net).train()
    first.logits(images[:24])
    with _Cores(net, phase, run) as cores:
        assert cores.count == 2
        terms = cores.gradient(images, rows)
    torch.testing.assert_close({n: p.grad for n, p in net.named_parameters()}, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(dict(net.named_buffers()), dict(first.named_buffers()))
    assert float(terms.sum()) == pytest.approx(sum(losses) / 2)


@pytest.mark.usefixtures("two_threads")
def test_a_batch_too_small_to_share_stays_whole() -> None:
    """Batch-norm needs images: below twice the smallest batch, one core does it all, as one loss over the batch."""
    net, run = a_network(), a_run()
    phase = replace(small_phase("finetune", None, 0, 4), schedule=Schedule(epochs=1, batch_size=48, learning_rate=0.1))
    images, rows = run.normalised(noise(20, 32)), torch.arange(20) % 4
    whole = increment_loss(phase.method, copy.deepcopy(net).train().logits(images), torch.zeros(20, 0), rows, ())
    with _Cores(net, phase, run) as cores:
        torch.testing.assert_close(cores.gradient(images, rows), whole.detach())


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("name", "size", "count"), [("resnet32", 32, 2), ("resnet32", 8, 1), ("alexnet", 64, 1)])
def test_cores_share_a_batch_if_it_is_large_and_nothing_in_the_network_is_drawn(
    name: str, size: int, count: int
) -> None:
    """Threads would take turns at dropout's numbers in another order each time."""
    net = network.build(name, classes=4, image_size=size)
    phase = replace(small_phase("finetune", None, 0, 4), schedule=Schedule(epochs=1, batch_size=64, learning_rate=0.1))
    run = start(replace(TINY, image_size=size), **BLACK_AND_WHITE)  # type: ignore[arg-type]
    with _Cores(net, phase, run) as cores:
        assert cores.count == count
    assert torch.get_num_threads() == 2


def test_zooms_are_stretches_of_equally_many_epochs_and_the_last_is_whole() -> None:
    schedule = Schedule(epochs=7, learning_rate=0.1, zooms=(0.5, 0.75, 1.0))
    assert [image_size(schedule, epoch, 32) for epoch in range(7)] == [16, 16, 16, 24, 24, 32, 32]
    assert {image_size(schedule, epoch, 8) for epoch in range(7)} == {8}  # small images stay as they are
    assert image_size(schedule, 0, 20) == SMALLEST_IMAGE
    for name, method in METHODS.items():
        for form in method.schedules.values():
            last = fitted(form.increment, 10)
            assert image_size(last, last.epochs - 1, 32) == 32, name


def test_half_precision_is_not_chosen_unasked_on_a_cpu() -> None:
    assert not start(replace(TINY, precision="auto", device="cpu"), **BLACK_AND_WHITE).half  # type: ignore[arg-type]
    assert quickest("cpu") in ("bf16", "auto")
    assert quickest("cuda") == "auto"
