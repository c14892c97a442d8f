"""What was tried on the hot path and is not in it: other JSON serialisers, ONNX Runtime's I/O binding, and OpenVINO.

    python -m lifelist.benchmarks.tried

Prints a table in Markdown: microseconds, the median of many. What is not installed is left out: pip install orjson
msgspec openvino.
"""

import contextlib
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from lifelist.benchmarks import models
from lifelist.benchmarks.accuracy_report import markdown
from lifelist.benchmarks.machine import machine
from lifelist.exporter.inspection import EMBEDDING, INPUT, LOGITS
from lifelist.exporter.preprocess import Pixels
from lifelist.exporter.registry import Registry
from lifelist.exporter.session import INT8, MODEL, load, open_session

ROUNDS, AT_ONCE = 200, 20
Row = tuple[str, str, float]  # what, how, microseconds


def answer(top_k: int) -> dict[str, Any]:
    """What /v1/classify says of one image."""
    classes = [{"id": 100 + k, "name": f"picture {k}", "score": round(0.912345 / (k + 1), 6)} for k in range(top_k)]
    times = ("decode_seconds", "queue_seconds", "model_seconds", "total_seconds")
    return {
        "version": 12,
        "answer": "linear",
        "images": [{"prediction_id": "w" * 62, "classes": classes, "unknown_score": 0.123456}],
        "timing": dict.fromkeys(times, 0.001234),
    }


def serialisers() -> Iterator[tuple[str, Callable[[Any], bytes]]]:
    """The one that is used, and those that are installed beside it."""
    yield "starlette's JSONResponse, as it is", JSONResponse({}).render
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    yield "json.JSONEncoder, kept", lambda content: encoder.encode(content).encode()
    for name in ("orjson.dumps", "msgspec.json.encode"):
        module, _, function = name.rpartition(".")
        with contextlib.suppress(ModuleNotFoundError):
            yield name, getattr(importlib.import_module(module), function)


def runs(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """A run of ResNet-32 with one image, one thread: with arrays, and with inputs and outputs bound."""
    model = models.resnet32(folder)
    session: Any = load(Registry(model.registry), model.version, threads=1, provider="cpu", precision="fp32").session
    image = model.pixels[:1]
    yield "session.run, as it is", lambda: session.run([LOGITS, EMBEDDING], {INPUT: image})

    def bound() -> object:
        binding = session.io_binding()
        binding.bind_cpu_input(INPUT, image)
        for name in (LOGITS, EMBEDDING):
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    yield "run_with_iobinding, bound anew for each run", bound
    kept = session.io_binding()
    kept.bind_cpu_input(INPUT, image)
    for name in (LOGITS, EMBEDDING):
        kept.bind_output(name, "cpu")

    def again() -> object:
        session.run_with_iobinding(kept)
        return kept.copy_outputs_to_cpu()

    yield "run_with_iobinding, bound once to the same image", again


def runtimes(model: models.Model, file: str, precisions: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A run of one image by one thread: of ONNX Runtime, and of OpenVINO in each of these precisions of its own."""
    registry = Registry(model.registry)
    graph = registry.read(registry.manifest(model.version), file)
    session, _ = open_session(graph, threads=1, provider="cpu")
    image = model.pixels[:1]
    yield "ONNX Runtime, as it is", lambda: session.run([LOGITS], {INPUT: image})[0]
    with contextlib.suppress(ModuleNotFoundError):
        core = importlib.import_module("openvino").Core()
        for precision in precisions:
            hints = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
            asked = core.compile_model(core.read_model(graph), "CPU", hints).create_infer_request()
            yield f"OpenVINO, {precision}", partial(_inferred, asked, image)


def _inferred(asked: Any, image: Pixels) -> Any:
    return asked.infer({INPUT: image})[LOGITS]


def measure() -> list[Row]:
    """Everything, each in turn with the others of its kind."""
    found: list[Row] = []
    ways = dict(serialisers())
    for top_k in (1, 5):
        content = answer(top_k)
        if any(json.loads(way(content)) != content for way in ways.values()):
            raise AssertionError("a serialiser says something else")
        timed = _microseconds({how: partial(way, content) for how, way in ways.items()}, AT_ONCE)
        found += [(f"an answer of top_k {top_k} as JSON", how, took) for how, took in timed.items()]
    with tempfile.TemporaryDirectory() as folder:
        timed = _microseconds(dict(runs(Path(folder))), 1)
        found += [("ResNet-32, one image", how, took) for how, took in timed.items()]
        small, large = models.resnet32(Path(folder)), models.resnet18(Path(folder))
        for model, file, precisions in (
            (small, MODEL, ("f32", "bf16")),
            (large, MODEL, ("f32", "bf16")),
            (large, INT8, ("f32",)),
        ):
            networks = dict(runtimes(model, file, precisions))
            if len({int(network().argmax()) for network in networks.values()}) > 1:
                raise AssertionError("a runtime says something else")
            timed = _microseconds(networks, 1)
            found += [(f"{model.name}, {file}, one image", how, took) for how, took in timed.items()]
    return found


def _microseconds(ways: Mapping[str, Callable[[], object]], at_once: int) -> dict[str, float]:
    """The median of ROUNDS rounds, in each of which every way has its turn."""
    took: dict[str, list[float]] = {how: [] for how in ways}
    for _ in range(ROUNDS):
        for how, way in ways.items():
            began = time.perf_counter()
            for _ in range(at_once):
                way()
            took[how].append(1e6 * (time.perf_counter() - began) / at_once)
    return {how: statistics.median(each) for how, each in took.items()}


if __name__ == "__main__":
    print("\n".join(markdown(("what", "how", "µs"), [(*row[:2], f"{row[2]:.1f}") for row in measure()])))
    print(f"\n{machine()['date']}, {machine()['cores']} cores of {machine()['processor']}")
