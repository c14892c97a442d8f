"""A version as it is loaded: verified, then inspected, then run; and what it refuses to load."""

import concurrent.futures
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from parts import BIRDS, DIM, PREPROCESS, SIZE, blob_path, flip_one_bit, tiny_images, tiny_model, tiny_version

from lifelist.exporter import index, session
from lifelist.exporter.errors import BadImage, BadSetting, Corrupt, Missing
from lifelist.exporter.fold import unit
from lifelist.exporter.inspection import inspect
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "registry"))


def with_file(registry: Registry, name: str, data: bytes) -> Manifest:
    """A version like the tiny one, published with another file: its digest fits, and only its content is wrong."""
    whole = tiny_version(registry)
    return registry.publish(whole, {name: data}, reuse=[entry for entry in whole.files if entry.name != name])


# ---- answers


def test_a_loaded_version_answers_by_both_ways(registry: Registry) -> None:
    manifest = tiny_version(registry, BIRDS[:5], enrolled=BIRDS[5:8], first_id=10)
    loaded = session.load(registry, manifest.version, provider="cpu")
    logits, embedding = loaded.run(tiny_images())
    assert (logits.shape, logits.dtype, embedding.shape, embedding.dtype) == ((8, 5), np.float32, (8, DIM), np.float32)
    assert [ranking[0][0] for ranking in loaded.linear(logits, 1)[:5]] == [10, 11, 12, 13, 14]
    assert [ranking[0][0] for ranking in loaded.nearest_mean(embedding, 1)] == [10, 11, 12, 13, 14, 15, 16, 17]
    assert np.linalg.norm(embedding, axis=1) == pytest.approx(1, abs=1e-5)


def test_linear_scores_are_probabilities_over_the_trained_classes(registry: Registry) -> None:
    loaded = session.load(registry, tiny_version(registry, BIRDS[:3], enrolled=BIRDS[3:5]).version)
    logits = np.array([[1, 2, 4], [1000, 0, -1000], [5, 5, 5]], np.float32)
    first, second, third = loaded.linear(logits, top_k=99)
    assert [class_id for class_id, _ in first] == [2, 1, 0]
    assert [score for _, score in first] == pytest.approx(np.exp([4, 2, 1]) / np.exp([4, 2, 1]).sum())
    assert second[0] == (0, 1.0)
    assert third == [(k, pytest.approx(1 / 3)) for k in range(3)]
    assert [len(ranking) for ranking in loaded.linear(logits, top_k=2)] == [2, 2, 2]
    assert all(
        isinstance(value, int | float) for ranking in loaded.linear(logits, 2) for pair in ranking for value in pair
    )


def test_nearest_mean_scores_are_cosines_over_all_classes_and_a_zero_vector_is_like_nothing(registry: Registry) -> None:
    loaded = session.load(registry, tiny_version(registry, BIRDS[:2], enrolled=BIRDS[2:4]).version)
    embedding = unit(np.random.default_rng(0).normal(size=(50, DIM)))
    embedding[7] = 0
    rankings = loaded.nearest_mean(embedding, top_k=99)
    cosines = embedding.astype(np.float64) @ loaded.means.means().T.astype(np.float64)
    for row, ranking in enumerate(rankings):
        assert dict(ranking) == pytest.approx(dict(enumerate(cosines[row])), abs=1e-6)
        assert [score for _, score in ranking] == sorted((score for _, score in ranking), reverse=True)
    assert {score for _, score in rankings[7]} == {0.0}


@pytest.mark.parametrize("count", [0, 1, 2, 7, 33])
def test_any_number_of_images_is_answered_and_each_as_if_it_were_alone(count: int, registry: Registry) -> None:
    loaded = session.load(registry, tiny_version(registry).version)
    pictures = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    logits, embedding = loaded.run(pictures)
    assert (logits.shape, embedding.shape) == ((count, 3), (count, DIM))
    for k in range(count):
        alone = loaded.run(pictures[k : k + 1])
        assert logits[k] == pytest.approx(alone[0][0], abs=1e-5)
    assert loaded.linear(logits, 5) == [] if count == 0 else len(loaded.linear(logits, 5)) == count


@pytest.mark.parametrize(
    "pictures",
    [np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 3, 16, 16), np.uint8), np.zeros((16, 16, 3), np.uint8)],
    ids=["floats", "channels first", "a single image"],
)
def test_other_pixels_than_the_version_sees_are_refused(pictures: np.ndarray, registry: Registry) -> None:
    loaded = session.load(registry, tiny_version(registry).version)
    with pytest.raises(BadImage, match=rf"version 1 sees uint8 N×16×16×3; got {pictures.dtype}, "):
        loaded.run(pictures)


def test_one_loaded_version_serves_several_threads(registry: Registry) -> None:
    loaded = session.load(registry, tiny_version(registry, BIRDS).version)
    wanted = loaded.linear(loaded.run(tiny_images())[0], 3)

    def answer(_: int) -> bool:
        logits, embedding = loaded.run(tiny_images())
        nearest = [ranking[0][0] for ranking in loaded.nearest_mean(embedding, 1)]
        return loaded.linear(logits, 3) == wanted and nearest == list(range(8))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(answer, range(100)))


# ---- loading


def test_loading_names_what_runs_the_graph_and_warms_it(registry: Registry) -> None:
    loaded = session.load(registry, tiny_version(registry).version)
    assert loaded.provider in ("cpu", "cuda")
    assert loaded.session.get_providers()[0] == session.PROVIDERS[loaded.provider]
    assert 0 < loaded.warm((1, 4)) < 30
    assert loaded.version == 1


def test_idle_threads_of_the_runtime_do_not_spin(registry: Registry) -> None:
    loaded = session.load(registry, tiny_version(registry).version, threads=2)
    options = loaded.session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 2


def test_of_several_lanes_each_run_has_one_thread_unless_it_is_alone_and_large(registry: Registry) -> None:
    tiny_version(registry)
    loaded = session.load(registry, 1, threads=2, lanes=2, provider="cpu")
    assert loaded.narrow is not None
    assert loaded.narrow.get_session_options().intra_op_num_threads == 1
    images = tiny_images(4)
    for wide, narrow in zip(loaded.run(images), loaded.run(images, alone=False), strict=True):
        np.testing.assert_allclose(wide, narrow, rtol=1e-5, atol=1e-6)
    assert session.load(registry, 1, threads=1, lanes=2, provider="cpu").narrow is None  # it would be the same again


def test_a_version_with_the_same_graph_shares_the_session(registry: Registry) -> None:
    first = tiny_version(registry, BIRDS[:3], live=True)
    loaded = session.load(registry, 1)
    enrolled = tiny_version(registry, BIRDS[:3], enrolled=[BIRDS[3]], parent=1)
    assert enrolled.file("model.onnx") == first.file("model.onnx")
    shared = session.load(registry, 2, share=loaded)
    assert shared.session is loaded.session
    assert [ranking[0][0] for ranking in shared.nearest_mean(shared.run(tiny_images(4))[1], 1)] == [0, 1, 2, 3]
    other = tiny_version(registry, BIRDS[:3], seed=5)
    assert session.load(registry, other.version, share=loaded).session is not loaded.session


def test_a_manifest_that_promises_another_head_of_a_shared_graph_is_refused(registry: Registry) -> None:
    first = tiny_version(registry, BIRDS[:3], live=True)
    loaded = session.load(registry, 1)
    means = index.build([0, 1], np.eye(2, DIM, dtype=np.float32))
    lying = replace(first, version=0, classes=first.classes[:2])
    published = registry.publish(lying, {"class_means.faiss": means}, reuse=[first.file("model.onnx")])
    with pytest.raises(Corrupt, match=r"logits"):
        session.load(registry, published.version, share=loaded)


def test_a_version_that_does_not_exist_is_missing(registry: Registry) -> None:
    with pytest.raises(Missing, match="there is no version 3"):
        session.load(registry, 3)


@pytest.mark.parametrize("provider", ["gpu", "CPU", ""])
def test_a_provider_that_does_not_exist_is_refused_with_those_that_do(provider: str, registry: Registry) -> None:
    tiny_version(registry)
    with pytest.raises(BadSetting, match=rf"provider '{provider}' does not exist; choose auto, cpu, cuda"):
        session.load(registry, 1, provider=provider)


def test_without_a_device_auto_takes_the_cpu_and_cuda_by_name_is_refused(registry: Registry, tmp_path: Path) -> None:
    """In a process that sees no device, whether or not this machine has one; nothing is printed about it."""
    tiny_version(registry)
    code = f"""
from lifelist.exporter import session
from lifelist.exporter.errors import BadSetting
from lifelist.exporter.registry import Registry
registry = Registry({registry.url!r})
assert session.load(registry, 1).provider == "cpu"
try:
    session.load(registry, 1, provider="cuda")
except BadSetting as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert ran.stdout.startswith("provider cuda was asked for, and ")
    assert ran.stdout.endswith("choose auto or cpu\n")
    assert ran.stderr == ""


def test_a_device_on_which_the_graph_does_not_run_is_logged_and_passed_over(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The only way to see this without such a device: the driver is made to say that there is one."""
    if session._cuda_devices():
        pytest.skip("this machine has a device")
    monkeypatch.setattr(session, "_cuda_devices", lambda: 1)
    tiny_version(registry)
    with caplog.at_level(logging.WARNING):
        assert session.load(registry, 1).provider == "cpu"
    if session.PROVIDERS["cuda"] in onnxruntime.get_available_providers():
        (record,) = caplog.records
        assert record.getMessage() == "provider.refused"
        assert record.facts["provider"] == "cuda"


# ---- what is refused


@pytest.mark.parametrize("name", ["model.onnx", "class_means.faiss"])
@pytest.mark.parametrize("place", [0, -1, 8], ids=["first", "middle", "eighth"])
def test_a_file_with_one_altered_bit_is_refused_before_anything_reads_meaning_into_it(
    name: str, place: int, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_one_bit(blob_path(registry, tiny_version(registry), name), place)
    reader = {"model.onnx": (onnx, "load_model_from_string"), "class_means.faiss": (faiss, "deserialize_index")}[name]

    def never(*_: Any) -> None:
        raise AssertionError(f"{name} was read although its digest is wrong")

    monkeypatch.setattr(*reader, never)
    with pytest.raises(Corrupt, match=rf"{name}: \d+ bytes, sha256 .*; the manifest says"):
        session.load(registry, 1)


def test_files_that_serving_does_not_read_may_be_gone(registry: Registry) -> None:
    """A replica loads what it needs: the unfolded checkpoint is for the next increment only."""
    manifest = tiny_version(registry)
    blob_path(registry, manifest, "checkpoint.safetensors").unlink()
    assert session.load(registry, 1).version == 1
    assert registry.verify(1)[0].startswith("version 1 lost its checkpoint.safetensors")


def model(change: Callable[[onnx.ModelProto], None]) -> bytes:
    """The tiny graph with three classes, changed."""
    found = onnx.load_model_from_string(tiny_model(np.zeros((3, DIM), np.float32), np.zeros(3, np.float32)))
    change(found)
    return found.SerializeToString()


def external_data(found: onnx.ModelProto) -> None:
    tensor = found.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def external_data_in_an_attribute(found: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "c")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    found.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def custom_domain(found: onnx.ModelProto) -> None:
    found.opset_import.add(domain="com.example", version=1)


def custom_operator(found: onnx.ModelProto) -> None:
    found.graph.node.append(helper.make_node("RunAnything", ["images"], ["y"], domain="com.example"))


def operator_of_ai_onnx_ml(found: onnx.ModelProto) -> None:
    found.opset_import.add(domain="ai.onnx.ml", version=3)


def function(found: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    found.functions.append(helper.make_function("", "Hidden", ["x"], ["y"], [node], [helper.make_opsetid("", 18)]))


def subgraph(found: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    inner = helper.make_graph([helper.make_node("Identity", ["logits"], ["y"])], "inner", [], [value])
    found.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))


def sparse(found: onnx.ModelProto) -> None:
    found.graph.sparse_initializer.add()


def another_input(found: onnx.ModelProto) -> None:
    found.graph.input.append(helper.make_tensor_value_info("path", TensorProto.STRING, [1]))


def another_output(found: onnx.ModelProto) -> None:
    found.graph.output.append(helper.make_tensor_value_info("debug", TensorProto.FLOAT, ["N"]))


def float_input(found: onnx.ModelProto) -> None:
    found.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def input_of_another_size(found: onnx.ModelProto) -> None:
    found.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 224


def fixed_batch(found: onnx.ModelProto) -> None:
    found.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def renamed_output(found: onnx.ModelProto) -> None:
    found.graph.output[0].name = "scores"


def more_classes(found: onnx.ModelProto) -> None:
    found.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4


def another_dimension(found: onnx.ModelProto) -> None:
    found.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 9


def missing_tensor(found: onnx.ModelProto) -> None:
    found.graph.node[0].input[0] = "nowhere"


def no_nodes(found: onnx.ModelProto) -> None:
    del found.graph.node[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_data, r"keeps '.*' and 0 other tensors in other files; a model is one file"),
        (external_data_in_an_attribute, "in other files; a model is one file"),
        (custom_domain, r"imports operators of com\.example; only the standard domain"),
        (custom_operator, "uses the custom operators com.example::RunAnything"),
        (operator_of_ai_onnx_ml, r"imports operators of ai\.onnx\.ml"),
        (function, "has functions, training information or sparse tensors"),
        (subgraph, "its operators If hold graphs of their own"),
        (sparse, "sparse tensors"),
        (another_input, "its inputs are images uint8 N×16×16×3, path string 1; the manifest asks for images"),
        (another_output, "its outputs are .* debug float N; the manifest asks for"),
        (float_input, "its inputs are images float N×16×16×3; the manifest asks for images uint8"),
        (input_of_another_size, "images uint8 N×224×16×3; the manifest asks for images uint8 N×16×16×3"),
        (fixed_batch, "images uint8 1×16×16×3; the manifest asks for images uint8 N×16×16×3"),
        (renamed_output, "outputs are scores float N×3, embedding float N×8; the manifest asks for logits float N×3"),
        (more_classes, "logits float N×4, .* asks for logits float N×3"),
        (another_dimension, "embedding float N×9; the manifest asks for .*embedding float N×8"),
        (missing_tensor, "not valid ONNX"),
        (no_nodes, "not valid ONNX|cannot be run"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_graph_that_is_not_what_we_run_is_refused_though_its_digest_fits(
    change: Callable[[onnx.ModelProto], None], message: str, registry: Registry
) -> None:
    version = with_file(registry, "model.onnx", model(change)).version
    with pytest.raises(Corrupt, match=message):
        session.load(registry, version)


@pytest.mark.parametrize("data", [b"", b"not onnx", b"\x80\x02}q\x00."], ids=["empty", "text", "pickle"])
def test_what_is_no_graph_is_refused(data: bytes, registry: Registry) -> None:
    with pytest.raises(Corrupt, match=r"model\.onnx is (no ONNX file|refused)"):
        session.load(registry, with_file(registry, "model.onnx", data).version)


def test_a_graph_that_gives_other_shapes_than_it_declares_is_refused(registry: Registry) -> None:
    lying = onnx.load_model_from_string(tiny_model(np.zeros((4, DIM), np.float32), np.zeros(4, np.float32)))
    lying.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    with pytest.raises(Corrupt, match=r"model\.onnx (cannot be run|of version 2 gives)"):
        session.load(registry, with_file(registry, "model.onnx", lying.SerializeToString()).version)


def test_a_graph_that_gives_numbers_that_are_not_finite_is_refused(registry: Registry) -> None:
    broken = tiny_model(np.zeros((3, DIM), np.float32), np.array([0, np.nan, 0], np.float32))
    with pytest.raises(Corrupt, match="numbers that are not finite"):
        session.load(registry, with_file(registry, "model.onnx", broken).version)


def flat_l2() -> bytes:
    found = faiss.IndexIDMap2(faiss.IndexFlatL2(DIM))
    found.add_with_ids(np.eye(3, DIM, dtype=np.float32), np.arange(3))
    return bytes(faiss.serialize_index(found))


def longer_rows() -> bytes:
    found = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
    found.add_with_ids(2 * np.eye(3, DIM, dtype=np.float32), np.arange(3))
    return bytes(faiss.serialize_index(found))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no faiss index"),
        (b"IxM2" + bytes(100), "no faiss index|should be"),
        (
            bytes(faiss.serialize_index(faiss.IndexFlatIP(DIM))),
            "IndexIDMap2 over IndexFlatIP or IndexHNSWFlat, not IndexFlatIP",
        ),
        (flat_l2(), "not IndexIDMap2 over IndexFlatL2"),
        (longer_rows(), r"unit vectors; got lengths \[2.0, 2.0, 2.0\]"),
        (index.build([0, 1, 2], np.eye(3, 9)), "have 9 dimensions; the manifest says 8"),
        (index.build([0, 1], np.eye(2, DIM)), r"names the classes \[2\], and has no means of them"),
        (index.build([0, 1, 2, 9], np.eye(4, DIM)), r"means of the classes \[9\], which it does not name"),
    ],
    ids=["empty", "broken", "no ids", "another distance", "not unit", "dimensions", "one too few", "another class"],
)
def test_class_means_that_do_not_fit_the_manifest_are_refused(data: bytes, message: str, registry: Registry) -> None:
    with pytest.raises(Corrupt, match=message):
        session.load(registry, with_file(registry, "class_means.faiss", data).version)


def test_a_version_without_a_graph_is_refused(registry: Registry) -> None:
    whole = tiny_version(registry)
    bare = registry.publish(replace(whole, version=0), {}, reuse=[whole.file("class_means.faiss")])
    with pytest.raises(Corrupt, match=r"version 2 has no file 'model\.onnx'"):
        session.load(registry, bare.version)


# ---- the index


def test_class_means_keep_their_ids_and_are_made_unit() -> None:
    means = np.random.default_rng(0).normal(size=(5, DIM)) * 7
    loaded = index.load(index.build([50, 3, 17, 4, 0], means), DIM)
    assert loaded.ids == (50, 3, 17, 4, 0)
    assert loaded.means() == pytest.approx(unit(means))
    scores, rows = loaded.nearest(unit(means), top_k=1)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]  # places in ids
    assert scores[:, 0] == pytest.approx(1, abs=1e-6)


def test_a_mean_without_direction_is_kept_and_never_nearest() -> None:
    loaded = index.load(index.build([0, 1], [[0, 0, 0], [0, 2, 0]]), 3)
    assert loaded.means().tolist() == [[0, 0, 0], [0, 1, 0]]
    assert loaded.nearest(unit([[1, 1, 0]]), 1)[1].tolist() == [[1]]


@pytest.mark.parametrize(
    ("ids", "means"), [([1, 1], np.eye(2)), ([1], np.eye(2)), ([1, 2], [[np.nan, 0], [0, 1]]), ([1, 2], [1.0, 2.0])]
)
def test_means_that_are_not_one_for_each_class_are_refused(ids: list[int], means: Any) -> None:
    with pytest.raises(ValueError, match="one finite mean for each of"):
        index.build(ids, means)


def test_the_same_means_give_the_same_bytes() -> None:
    means = np.random.default_rng(0).normal(size=(5, DIM))
    assert index.build(range(5), means) == index.build(range(5), means)


def test_an_inspected_graph_is_returned_for_who_wants_to_look_on() -> None:
    data = tiny_model(np.zeros((3, DIM), np.float32), np.zeros(3, np.float32))
    assert len(inspect(data, size=PREPROCESS.size, classes=3, dim=DIM).graph.node) > 5


def test_loading_and_letting_go_many_times_does_not_grow(registry: Registry) -> None:
    """In a process of its own: resident memory after 60 swaps is what it was after 20, give or take 8 MB."""
    for seed in range(2):
        tiny_version(registry, seed=seed)
    code = f"""
import gc, numpy as np
from lifelist.exporter import session
from lifelist.exporter.registry import Registry
registry = Registry({registry.url!r})
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for k in range(80):
    loaded = session.load(registry, k % 2 + 1, threads=1, provider="cpu")
    loaded.warm((1, 8))
    if k == 20:
        before = resident()
print(resident() - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    assert int(subprocess.check_output([sys.executable, "-c", code], text=True)) < 8 * 2**20
