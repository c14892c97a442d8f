"""How work outside the loop uses cores: one thread in each operation, several parts at a time, the same results."""

from collections.abc import Iterator

import parts_training  # noqa: F401  (torch takes one thread, unless a test says otherwise)
import pytest
import torch

from lifelist.training import evaluate, exemplars, network, rebalance
from lifelist.training.loop import start
from lifelist.training.options import TrainingOptions
from lifelist.training.threads import one_thread, side_by_side


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_one_thread_lasts_as_long_as_its_block_even_if_that_fails() -> None:
    @one_thread()
    def fail() -> None:
        raise ValueError(torch.get_num_threads())

    with pytest.raises(ValueError, match=r"^1$"):
        fail()
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_parts_keep_their_order_and_each_takes_one_thread() -> None:
    seen = []

    def double(part: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return 2 * part

    found = side_by_side(double, torch.arange(12).split(3), 2)
    assert torch.cat(found).tolist() == list(range(0, 24, 2))
    assert seen == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_features_are_the_same_on_two_cores_and_in_half_precision_nearly_so() -> None:
    run = start(TrainingOptions(image_size=8, precision="fp32"), mean=(0.5,) * 3, std=(0.5,) * 3)
    net = network.build("resnet32", classes=3, image_size=8)
    pixels = torch.randint(0, 256, (300, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    on_two = evaluate.features(net, pixels, run)
    half = evaluate.features(net.for_passes(), pixels, run)
    assert torch.get_num_threads() == 2
    assert net.training
    with one_thread():
        torch.testing.assert_close(on_two, evaluate.features(net, pixels, run))
    assert not torch.equal(half, on_two)
    assert float(torch.nn.functional.cosine_similarity(half, on_two).min()) > 0.999


@pytest.mark.usefixtures("two_threads")
def test_herding_and_the_fit_of_a_bias_take_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    tensor, softmax = torch.tensor, torch.softmax

    def noted(function: object) -> object:
        def call(*arguments: object, **named: object) -> object:
            seen.append(torch.get_num_threads())
            return function(*arguments, **named)  # type: ignore[operator]

        return call

    monkeypatch.setattr(torch, "tensor", noted(tensor))
    monkeypatch.setattr(torch, "softmax", noted(softmax))
    exemplars.herd(torch.nn.functional.normalize(torch.randn(20, 4), dim=1), 3)
    rebalance.fit_bias(torch.randn(20, 4), torch.arange(20) % 4, 2)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
