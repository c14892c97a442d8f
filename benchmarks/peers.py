"""Other model servers as rows of the table, each installed in an environment of its own, from the package index."""

import base64
import json
import os
import subprocess
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lifelist.benchmarks.contenders import Contender, Kind, Sent, form, raw_bytes
from lifelist.benchmarks.models import Model
from lifelist.exporter.errors import Failed
from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Registry
from lifelist.exporter.session import INT8, MODEL

END_S = 5  # LitServe waits for answers that nobody takes any more, and would do so for a minute
HERE = Path(__file__).with_name("peer_servers")


@dataclass(frozen=True, slots=True)
class Peer:
    """A server as its project gives it out."""

    name: str
    package: str
    start: Callable[[Path, int, Path], Sequence[str]]  # (its environment's bin, port, folder) → command
    sent: Callable[[Model, Kind, Sequence[int]], Sent]
    pattern: str
    ready: str
    how: str
    beside: tuple[str, ...] = ()  # packages that it needs for what it is sent


def _form(model: Model, kind: Kind, numbers: Sequence[int]) -> Sent:
    return form("/classify", [_image(model, kind, number) for number in numbers])


def _json(model: Model, kind: Kind, numbers: Sequence[int]) -> Sent:
    data = [base64.b64encode(_image(model, kind, number)).decode() for number in numbers]
    body = {"inputs": [{"name": "image", "shape": [len(data), 1], "datatype": "BYTES", "data": data}]}
    return Sent(json.dumps(body).encode(), {"Content-Type": "application/json"}, "/v2/models/classifier/infer")


def _image(model: Model, kind: Kind, number: int) -> bytes:
    return model.files[number] if kind == "file" else model.pixels[number].tobytes()


def _start_mlserver(programs: Path, port: int, folder: Path) -> Sequence[str]:
    (folder / "settings.json").write_text(
        json.dumps({"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "host": "127.0.0.1",
                    "parallel_workers": 0, "debug": False, "metrics_endpoint": None})
    )  # fmt: skip
    (folder / "model-settings.json").write_text(
        json.dumps({"name": "classifier", "implementation": "ml.Classifier", "max_batch_size": 64,
                    "max_batch_time": 0.002})
    )  # fmt: skip
    return [str(programs / "mlserver"), "start", str(folder)]


PEERS = (
    Peer(
        name="LitServe",
        package="litserve==0.2.19",
        start=lambda programs, port, folder: [str(programs / "python"), str(HERE / "lit.py"), str(port)],
        sent=raw_bytes("/predict"),
        pattern=r'"id":%s*(%d+)',
        ready="/health",
        how="raw bytes, several files in a form",
        beside=("python-multipart==0.0.34",),
    ),
    Peer(
        name="BentoML",
        package="bentoml==1.4.40",
        start=lambda programs, port, folder: [
            str(programs / "bentoml"),
            "serve",
            "bento:Classifier",
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
            "--working-dir",
            str(HERE),
        ],
        sent=_form,
        pattern=r'"id":%s*(%d+)',
        ready="/readyz",
        how="a form of files",
    ),
    Peer(
        name="MLServer",
        package="mlserver==1.7.1",
        start=_start_mlserver,
        sent=_json,
        pattern=r'"data":%s*%[([%d,%s]+)%]',  # all ids at once: one list for the request
        ready="/v2/health/ready",
        how="base64 in JSON",
    ),
)


def contenders(folder: Path, tell: Callable[[str], None]) -> list[Contender]:
    """All peers as rows; their environments are made in `folder` if they are not there."""
    return [_contender(peer, installed(_packages(peer), folder, tell)) for peer in PEERS]


def _packages(peer: Peer) -> Sequence[str]:
    return [peer.package, *peer.beside, "numpy", "pillow", f"onnxruntime=={version('onnxruntime-gpu')}"]


def installed(packages: Sequence[str], folder: Path, tell: Callable[[str], None]) -> Path:
    """Where the programs of an environment are that has these packages, made in `folder` if it is not there.

    It is called by the first of them, as in name==1.0. Failed, with what pip said, if that cannot be installed.
    """
    first = packages[0]
    place = folder / first.replace("==", "-")
    programs = place / "bin"
    ready = place / "ready"
    if not ready.exists() or ready.read_text() != "\n".join(packages):
        tell(f"installing {first} in an environment of its own")
        venv.create(place, with_pip=True, clear=True)
        done = subprocess.run([programs / "pip", "install", "--quiet", *packages], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{first} cannot be installed: {done.stderr.strip()[-500:]}")
        ready.write_text("\n".join(packages))
    return programs


def _contender(peer: Peer, programs: Path) -> Contender:
    def command(model: Model, precision: str, port: int, folder: Path) -> Sequence[str]:
        registry = Registry(model.registry)
        manifest = registry.manifest(model.version)
        (folder / "model.onnx").write_bytes(registry.read(manifest, INT8 if precision == "auto" else MODEL))
        (folder / "about.json").write_text(json.dumps(about(manifest)))
        return ["env", *(f"{name}={value}" for name, value in _environment(folder).items()),
                *peer.start(programs, port, folder)]  # fmt: skip

    return Contender(peer.name, command, peer.sent, peer.pattern, peer.ready, peer.how, END_S)


def about(manifest: Manifest) -> Mapping[str, Any]:
    """What a peer has to know of a version, beside its graph (peer_servers/model.py)."""
    return {
        "size": manifest.preprocess.size,
        "resize_to": manifest.preprocess.resize_to,
        "classes": [entry.name for entry in manifest.classes],
    }


def _environment(folder: Path) -> Mapping[str, str]:
    cores = len(os.sched_getaffinity(0))
    return {
        "MODEL_FOLDER": str(folder),
        "MODEL_THREADS": str(cores),
        "MODEL_WORKERS": "1",
        "PYTHONPATH": str(HERE),
        "BENTOML_DO_NOT_TRACK": "True",
    }
