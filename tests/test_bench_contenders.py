"""The servers that are compared: the one that answers is the one that was started, and its answers are read."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lifelist.benchmarks import beside, load, models, peers, serving
from lifelist.benchmarks.contenders import BARE, LIFELIST, Sent, free_port, running, started
from lifelist.benchmarks.models import Model
from lifelist.benchmarks.peers import PEERS
from lifelist.benchmarks.serving import Case, Query
from lifelist.client import errors
from lifelist.client.blocking import Client
from lifelist.exporter.errors import Conflict, Failed
from lifelist.exporter.registry import Registry
from lifelist.exporter.session import MODEL

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt-get install wrk")
Says = Callable[[str], tuple[int, str]]  # path → status, body


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return models.resnet32(tmp_path_factory.mktemp("models"))


@pytest.fixture
def answering() -> Iterator[Callable[[Says], int]]:
    """The port of a server of this process, that says what it is given to say."""
    servers = []

    def listen(says: Says) -> int:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, body = says(self.path)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the generator hangs up at its end
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_port

    yield listen
    for server in servers:
        server.shutdown()
        server.server_close()


# ----------------------------------------------------------------------------------------------------- who answers


def test_a_server_is_not_started_where_one_answers_already(answering: Any, tmp_path: Path) -> None:
    port = answering(lambda path: (200, "{}"))
    with pytest.raises(Conflict, match=f":{port} already; end it"), running(["sleep", "60"], port, "/", tmp_path):
        pass


def test_a_server_that_was_not_started_here_is_not_measured(answering: Any, tmp_path: Path) -> None:
    """It comes up while ours is waited for, and answers in its place."""
    statuses = iter([503])
    port = answering(lambda path: (next(statuses, 200), "{}"))
    with (
        pytest.raises(Conflict, match=rf"{port} is answered by processes \[{os.getpid()}\]"),
        running(["sleep", "60"], port, "/", tmp_path),
    ):
        pass


def test_a_server_is_gone_after_its_block(tmp_path: Path) -> None:
    port = free_port()
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'http.server', sys.argv[1]])"
    with running([sys.executable, "-c", nested, str(port)], port, "/", tmp_path) as url:  # its child listens
        assert httpx.get(url).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_what_a_server_printed_is_told_if_it_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(Failed, match="did not start: no such model"), running(command, free_port(), "/", tmp_path):
        pass


# ------------------------------------------------------------------------------------------------ what they answer

RIGHT, WRONG = [3, 17, 0], [3, 17, 1]


def lifelist(ids: Sequence[int]) -> str:
    images = [{"prediction_id": "x7", "classes": [{"id": k, "name": f"picture {k}", "score": 0.91}]} for k in ids]
    return json.dumps({"version": 12, "answer": "linear", "images": images}, separators=(",", ":"))


def plain(separators: tuple[str, str]) -> Callable[[Sequence[int]], str]:
    rows = lambda ids: [{"id": k, "name": f"picture {k}", "score": 0.91} for k in ids]  # noqa: E731
    return lambda ids: json.dumps(rows(ids), separators=separators)


def mlserver(ids: Sequence[int]) -> str:
    """As version 1.7.1 said."""
    output = {"name": "id", "shape": [len(ids), 1], "datatype": "INT64", "data": ids}
    answer = {"model_name": "classifier", "id": "0d6b1a52-58b1-4b0c-8f33-1b9d4a7e4f10", "parameters": {}}
    return json.dumps(answer | {"outputs": [output]}, separators=(",", ":"))


ANSWERS = {
    LIFELIST.name: lifelist,
    BARE.name: plain((",", ":")),
    "LitServe": plain((",", ":")),
    "BentoML": plain((",", ":")),
    "MLServer": mlserver,
}
PATTERNS = {one.name: one.pattern for one in (LIFELIST, BARE, *PEERS)}


@needs_wrk
@pytest.mark.parametrize("name", ANSWERS)
def test_all_ids_of_an_answer_are_read(name: str, answering: Any, model: Model) -> None:
    """Of every contender, and of several images in a request."""
    for ids, wrong in ((RIGHT, False), (WRONG, True), (RIGHT[:1], True), ([*RIGHT, 5], True)):
        said = ANSWERS[name](ids)
        port = answering(lambda path, said=said: (200, said))
        found = load.run(
            f"http://127.0.0.1:{port}/", b"", {}, clients=1, seconds=1, pattern=PATTERNS[name], expected=RIGHT
        )
        assert found.requests > 0
        assert found.errors == (found.requests if wrong else 0), (ids, found)
        assert found.right == (0 if wrong else found.requests)


def case(kind: Any, images: int) -> Case:
    return Case("resnet32", "fp32", kind, images, (1,), bare=(1,), peers=(1,))


@pytest.fixture(scope="module")
def bare(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started(BARE, model, "fp32") as url:
        yield url


@needs_wrk
@pytest.mark.parametrize("images", [1, 32])
@pytest.mark.parametrize("kind", ["tensor", "file"])
def test_the_least_server_answers_one_image_and_many(kind: Any, images: int, bare: str, model: Model) -> None:
    query = Query(bare, BARE, model, case(kind, images), first=3, classes=range(models.IMAGES))
    serving.check(query)
    found = query.load(2, 1)
    assert found.errors == 0
    assert found.requests_per_second > 0


@needs_wrk
def test_a_server_that_answers_wrongly_is_not_measured(bare: str, model: Model) -> None:
    other = [*range(1, models.IMAGES), 0]
    with pytest.raises(Failed, match=r'bare uvicorn does not answer .* alone does: 200 \{"images":\[\{"id":0'):
        serving.check(Query(bare, BARE, model, case("tensor", 1), first=0, classes=other))


@needs_wrk
def test_a_server_that_refuses_is_not_measured(answering: Any, model: Model) -> None:
    port = answering(lambda path: (500, "cannot identify image"))
    query = Query(f"http://127.0.0.1:{port}", LIFELIST, model, case("file", 32), first=0, classes=range(models.IMAGES))
    with pytest.raises(Failed, match=r"Lifelist does not answer .* alone does: 500 cannot identify image"):
        serving.check(query)


def test_peers_see_the_same_pixels_and_give_the_same_answers(model: Model, tmp_path: Path) -> None:
    """Their part that all of them share, which runs without Lifelist; more images than in one run of the graph."""
    registry = Registry(model.registry)
    (tmp_path / "model.onnx").write_bytes(registry.read(registry.manifest(model.version), MODEL))
    (tmp_path / "about.json").write_text(json.dumps(peers.about(registry.manifest(model.version))))
    np.save(tmp_path / "pixels.npy", model.pixels)
    for k, data in enumerate(model.files):
        (tmp_path / str(k)).write_bytes(data)
    code = (
        "import numpy as np, json, model\n"
        "tensors = np.load(model.FOLDER / 'pixels.npy')\n"
        "files = np.stack([model.pixels((model.FOLDER / str(k)).read_bytes()) for k in range(len(tensors))])\n"
        "raw = np.stack([model.pixels(one.tobytes()) for one in tensors])\n"
        "assert (files == tensors).all() and (raw == tensors).all()\n"
        "print(json.dumps([one['id'] for one in model.best(model.session(1), np.concatenate([files] * 3))]))\n"
    )
    environment = os.environ | {"MODEL_FOLDER": str(tmp_path), "PYTHONPATH": str(peers.HERE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == [*range(models.IMAGES)] * 3


def test_each_contender_is_sent_as_many_images_as_are_meant(model: Model) -> None:
    """In raw bytes with a shape, in a form of files, or in JSON."""

    def bodies(sent: Sent) -> int:
        if "X-Tensor-Shape" in sent.headers:
            assert len(sent.body) == np.prod([int(side) for side in sent.headers["X-Tensor-Shape"].split(",")])
            return int(sent.headers["X-Tensor-Shape"].partition(",")[0])
        if sent.headers["Content-Type"].startswith("multipart/form-data"):
            return sent.body.count(b'name="images"')
        if sent.headers["Content-Type"] == "application/json":
            (given,) = json.loads(sent.body)["inputs"]
            return len(given["data"])
        return 1

    for contender in (BARE, LIFELIST, *PEERS):
        for kind in ("tensor", "file"):
            for count in (1, 32):
                assert bodies(contender.sent(model, kind, range(count))) == count, (contender.name, kind, count)


# ------------------------------------------------------------------------------------------------------- enrolment


@needs_wrk
def test_a_class_that_is_refused_is_not_waited_for(answering: Any) -> None:
    def says(path: str) -> tuple[int, str]:
        if path.startswith("/v1/classify"):
            return 200, json.dumps({"images": [{"classes": []}]})
        return 400, json.dumps({"error": {"code": "bad_input", "message": "no such thing"}})

    url = f"http://127.0.0.1:{answering(says)}"
    with Client(url, patience_s=0) as client, pytest.raises(errors.BadInput, match="no such thing"):
        beside._enrolled(client, url, b"image", 50, "new", [b"image"], lambda text: None)
