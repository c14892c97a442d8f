"""A graph in 8 bits beside the one in fp32: made with a version, judged on gate images, used if it loses nothing."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from parts import DIM, PREPROCESS, images, tiny_model, tiny_version
from parts_rollout import NAMES, add, learn, pictures, prepared
from torch import nn

from lifelist.deploy import quantised
from lifelist.deploy.cli import main
from lifelist.deploy.enrol import enrol
from lifelist.deploy.settings import Int8Options
from lifelist.exporter import graph, session
from lifelist.exporter.errors import BadSetting, Corrupt, Failed
from lifelist.exporter.inspection import inspect
from lifelist.exporter.manifest import Int8
from lifelist.exporter.preprocess import ImageLimits, decode
from lifelist.exporter.quantise import quantise, verdict
from lifelist.exporter.registry import Registry
from lifelist.exporter.session import INT8, MODEL
from lifelist.serving.follow import loader
from lifelist.serving.options import ServingOptions

WEIGHT, BIAS = np.eye(DIM, dtype=np.float32), np.zeros(DIM, np.float32)


def run(model: bytes, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    opened, _ = session.open_session(model, provider="cpu")
    logits, embedding = opened.run(["logits", "embedding"], {"images": pixels})
    return logits, embedding


def test_the_graph_in_8_bits_is_one_that_we_run_and_computes_nearly_the_same() -> None:
    fp32 = tiny_model(WEIGHT, BIAS)
    int8 = quantise(fp32, images(200))
    model = inspect(int8, size=PREPROCESS.size, classes=DIM, dim=DIM)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 2
    assert "QuantizeLinear" in kinds
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.INT8 in weights.values()
    assert weights["weight"] == onnx.TensorProto.FLOAT  # of the last layer: the answer itself
    fresh = images(300, seed=5)
    (logits, embedding), (wanted_logits, wanted_embedding) = run(int8, fresh), run(fp32, fresh)
    assert (embedding * wanted_embedding).sum(axis=1).min() > 0.995  # cosines
    spread = wanted_logits.max() - wanted_logits.min()
    assert 0 < np.abs(logits - wanted_logits).max() < 0.05 * spread
    assert quantise(fp32, images(200)) == int8  # bit for bit


def test_a_graph_without_a_convolution_cannot_be_quantised() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, DIM))
    model = graph.export(network, weight=WEIGHT, bias=BIAS, preprocess=PREPROCESS)
    with pytest.raises(Failed, match="no convolution, so 8 bits would bring nothing"):
        quantise(model, images(4))
    with pytest.raises(ValueError, match="at least one"):
        quantise(tiny_model(WEIGHT, BIAS), images(4)[:0])


TRUTH = np.repeat([1, 2], [90, 10])


def losing(*places: int) -> np.ndarray:
    answered = TRUTH.copy()
    answered[list(places)] = 3
    return answered


@pytest.mark.parametrize(
    ("by_int8", "used", "said"),
    [
        (losing(), True, "int8 answers as well as fp32 on 100 gate images"),
        (losing(0), True, "as well"),  # 1 of 100, and 1 of 90 of its class
        (losing(0, 1), False, "linear loses 0.020 of accuracy, and 0.01 is allowed"),
        (losing(95), True, "as well"),  # one image of a class is never too many
        (losing(95, 96), False, "linear loses more than 0.05 of a class: 'rare' 0.200"),
    ],
)
def test_8_bits_are_used_where_neither_all_images_nor_a_class_lose_more_than_the_bounds(
    by_int8: np.ndarray, used: bool, said: str
) -> None:
    answered = {"linear": (TRUTH, by_int8), "nearest_mean": (TRUTH, TRUTH)}
    found = verdict(TRUTH, answered, {1: "common", 2: "rare"}, loss=0.01, class_loss=0.05)
    assert found.used == used
    assert said in found.message
    assert found.answers["linear"]["int8"] == pytest.approx((by_int8 == TRUTH).mean())
    assert found.answers["nearest_mean"] == {
        "fp32": 1.0, "int8": 1.0, "agreement": 1.0, "worst_class": "common", "worst_class_loss": 0.0
    }  # fmt: skip


def test_what_8_bits_gain_in_one_class_does_not_hide_what_they_lose_in_another() -> None:
    fp32 = losing(*range(10))  # wrong on ten of the common class, which int8 gets right
    found = verdict(TRUTH, {"linear": (fp32, losing(90, 91, 92))}, {2: "rare"}, loss=0.0, class_loss=0.1)
    assert not found.used
    assert "'rare' 0.300" in found.message
    assert found.answers["linear"]["worst_class_loss"] == pytest.approx(0.3)


def test_without_a_gate_image_8_bits_are_not_used() -> None:
    found = verdict(TRUTH[:0], {"linear": (TRUTH[:0], TRUTH[:0])}, {}, loss=1.0, class_loss=1.0)
    assert not found.used
    assert "no gate image" in found.message


def test_an_increment_makes_it_and_a_replica_on_a_cpu_answers_by_it(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, int8=Int8Options())
    ended = learn(workshop, "blue")
    assert ended.state == "done"
    manifest = workshop.registry.manifest(ended.version or 0)
    assert manifest.int8 == Int8(**ended.facts["int8"])
    assert manifest.int8.used
    assert manifest.int8.images == 12  # a fifth of twenty, of each class
    assert manifest.file(INT8).sha256 != manifest.file(MODEL).sha256

    shown = [decode(data, manifest.preprocess, ImageLimits()) for _, data in pictures("blue", 8, first=50)]
    logits = {}
    for precision, graph_of in (("auto", "int8"), ("fp32", "fp32")):
        load = loader(workshop.registry, ServingOptions(provider="cpu", precision=precision), threads=1, lanes=1)
        loaded = load(manifest.version, None)
        assert loaded.precision == graph_of
        logits[graph_of], _ = loaded.run(np.stack(shown))
        assert load(manifest.version, loaded).session is loaded.session
    assert not np.array_equal(logits["int8"], logits["fp32"])
    assert (logits["int8"].argmax(axis=1) == logits["fp32"].argmax(axis=1)).all()
    by_fp32 = session.load(workshop.registry, manifest.version, provider="cpu")
    other = session.load(workshop.registry, manifest.version, provider="cpu", precision="auto", share=by_fp32)
    assert other.precision == "int8"  # a session is shared with none of another precision
    with pytest.raises(BadSetting, match="precision 'int4' does not exist; choose auto or fp32"):
        session.load(workshop.registry, manifest.version, precision="int4")


def test_a_class_enrolled_upon_it_shares_both_graphs(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, int8=Int8Options())
    learn(workshop, "blue")
    parent = workshop.live
    add(workshop, ["yellow"])
    enrolled = enrol(workshop)
    assert enrolled is not None
    assert parent is not None
    assert enrolled.int8 == parent.int8
    assert enrolled.file(INT8) == parent.file(INT8)


def test_one_that_answers_worse_is_not_kept_and_the_version_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_network(model: bytes, shown: np.ndarray) -> bytes:
        altered = onnx.load_model_from_string(model)
        head = next(tensor for tensor in altered.graph.initializer if tensor.name == "weight")
        head.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(head), "weight"))
        return quantise(altered.SerializeToString(), shown)

    monkeypatch.setattr(quantised, "quantise", of_another_network)
    workshop = prepared(tmp_path, int8=Int8Options())
    ended = learn(workshop, "blue")
    assert ended.state == "done"
    manifest = workshop.registry.manifest(ended.version or 0)
    assert manifest.int8 is not None
    assert not manifest.int8.used
    assert "linear loses" in manifest.int8.message
    assert INT8 not in [entry.name for entry in manifest.files]
    assert session.load(workshop.registry, manifest.version, provider="cpu", precision="auto").precision == "fp32"


def in_8_bits(tmp_path: Path, data: bytes) -> tuple[Registry, int]:
    """A version whose manifest says that this graph, which serves on CPUs, answers as well as the one in fp32."""
    registry = Registry(str(tmp_path / "registry"))
    plain = tiny_version(registry)
    found = verdict(TRUTH, {"linear": (TRUTH, losing(0))}, {1: "common"}, loss=0.01, class_loss=0.05)
    made = registry.publish(replace(plain, int8=found), {INT8: data}, reuse=plain.files)
    return registry, made.version


@pytest.mark.parametrize(
    ("weight", "bias", "said"),
    [
        (np.eye(3, DIM), [np.nan, 0, 0], r"model\.int8\.onnx of version 2 gives .* or numbers that are not finite"),
        (np.eye(4, DIM), [0, 0, 0, 0], r"model\.int8\.onnx is refused: .*logits"),
        (np.eye(3, DIM), [0, 0], r"model\.int8\.onnx of version 2 cannot be run: .*bias shape"),
        (None, None, r"model\.int8\.onnx is no ONNX file"),
    ],
)
def test_an_error_names_the_graph_that_failed(weight: Any, bias: Any, said: str, tmp_path: Path) -> None:
    graph_of = b"no graph"
    if weight is not None:
        graph_of = tiny_model(weight.astype(np.float32), np.array(bias, np.float32))
    registry, version = in_8_bits(tmp_path, graph_of)
    assert session.load(registry, version, provider="cpu").precision == "fp32"  # which it does not read
    with pytest.raises(Corrupt, match=said):
        session.load(registry, version, provider="cpu", precision="auto")
    with pytest.raises(Corrupt, match=r"^model\.int8\.onnx cannot be run"):
        session.open_session(b"no graph", provider="cpu", name=INT8)


def test_versions_show_has_the_figures_of_8_bits_and_what_was_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, version = in_8_bits(tmp_path, b"not read")
    worse = verdict(TRUTH, {"linear": (TRUTH, losing(95, 96))}, {2: "rare"}, loss=0.1, class_loss=0.05)
    registry.publish(replace(registry.manifest(1), int8=worse), {}, reuse=registry.manifest(1).files)
    shown = {}
    for number in (1, version, 3):
        assert main(["versions", "show", str(number), "--home", str(tmp_path)]) == 0
        shown[number] = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert not [line for line in shown[1] if "8 bits" in line]
    assert "serves on a CPU: int8 answers as well as fp32 on 100 gate images" in shown[version]
    assert "is not used: linear loses more than 0.05 of a class: 'rare' 0.200" in shown[3]
    begin = next(k for k, line in enumerate(shown[3]) if line.startswith("8 bits"))
    titles, row = shown[3][begin : begin + 2]
    assert re.split("  +", titles) == ["8 bits", "fp32", "int8", "agreement", "most lost of a class"]
    assert re.split("  +", row) == ["linear", "1.000", "0.980", "0.980", "0.200", "rare"]


def test_a_graph_that_cannot_be_quantised_goes_live_in_fp32_and_the_rollout_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: bytes, shown: np.ndarray) -> bytes:
        raise Failed("the graph has no convolution, so 8 bits would bring nothing")

    monkeypatch.setattr(quantised, "quantise", refuse)
    workshop = prepared(tmp_path, int8=Int8Options())
    ended = learn(workshop, "blue")
    assert ended.state == "done"
    assert workshop.registry.manifest(ended.version or 0).int8 is None
    events = [event.data for event in workshop.store.events(ended.id, kind="step-failed")]
    assert [event["state"] for event in events] == ["quantise"]
    assert "no convolution" in events[0]["reason"]


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    workshop = prepared(tmp_path, int8=Int8Options(enabled=False))
    ended = learn(workshop, NAMES[2])
    assert workshop.registry.manifest(ended.version or 0).int8 is None
