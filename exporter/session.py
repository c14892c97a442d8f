"""A version, ready to answer: verified, inspected, loaded. Serving holds one of these and replaces it whole."""

import ctypes
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from lifelist.exporter.answering import Answering
from lifelist.exporter.errors import BadImage, BadSetting, Corrupt
from lifelist.exporter.fold import Floats
from lifelist.exporter.inspection import EMBEDDING, INPUT, LOGITS, inspect
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.preprocess import Pixels
from lifelist.exporter.registry import Registry

log = logging.getLogger(__name__)

MODEL, INT8 = "model.onnx", "model.int8.onnx"
PRECISIONS = ("auto", "fp32")
# the work of a run, as bytes of the graph × pixels of all images, from which several threads are quicker than one;
# below it they wait for each other longer than they compute (ResNet-32 at 32×32: from 3 images on)
WORTH_SHARING = 6e9
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

Rest = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Answering):
    """One version in memory. Immutable, and safe to use from several threads at once."""

    provider: str  # what really runs the graph: cpu or cuda
    precision: str  # of its arithmetic: fp32 or int8
    session: Any  # onnxruntime.InferenceSession, which may have several threads
    narrow: Any | None = None  # a session of the same graph with one thread, for several runs at once

    @property
    def graph(self) -> str:
        """The file of the version that it runs."""
        return INT8 if self.precision == "int8" else MODEL

    def run(self, images: Pixels, alone: bool = True) -> tuple[Floats, Floats]:
        """logits N×C and embedding N×D (unit rows), both float32, of images N×S×S×3 uint8. BadImage if they are not.

        The C logits are those of the trained classes, then the provisional ones. alone: it has all cores to itself.
        """
        side = self.manifest.preprocess.size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise BadImage(
                f"version {self.version} sees uint8 N×{side}×{side}×3; "
                f"got {images.dtype}, {'×'.join(map(str, images.shape))}"
            )
        if not len(images):
            return np.zeros((0, self.row_count), np.float32), np.zeros((0, self.manifest.embedding_dim), np.float32)
        session = self.session if self.narrow is None or (alone and self._is_worth_sharing(images)) else self.narrow
        logits, embedding = session.run([LOGITS, EMBEDDING], {INPUT: np.ascontiguousarray(images)})
        return self.all_logits(logits, embedding), embedding

    def _is_worth_sharing(self, images: Pixels) -> bool:
        return self.manifest.file(self.graph).size * images.size / 3 >= WORTH_SHARING

    def warm(self, batches: Sequence[int] = (1, 8, 32), rest: Rest = lambda: None) -> float:
        """Answer batches of these sizes, so that the first real one is as fast as the rest. Seconds that it took."""
        began, side = time.perf_counter(), self.manifest.preprocess.size
        for count in batches:
            for alone in (True, False) if self.narrow else (True,):
                logits, embedding = self.run(np.zeros((count, side, side, 3), np.uint8), alone)
                rest()
            self.linear(logits, 5)
            self.nearest_mean(embedding, 5)
        return time.perf_counter() - began


def load(
    registry: Registry,
    version: int,
    *,
    threads: int = 0,
    lanes: int = 1,
    provider: str = "auto",
    precision: str = "fp32",
    share: Loaded | None = None,
    rest: Rest = lambda: None,
) -> Loaded:
    """Load a version: every byte is verified against the manifest before anything reads meaning into it.

    threads: of one run inside ONNX Runtime; 0 lets it choose. lanes: runs at once; of several, each has one thread,
    unless it is alone. provider: cpu, cuda, or auto (cuda if it really works).
    precision: fp32, or auto: int8 on a CPU, if the version has such a graph and it was found to answer as well.
    share: a version that is loaded; its session is used again if the graph is the same file, as after an enrolment.
    rest: called between pieces of the work, which it would be kind to others not to do at one go.
    Missing if there is no such version; Corrupt if its files are altered, gone, or not what they should be.
    """
    answering = Answering.of(registry, version)
    manifest = answering.manifest
    graph = _graph_for(manifest, provider, precision)
    kind = "int8" if graph == INT8 else "fp32"
    if share is not None and share.precision == kind and _made_for(share.manifest, graph) == _made_for(manifest, graph):
        return _loaded(answering, share.provider, kind, share.session, share.narrow)
    rest()
    model = registry.read(manifest, graph)
    _inspect(model, manifest, graph)
    rest()
    session, used = open_session(model, threads=threads, provider=provider, name=graph)
    rest()
    several = lanes > 1 and used == "cpu" and threads != 1
    narrow = open_session(model, threads=1, provider="cpu", name=graph)[0] if several else None
    rest()
    loaded = _loaded(answering, used, kind, session, narrow)
    _probe(loaded)
    return loaded


def in_int8(loaded: Loaded, model: bytes, *, threads: int = 0) -> Loaded:
    """The same version as it answers by this graph, on the CPU. Corrupt if the graph is not one for it."""
    manifest = loaded.manifest
    _inspect(model, manifest, INT8)
    session, used = open_session(model, threads=threads, provider="cpu", name=INT8)
    found = _loaded(loaded, used, "int8", session)
    _probe(found)
    return found


def _inspect(model: bytes, manifest: Manifest, name: str) -> None:
    side, rows = manifest.preprocess.size, len(manifest.trained)
    inspect(model, size=side, classes=rows, dim=manifest.embedding_dim, name=name)


def _loaded(answering: Answering, provider: str, precision: str, session: Any, narrow: Any | None = None) -> Loaded:
    return Loaded(
        manifest=answering.manifest, means=answering.means, provisional=answering.provisional,
        provider=provider, precision=precision, session=session, narrow=narrow,
    )  # fmt: skip


def _graph_for(manifest: Manifest, provider: str, precision: str) -> str:
    """Which of the version's graphs runs here. BadSetting for a precision that does not exist."""
    if precision not in PRECISIONS:
        raise BadSetting(f"precision {precision!r} does not exist; choose {' or '.join(PRECISIONS)}")
    sound = manifest.int8 is not None and manifest.int8.used
    on_cpu = provider == "cpu" or not _cuda_is_here()
    return INT8 if precision == "auto" and sound and on_cpu else MODEL


def _made_for(manifest: Manifest, graph: str) -> tuple[str, int, int, int]:
    """What a graph was inspected for: versions that agree in all of it may share a session."""
    size, rows = manifest.preprocess.size, len(manifest.trained)
    return manifest.file(graph).sha256, size, rows, manifest.embedding_dim


def _probe(loaded: Loaded) -> None:
    """Corrupt if the graph does not give what it declares: a declaration is only that."""
    side, rows = loaded.manifest.preprocess.size, loaded.row_count
    try:
        logits, embedding = loaded.run(np.zeros((2, side, side, 3), np.uint8))
    except Exception as error:  # onnxruntime's exceptions have no narrower base
        raise Corrupt(f"{loaded.graph} of version {loaded.version} cannot be run: {error}") from error
    wanted = (2, rows), (2, loaded.manifest.embedding_dim)
    if (logits.shape, embedding.shape) != wanted or not np.isfinite(logits).all() or not np.isfinite(embedding).all():
        raise Corrupt(
            f"{loaded.graph} of version {loaded.version} gives {logits.shape} and {embedding.shape} for two images, "
            f"or numbers that are not finite; finite {wanted[0]} and {wanted[1]} are right"
        )


def open_session(model: bytes, *, threads: int = 0, provider: str = "auto", name: str = MODEL) -> tuple[Any, str]:
    """An ONNX Runtime session for an inspected graph, and what runs it: cpu or cuda. name: of its file, for errors.

    With auto, CUDA is taken if there is a device and the graph really runs on it; a device on which it does not is
    logged as `provider.refused`. BadSetting if CUDA is asked for by name and there is none.
    """
    if provider not in ("auto", *PROVIDERS):
        raise BadSetting(f"provider {provider!r} does not exist; choose auto, {', '.join(PROVIDERS)}")
    if provider != "cpu":
        try:
            return _cuda_session(model, threads), "cuda"
        except _NoCuda as error:
            if provider == "cuda":
                raise BadSetting(f"provider cuda was asked for, and {error}; choose auto or cpu") from error
            if error.device:
                log.warning("provider.refused", extra={"facts": {"provider": "cuda", "reason": str(error)}})
    try:
        return _session(model, threads, ["cpu"]), "cpu"
    except Exception as error:  # onnxruntime's exceptions have no narrower base
        raise Corrupt(f"{name} cannot be run: {error}") from error


class _NoCuda(Exception):
    """Why CUDA is not used; `device` tells whether there would be one."""

    def __init__(self, reason: str, device: bool) -> None:
        super().__init__(reason)
        self.device = device


def _session(model: bytes, threads: int, providers: Sequence[str]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; what it warns of is its own choice of providers
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to others
    names = [PROVIDERS[provider] for provider in providers]
    return onnxruntime.InferenceSession(model, options, providers=names, enable_fallback=0)


def _cuda_session(model: bytes, threads: int) -> Any:
    """A session that has run the graph on a CUDA device; _NoCuda if that cannot be had."""
    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise _NoCuda("this ONNX Runtime was built without it", device=False)
    if not _cuda_devices():
        raise _NoCuda("no CUDA device is visible here", device=False)
    onnxruntime.preload_dlls()  # the CUDA libraries that were installed as Python packages
    try:
        session = _session(model, threads, ["cuda", "cpu"])
        side = session.get_inputs()[0].shape[1]
        session.run(None, {INPUT: np.zeros((1, side, side, 3), np.uint8)})
    except Exception as error:  # onnxruntime's exceptions have no narrower base
        raise _NoCuda(f"the graph does not run on it: {error}", device=True) from error
    if session.get_providers()[0] != PROVIDERS["cuda"]:
        raise _NoCuda("ONNX Runtime could not load its CUDA libraries", device=True)
    return session


def _cuda_is_here() -> bool:
    """Whether there is a device, and a runtime for it. Whether a graph runs on it, only running it tells."""
    return PROVIDERS["cuda"] in onnxruntime.get_available_providers() and _cuda_devices() > 0


def _cuda_devices() -> int:
    """How many CUDA devices this process sees, asked of the driver itself: no torch, and nothing printed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
