"""Who may import whom: the table of the packages, held by reading every import and by starting real processes."""

import ast
import itertools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "exporter": {
        "lifelist.serving",
        "lifelist.training",
        "lifelist.monitoring",
        "lifelist.deploy",
        "lifelist.benchmarks",
        "ray",
        "torch",
        "torchvision",
    },
    "training": {"lifelist.serving", "lifelist.deploy", "lifelist.benchmarks", "ray", "faiss", "onnxruntime"},
    "serving": {
        "lifelist.training",
        "lifelist.monitoring",
        "lifelist.deploy",
        "lifelist.benchmarks",
        "torch",
        "torchvision",
    },
    "monitoring": {"lifelist.training", "lifelist.deploy", "lifelist.benchmarks", "ray", "torch", "torchvision"},
    "deploy": set(),
    "client": {"lifelist.serving", "lifelist.training", "lifelist.deploy", "lifelist.benchmarks"},
    "benchmarks": {"lifelist.deploy"},
}
ALLOWED = {
    ("exporter/graph.py", "torch"),
    ("exporter/parity.py", "torch"),
    ("training/sidecar.py", "ray"),
}
OF_EXPORTER_IN_TRAINING = {
    "errors",
    "manifest",
    "preprocess",
}  # the plain ones: they need neither onnxruntime nor faiss
OF_OURS_IN_CLIENT = {"lifelist.exporter.errors", "lifelist.client"}
OF_OTHERS_IN_CLIENT = {"httpx", "numpy", "PIL", "typing_extensions"}
OF_CLIENT_IN_SERVING = {"answers"}  # the JSON that both speak
EVERYWHERE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}  # bytes that run as they are read

FILES = sorted(path.relative_to(ROOT) for package in FORBIDDEN for path in (ROOT / package).glob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Every module and name that a file imports, anywhere in it, functions included."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_of(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_follow_the_table_in_the_design(file: Path) -> None:
    for name, root in itertools.product(imported(file), FORBIDDEN[file.parts[0]] | EVERYWHERE):
        assert not is_of(name, root) or (file.as_posix(), root) in ALLOWED, f"{file} imports {name}"
        if file.parts[0] == "training" and is_of(name, "lifelist.exporter"):
            assert name.split(".")[2] in OF_EXPORTER_IN_TRAINING, f"{file} imports {name}"
        if file.parts[0] == "serving" and is_of(name, "lifelist.client"):
            assert name.split(".")[2] in OF_CLIENT_IN_SERVING, f"{file} imports {name}"


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "client"], ids=str)
def test_a_client_needs_little_beside_httpx(file: Path) -> None:
    for name in imported(file):
        ours = any(is_of(name, package) for package in OF_OURS_IN_CLIENT)
        assert ours or name.split(".")[0] in OF_OTHERS_IN_CLIENT | sys.stdlib_module_names, f"{file} imports {name}"


def test_nothing_is_ever_unpickled() -> None:
    calls = ("pickle.load", "pickle.Unpickler", "weights_only=False", "allow_pickle=True", "read_pickle")
    found = [(str(file), call) for file in FILES for call in calls if call in (ROOT / file).read_text()]
    assert found == []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_our_own_modules_are_imported_under_lifelist_only(file: Path) -> None:
    for name in imported(file):
        assert name.split(".")[0] not in FORBIDDEN, f"{file} imports {name}: that makes a second copy of its classes"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imported_without_its_prefix_says_so(package: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import {package}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"import lifelist.{package}, not {package}" in ran.stderr


THE_REST = {"lifelist.serving", "lifelist.training", "lifelist.deploy"}
LOADED = [
    ("lifelist", {"httpx", "numpy", "PIL", "lifelist.client"}),
    ("lifelist.client.answers", {"httpx", "numpy", "PIL", *THE_REST}),
    ("lifelist.client.blocking", {"ray", "torch", "faiss", "onnxruntime", "onnx", "fsspec", "pydantic", *THE_REST}),
    ("lifelist.client.asynchronous", {"ray", "torch", "faiss", "onnxruntime", "onnx", "fsspec", "pydantic", *THE_REST}),
    ("lifelist.serving.app", {"torch", "torchvision", "lifelist.training", "lifelist.deploy"}),
    ("lifelist.exporter.session", {"torch", "torchvision", "ray", "lifelist.serving"}),
    ("lifelist.exporter.registry", {"torch", "ray", "onnxruntime", "faiss", "onnx"}),
    ("lifelist.exporter.manifest", {"torch", "ray", "onnxruntime", "faiss", "onnx", "numpy", "fsspec"}),
    ("lifelist.exporter.preprocess", {"torch", "ray", "onnxruntime", "faiss", "onnx", "fsspec"}),
    ("lifelist.training.increment", {"ray", "faiss", "onnxruntime", "fsspec", "lifelist.serving", "lifelist.deploy"}),
    ("lifelist.training.experiment", {"ray", "faiss", "onnxruntime", "fsspec", "lifelist.serving", "lifelist.deploy"}),
]


@pytest.mark.parametrize(("module", "absent"), LOADED, ids=[module for module, _ in LOADED])
def test_importing_a_module_loads_nothing_that_its_machine_may_lack(module: str, absent: set[str]) -> None:
    """In a fresh process, by what is really loaded: an import behind another import counts too."""
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert [name for name in absent if name in loaded] == []


def test_the_clients_are_loaded_by_name_and_nothing_else_is_there() -> None:
    code = "import lifelist; print(lifelist.Client, lifelist.AsyncClient); lifelist.Cilent"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == [
        "<class", "'lifelist.client.blocking.Client'>", "<class", "'lifelist.client.asynchronous.AsyncClient'>",
    ]  # fmt: skip
    assert "module 'lifelist' has no attribute 'Cilent'" in ran.stderr


def test_every_package_is_installed_checked_and_in_the_table() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(project["packages"]) == {"lifelist", *(f"lifelist.{package}" for package in FORBIDDEN)}
    loop = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "for p in" in line)
    assert set(loop.split(";")[0].split()[3:]) == set(FORBIDDEN)
    table = (ROOT / "CONTRIBUTING.md").read_text()
    assert [package for package in FORBIDDEN if f"| `{package}/` |" not in table] == []


def test_plain_modules_work_on_a_box_without_the_runtime_libraries() -> None:
    """onnxruntime, faiss, onnx, fsspec and ray are made impossible to import, as on a bare GPU box."""
    code = """
import sys
for name in ("onnxruntime", "faiss", "onnx", "fsspec", "ray", "google.protobuf"):
    sys.modules[name] = None
import numpy as np
from lifelist.exporter import errors, manifest, preprocess
rule = manifest.Preprocess(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
assert preprocess.fit(np.zeros((20, 30, 3), np.uint8), rule).shape == (8, 8, 3)
import lifelist.training.increment, lifelist.training.experiment
"""
    subprocess.run([sys.executable, "-c", code], check=True)
