"""The exported graph against what it came from: folding, batch-norm, parity, any number of images."""

import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from parts import DIM, PREPROCESS, images, tiny_network
from torch import Tensor, nn

from lifelist.exporter import fold, graph, index, parity
from lifelist.exporter.errors import Failed, Refused
from lifelist.exporter.manifest import BiasCorrection, Preprocess
from lifelist.exporter.registry import Registry
from lifelist.exporter.session import open_session
from lifelist.training.network import ResNet32

SMALL = Preprocess(32, 32, (0.5, 0.45, 0.4), (0.25, 0.2, 0.3))


def lived_in(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with weights of this seed, and batch-norms as training leaves them: no mean 0, no variance 1."""
    random = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=random)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
            module.weight.data.uniform_(0.3, 0.9, generator=random)
            module.bias.data.normal_(0, 0.2, generator=random)
    return network


def last_layer(classes: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight classes×dim and a bias, as an untrained nn.Linear has them."""
    random = np.random.default_rng(seed)
    weight = random.uniform(-1, 1, (classes, dim)) / dim**0.5
    return weight.astype(np.float32), random.uniform(-0.2, 0.2, classes).astype(np.float32)


def answers(data: bytes, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session, _ = open_session(data, provider="cpu")
    logits, embedding = session.run(["logits", "embedding"], {"images": pictures})
    return logits, embedding


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return lived_in(ResNet32(last_relu=False))


@pytest.fixture(scope="module")
def exported(resnet: nn.Module) -> bytes:
    """ResNet-32 with option-A shortcuts and seven classes, the last three corrected."""
    weight, bias = fold.fold_bias(*last_layer(7, 64), BiasCorrection(0.6, -0.45, 4, 7))
    return graph.export(resnet, weight=weight, bias=bias, preprocess=SMALL)


# ---- fold parity (acceptance test 5)


def test_b10_the_exported_logits_are_the_corrected_ones(resnet: nn.Module, exported: bytes) -> None:
    """alpha·z + beta written out in float64 beside the folded graph: at most 1e-5 apart, on every row."""
    weight, bias = last_layer(7, 64)
    pictures = images(64, 32)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (SMALL.mean, SMALL.std))
    with torch.no_grad():
        x = (torch.tensor(pictures).permute(0, 3, 1, 2).double() / 255 - mean) / std
        z = resnet.eval().double()(x) @ torch.tensor(weight).double().T + torch.tensor(bias).double()
    resnet.float()
    corrected = torch.cat([z[:, :4], 0.6 * z[:, 4:] - 0.45], dim=1).numpy()
    logits, _ = answers(exported, pictures)
    assert np.abs(logits - corrected).max() <= 1e-5
    assert np.abs(logits - z.numpy()).max() > 0.1  # and the correction is no small thing


@pytest.mark.parametrize("rows", [(0, 3), (2, 3), (1, 7), (0, 7)])
def test_folding_changes_the_corrected_rows_and_no_others(rows: tuple[int, int]) -> None:
    weight, bias = last_layer(7, 64)
    features = np.random.default_rng(1).normal(size=(200, 64))
    folded, shift = fold.fold_bias(weight, bias, BiasCorrection(1.3, 0.7, *rows))
    z = features @ weight.T.astype(np.float64) + bias
    inside = (np.arange(7) >= rows[0]) & (np.arange(7) < rows[1])
    wanted = np.where(inside, 1.3 * z + 0.7, z)
    assert features @ folded.T.astype(np.float64) + shift == pytest.approx(wanted, abs=1e-5)
    assert np.array_equal(folded[~inside], weight[~inside])
    assert np.array_equal(shift[~inside], bias[~inside])


def test_without_a_correction_folding_gives_equal_copies() -> None:
    weight, bias = last_layer(3, 8)
    folded, shift = fold.fold_bias(weight, bias, None)
    assert np.array_equal(folded, weight)
    assert np.array_equal(shift, bias)
    assert not np.shares_memory(folded, weight)
    before = weight.copy()
    fold.fold_bias(weight, bias, BiasCorrection(0.5, 0.1, 0, 2))
    assert np.array_equal(weight, before)  # the raw layer goes on to the next increment


def test_a_correction_of_rows_that_are_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows 2 … 5, and the last layer has 3"):
        fold.fold_bias(*last_layer(3, 8), BiasCorrection(1.0, 0.0, 2, 6))
    with pytest.raises(ValueError, match="a weight C×D and a bias C"):
        fold.fold_bias(np.zeros((3, 8), np.float32), np.zeros(4, np.float32), None)


def test_nearest_mean_as_a_layer_and_as_an_index_name_the_class_of_the_nearest_mean() -> None:
    """10,000 random features and the zero vector: ‖f/‖f‖ − μ/‖μ‖‖ in float64 against both ways that we answer."""
    random = np.random.default_rng(0)
    features = random.normal(size=(10_001, 64)).astype(np.float32) * random.uniform(0.01, 100, (10_001, 1)).astype("f4")
    features[-1] = 0
    means = random.normal(size=(100, 64)) * random.uniform(0.1, 10, (100, 1))
    exact = features[:-1].astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    directions = means / np.linalg.norm(means, axis=1, keepdims=True)
    distances = ((exact**2).sum(1)[:, None] - 2 * exact @ directions.T + 1).clip(0)
    ordered = np.sort(distances, axis=1)
    told_apart = ordered[:, 1] - ordered[:, 0] > 1e-5  # closer than float32 can tell is no difference
    assert told_apart.mean() > 0.999
    wanted = distances.argmin(axis=1)
    weight, bias = fold.nearest_mean_layer(means)
    by_layer = (features @ weight.T + bias).argmax(axis=1)
    loaded = index.load(index.build(range(100, 200), means), 64)
    scores, rows = loaded.nearest(fold.unit(features), top_k=1)
    assert np.array_equal(by_layer[:-1][told_apart], wanted[told_apart])
    assert np.array_equal(rows[:-1, 0][told_apart], wanted[told_apart])
    assert np.isfinite(features @ weight.T).all()
    assert scores[-1, 0] == 0.0


def test_the_zero_vector_has_a_zero_embedding_and_plain_logits() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(-1 - x.abs()).mean((2, 3))

    weight, bias = last_layer(4, 3)
    logits, embedding = answers(graph.export(Silent(), weight=weight, bias=bias, preprocess=SMALL), images(3, 32))
    assert np.array_equal(embedding, np.zeros((3, 3), np.float32))
    assert logits == pytest.approx(np.tile(bias, (3, 1)))
    assert np.array_equal(fold.unit(np.zeros((2, 3))), np.zeros((2, 3), np.float32))


# ---- the graph


def test_the_graph_is_plain_small_and_names_nothing_of_this_machine(exported: bytes) -> None:
    model = onnx.load_model_from_string(exported)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["Conv"] == 31
    assert operators["Gemm"] == 1
    assert operators["BatchNormalization"] == 0
    assert operators["Mul"] == 1  # normalisation; every batch-norm is inside its convolution
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", graph.OPSET)]
    assert len(model.functions) == 0
    assert len(exported) < 2.1e6  # 464,000 parameters, 4 bytes each
    for word in (b"/work", b"/home", b"/root", b".py", b"lifelist"):
        assert word not in exported


@pytest.mark.parametrize("count", [0, 1, 2, 7, 65])
def test_any_number_of_images_goes_through(count: int, exported: bytes) -> None:
    pictures = images(65, 32)[:count]
    logits, embedding = answers(exported, pictures)
    assert (logits.shape, embedding.shape) == ((count, 7), (count, 64))
    assert np.linalg.norm(embedding, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_same_network_gives_the_same_bytes(resnet: nn.Module, exported: bytes) -> None:
    weight, bias = fold.fold_bias(*last_layer(7, 64), BiasCorrection(0.6, -0.45, 4, 7))
    assert graph.export(resnet, weight=weight, bias=bias, preprocess=SMALL) == exported


def test_exporting_leaves_the_network_as_it_was_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    network = tiny_network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph.export(network, weight=np.eye(3, DIM, dtype="f4"), bias=np.zeros(3, "f4"), preprocess=PREPROCESS)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert capfd.readouterr() == ("", "")


class PreActivation(nn.Module):
    """Batch-norm before its convolution, beside a branch, and on flat features: nothing to fold it into."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)
        self.second, self.flat = nn.BatchNorm2d(8, eps=0.1), nn.BatchNorm1d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(torch.relu(self.first(x)))
        return self.flat((torch.relu(self.second(torch.relu(y))) + y).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_batch_norm_that_follows_no_convolution_becomes_a_scale_and_a_shift() -> None:
    network = PreActivation()
    random = torch.Generator().manual_seed(0)
    for module in (network.first, network.second, network.flat):
        module.running_mean.normal_(0, 0.3, generator=random)
        module.running_var.uniform_(0.5, 2, generator=random)
    weight, bias = last_layer(4, 8)
    data = graph.export(network, weight=weight, bias=bias, preprocess=SMALL)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_model_from_string(data).graph.node}
    found = parity.compare(data, network, weight, bias, SMALL, images(20, 32))
    assert found.max_abs_logit_difference < 1e-5


def headless(name: str, head: str) -> Callable[[], nn.Module]:
    """A torchvision model that gives features: its own last layer taken out."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None)
        parent, _, last = head.rpartition(".")
        setattr(model.get_submodule(parent), last, nn.Identity())
        return model  # type: ignore[no-any-return]

    return build


@pytest.mark.parametrize(
    ("build", "dim"),
    [
        (headless("resnet18", "fc"), 512),
        (headless("densenet121", "classifier"), 1024),
    ],
    ids=["resnet18", "densenet121"],
)
def test_torchvision_models_are_exported_and_agree(build: Callable[[], nn.Module], dim: int) -> None:
    network, preprocess = lived_in(build()), Preprocess(64, 72, SMALL.mean, SMALL.std)
    weight, bias = last_layer(5, dim)
    data = graph.export(network, weight=weight, bias=bias, preprocess=preprocess)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_model_from_string(data).graph.node}
    found = parity.compare(data, network, weight, bias, preprocess, images(10, 64))
    assert found.top1_agreement == 1.0
    assert found.max_abs_logit_difference < 1e-4
    assert answers(data, images(1, 64))[0].shape == (1, 5)


def test_a_network_that_chooses_its_way_by_the_pixels_is_refused_by_name() -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))

    with pytest.raises(Failed, match=r"Moody cannot be exported to ONNX, so it cannot be served: .+"):
        graph.export(Moody(), weight=np.eye(3, dtype="f4"), bias=np.zeros(3, "f4"), preprocess=SMALL)


def test_a_batch_norm_that_looks_at_its_batch_is_refused() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(Failed, match="normalises by its batch, or by computed numbers; it cannot be served"):
        graph.export(network, weight=np.eye(3, dtype="f4"), bias=np.zeros(3, "f4"), preprocess=SMALL)


def test_a_last_layer_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="a weight C×D and a bias C"):
        graph.export(tiny_network(), weight=np.eye(3, DIM, dtype="f4"), bias=np.zeros(4, "f4"), preprocess=PREPROCESS)


# ---- parity


def test_parity_of_a_faithful_graph_is_near_zero_and_counts_its_images(resnet: nn.Module, exported: bytes) -> None:
    weight, bias = fold.fold_bias(*last_layer(7, 64), BiasCorrection(0.6, -0.45, 4, 7))
    found = parity.compare(exported, resnet, weight, bias, SMALL, images(130, 32))
    assert found.images == 130
    assert found.max_abs_logit_difference <= 1e-5
    assert found.max_abs_embedding_difference is not None
    assert found.max_abs_embedding_difference <= 1e-5
    assert found.top1_agreement == 1.0


def test_parity_sees_a_correction_that_was_left_out(resnet: nn.Module, exported: bytes) -> None:
    """The defect of methods.md B10: a correction that was computed, and is not in what answers."""
    found = parity.compare(exported, resnet, *last_layer(7, 64), SMALL, images(40, 32))
    assert found.max_abs_logit_difference > 0.1


def test_parity_sees_rows_in_another_order(resnet: nn.Module, exported: bytes) -> None:
    weight, bias = fold.fold_bias(*last_layer(7, 64), BiasCorrection(0.6, -0.45, 4, 7))
    moved = np.roll(weight, 1, axis=0), np.roll(bias, 1)  # no row stays where it was
    found = parity.compare(exported, resnet, *moved, SMALL, images(40, 32))
    assert found.top1_agreement == 0


def test_parity_sees_other_weights_and_another_normalisation(resnet: nn.Module, exported: bytes) -> None:
    layer = fold.fold_bias(*last_layer(7, 64), BiasCorrection(0.6, -0.45, 4, 7))
    other = parity.compare(exported, lived_in(ResNet32(last_relu=False), seed=1), *layer, SMALL, images(10, 32))
    shifted = Preprocess(32, 32, (0.4, 0.45, 0.4), SMALL.std)
    scaled = parity.compare(exported, resnet, *layer, shifted, images(10, 32))
    for found in (other, scaled):
        assert found.max_abs_logit_difference > 1e-3
        assert found.max_abs_embedding_difference is not None
        assert found.max_abs_embedding_difference > 1e-4


def test_parity_without_images_is_no_parity(resnet: nn.Module, exported: bytes) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        parity.compare(exported, resnet, *last_layer(7, 64), SMALL, images(1, 32)[:0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parity_refuses_numbers_that_are_not_finite_though_both_sides_give_the_same(value: float) -> None:
    weight, bias = last_layer(4, DIM)
    bias[2] = value
    data = graph.export(tiny_network(), weight=weight, bias=bias, preprocess=PREPROCESS)
    with pytest.raises(Refused, match="the graph gives logits that are not finite for 5 of 5 images"):
        parity.compare(data, tiny_network(), weight, bias, PREPROCESS, images(5))


def test_parity_refuses_a_network_whose_features_are_not_finite() -> None:
    network, (weight, bias) = tiny_network(), last_layer(4, DIM)
    data = graph.export(network, weight=weight, bias=bias, preprocess=PREPROCESS)
    network[3].bias.data[0] = np.nan
    with pytest.raises(Refused, match=r"the network gives .* not finite for 5 of 5 images"):
        parity.compare(data, network, weight, bias, PREPROCESS, images(5))


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "exporter.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/exporter.md", "exec"), {})
    assert Registry("registry").verify(1) == []
