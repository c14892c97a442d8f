"""Networks: the head that grows, ResNet-32 and iCaRL's variant, torchvision's by name, weights from a local file."""

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from parts_training import BLACK_AND_WHITE, TINY, digest

from lifelist.exporter.errors import BadSetting, Corrupt
from lifelist.training import network
from lifelist.training.checkpoint import pack
from lifelist.training.increment import load_network
from lifelist.training.loop import start, train
from lifelist.training.network import build


def lot() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_resnet32_is_the_one_of_the_papers() -> None:
    net = build("resnet32", classes=100, image_size=32)
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 31  # and the last layer makes 32
    assert net.dim == 64
    assert sum(p.numel() for p in net.backbone.parameters()) == 463_504  # 0.46 million


def test_features_of_icarls_variant_may_be_negative_and_the_others_may_not() -> None:
    x = torch.randn(8, 3, 32, 32, generator=lot())
    least = {}
    for name in ("resnet32", "resnet32-icarl"):
        net = build(name, classes=2, image_size=32)
        [*net.backbone.blocks][-1].bn2.bias.data -= 5  # type: ignore[arg-type, union-attr, operator]
        least[name] = float(net(x).detach().min())
    assert least["resnet32"] >= 0 > least["resnet32-icarl"]


@pytest.mark.parametrize("name", ["resnet32", "resnet32-icarl", "resnet18", "maxvit_t"])
def test_a_copy_for_passes_answers_the_same_in_half_the_bits_and_leaves_the_network_alone(name: str) -> None:
    size = 224 if name == "maxvit_t" else 32
    net = build(name, classes=3, image_size=size)
    x = torch.randn(4, 3, size, size, generator=lot())
    net(x)  # statistics for batch-norm, so that folding it does something
    before = digest(net)
    copy = net.for_passes()
    assert (digest(net), net.training, copy.training) == (before, True, False)
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    folded = [m for m in copy.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(folded) < sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    with torch.no_grad():
        wanted, found = net.eval()(x), copy(x.bfloat16()).float()
    assert float(torch.nn.functional.cosine_similarity(found, wanted).min()) > 0.999
    assert not torch.equal(found, wanted)


def test_growing_copies_weight_and_bias_of_the_old_rows() -> None:
    net = build("resnet32", classes=3, image_size=8)
    weight, bias = net.head.weight.clone(), net.head.bias.clone()
    net.grow(4, lot())
    assert net.classes == 7
    assert torch.equal(net.head.weight[:3], weight)
    assert torch.equal(net.head.bias[:3], bias)
    bound = net.dim**-0.5
    assert bound / 2 < float(net.head.weight[3:].abs().max()) <= bound  # torch's usual initial values
    assert bool((net.head.bias[3:] != 0).all())


def test_new_rows_are_trained_because_the_optimiser_is_made_after_growing() -> None:
    from test_methods import small_phase

    net = build("resnet32", classes=3, image_size=8)
    net.grow(2, lot())
    before = net.head.weight.clone()
    run = start(TINY, **BLACK_AND_WHITE)
    train(net, small_phase("replay", None, n=3, classes=5), run)
    assert bool((net.head.weight != before).any(dim=1).all())


def test_the_same_seed_gives_the_same_weights_whatever_ran_before() -> None:
    first = build("resnet32", classes=3, image_size=8, seed=4)
    torch.rand(17)
    state = torch.get_rng_state()
    second = build("resnet32", classes=3, image_size=8, seed=4)
    assert digest(first) == digest(second) != digest(build("resnet32", classes=3, image_size=8, seed=5))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "size", "dim"),
    [
        ("resnet18", 32, 512),  # fc
        ("mobilenet_v3_small", 32, 1024),  # classifier, its last layer
        ("densenet121", 32, 1024),  # classifier, a single layer
        ("squeezenet1_1", 32, 512),  # a convolution for a last layer
        ("vit_b_32", 32, 768),  # heads, and told the size of the image
        ("swin_t", 32, 768),  # head
        ("googlenet", 32, 1024),  # other outputs beside the main one
    ],
)
def test_any_torchvision_classifier_gives_features_in_place_of_its_own_classes(name: str, size: int, dim: int) -> None:
    net = build(name, classes=3, image_size=size).eval()
    x = torch.randn(2, 3, size, size)
    assert net(x).shape == (2, dim)
    assert net.logits(x).shape == (2, 3)
    assert net.features(x).shape == (2, dim)


def test_a_network_that_does_not_exist_is_an_error_that_names_near_ones() -> None:
    with pytest.raises(BadSetting, match=r"'resnet81' does not exist.*resnet32.*resnet18"):
        build("resnet81", classes=2, image_size=32)


def test_a_network_that_cannot_take_the_size_says_so() -> None:
    with pytest.raises(BadSetting, match=r"'vit_b_16' does not take images of 20×20"):
        build("vit_b_16", classes=2, image_size=20)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_torchvision_model_are_read_from_a_local_file_but_for_its_last_layer(
    tmp_path: Path, suffix: str
) -> None:
    model = torchvision.models.get_model("resnet18", weights=None, num_classes=1000)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": model.state_dict()}, file)
    else:
        safetensors.torch.save_file(model.state_dict(), file)
    net = build("resnet18", classes=3, image_size=32, pretrained=str(file)).eval()
    model.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net(x), model.eval()(x))


def test_a_checkpoint_of_ours_serves_as_pretrained_weights(tmp_path: Path) -> None:
    first = build("resnet32", classes=9, image_size=16, seed=3)
    (tmp_path / "a.safetensors").write_bytes(pack(first.state_dict()))
    second = build("resnet32", classes=2, image_size=16, seed=8, pretrained=str(tmp_path / "a.safetensors"))
    assert digest(first.backbone) == digest(second.backbone)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.safetensors", None, "which is not a file"),
        ("a.safetensors", b"no", "neither safetensors nor plain weights"),
        ("a.pth", b"no", "neither safetensors nor plain weights"),
        (
            "b.safetensors",
            pack({"conv1.weight": torch.zeros(1)}),
            r"does not fit the network: it lacks \['conv",
        ),
    ],
)
def test_a_file_that_holds_no_weights_for_the_network_says_what_is_wrong(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadSetting, match=message):
        build("resnet32", classes=2, image_size=16, pretrained=str(tmp_path / name))


def test_a_torch_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Dangerous:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save(Dangerous(), tmp_path / "a.pth")
    with pytest.raises(BadSetting, match="plain weights"):
        build("resnet32", classes=2, image_size=16, pretrained=str(tmp_path / "a.pth"))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_network_or_other_classes_is_refused() -> None:
    data = pack(build("resnet32", classes=3, image_size=8).state_dict())
    assert load_network(data, TINY, 3).training is False
    with pytest.raises(Corrupt, match=r"not of resnet32 with 4 classes"):
        load_network(data, TINY, 4)


def test_nothing_in_training_unpickles() -> None:
    for file in Path(network.__file__).parent.glob("*.py"):
        text = file.read_text()
        assert "pickle.load" not in text, file
        for call in re.findall(r"(?<!safetensors\.)torch\.load\([^()]*,[^()]*\)", text):
            assert "weights_only=True" in call, file
