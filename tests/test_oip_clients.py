"""The Open Inference Protocol as its clients speak it: tritonclient, unmodified, four ways, against a real server."""

import asyncio
import gzip
import http.client
import inspect
import json
import queue
import socket
import zlib
from collections.abc import Iterator
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from bad_requests import flat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from parts import BIRDS, DIM, encoded, tiny_images, tiny_version
from parts_server import Server, eventually
from prometheus_client.parser import text_string_to_metric_families
from test_limits import counted
from test_oip import GOLDEN
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.timeout(300)

WAYS = {"http": tritonclient.http, "http.aio": tritonclient.http.aio, "grpc": tritonclient.grpc,
        "grpc.aio": tritonclient.grpc.aio}  # fmt: skip
MODEL = "lifelist"


class Client:
    """A client of tritonclient: `client.infer(…)` whether it is asynchronous or not; answers as plain values."""

    def __init__(self, way: str, server: Server) -> None:
        self.way, self.is_grpc = way, way.startswith("grpc")
        self.kinds = tritonclient.grpc if self.is_grpc else tritonclient.http
        self.loop = asyncio.new_event_loop()
        url = f"127.0.0.1:{server.grpc_port if self.is_grpc else server.port}"
        self.client = self.done(self._made(url))

    async def _made(self, url: str) -> Any:  # the asynchronous ones want to be made in their loop
        return WAYS[self.way].InferenceServerClient(url)

    def done(self, found: Any) -> Any:
        return self.loop.run_until_complete(found) if inspect.isawaitable(found) else found

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments, **named: self.done(getattr(self.client, method)(*arguments, **named))

    def told(self, method: str, *arguments: Any) -> Any:
        """What is answered as JSON over HTTP, in the same form."""
        named = {"as_json": True} if self.is_grpc else {}
        return getattr(self, method)(*arguments, **named)

    def input(self, images: np.ndarray | list[bytes], **how: Any) -> Any:
        data = np.array(images, object) if isinstance(images, list) else images
        name, kind = ("image_bytes", "BYTES") if isinstance(images, list) else ("images", "UINT8")
        made = self.kinds.InferInput(name, list(data.shape), kind)
        made.set_data_from_numpy(data, **how)
        return made

    def output(self, name: str, **how: Any) -> Any:
        return self.kinds.InferRequestedOutput(name, **how)

    def ask(self, images: np.ndarray | list[bytes], *outputs: Any, **named: Any) -> Any:
        rows = [self.output(output) if isinstance(output, str) else output for output in outputs]
        return self.infer(MODEL, [self.input(images)], outputs=rows or None, **named)

    def parameters(self, result: Any) -> dict[str, Any]:
        """Of an answer."""
        if not self.is_grpc:
            return result.get_response().get("parameters", {})
        return {name: value.string_param for name, value in result.get_response().parameters.items()}

    def version(self, result: Any) -> str:
        response = result.get_response()
        return response.model_version if self.is_grpc else response["model_version"]


@pytest.fixture(scope="module", params=WAYS)
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    made = Client(request.param, server)
    yield made
    made.close()
    made.loop.close()


@pytest.fixture(scope="module")
def second(server: Server) -> int:
    """Another version than the live one, of five classes; not loaded."""
    return tiny_version(server.registry, BIRDS[:5], seed=7).version


def live(server: Server) -> str:
    return str(server.get("/v1/versions")["live"])


def text(array: np.ndarray) -> list[str]:
    return [element.decode() for element in array.ravel()]


# ------------------------------------------------------------------------------------------------------ conformance


def test_tensors_in_json_are_answered_as_raw_ones(client: Client) -> None:
    if client.is_grpc:
        pytest.skip("there is no JSON in gRPC")
    images = tiny_images(3)
    outputs = [client.output(name, binary_data=False) for name in ("class_id", "label", "logits")]
    result = client.infer(MODEL, [client.input(images, binary_data=False)], outputs=outputs)
    assert all("data" in row for row in result.get_response()["outputs"])
    assert result.as_numpy("class_id").tolist() == [0, 1, 2]
    assert result.as_numpy("label").tolist() == list(BIRDS[:3])
    raw_ones = client.ask(images, "logits").as_numpy("logits")
    assert result.as_numpy("logits") == pytest.approx(raw_ones, abs=1e-5)


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_queries_may_be_sent_before_the_answers_to_others_are_there(server: Server, way: str) -> None:
    client = Client(way, server)
    inputs = [[client.input(tiny_images(k))] for k in range(1, 9)]
    if client.is_grpc:
        answers = queue.Queue[Any]()
        for k, one in enumerate(inputs):
            client.async_infer(MODEL, one, callback=lambda result, error, k=k: answers.put((k, result, error)))
        found = sorted((answers.get(timeout=30) for _ in inputs), key=lambda row: row[0])
        assert [error for _, _, error in found] == [None] * 8
        results = [result for _, result, _ in found]
    else:
        results = [waiting.get_result() for waiting in [client.async_infer(MODEL, one) for one in inputs]]
    assert [result.as_numpy("class_id").shape for result in results] == [(k,) for k in range(1, 9)]
    client.close()


def test_the_index_is_of_all_versions_or_of_those_that_are_ready(client: Client, server: Server, second: int) -> None:
    def states(**named: Any) -> dict[str, str]:
        if client.is_grpc:  # its client has no argument for it
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                request = service_pb2.RepositoryIndexRequest(**named)
                found = service_pb2_grpc.GRPCInferenceServiceStub(channel).RepositoryIndex(request)
            return {row.version: row.state for row in found.models}
        with server.http() as http_:
            return {row["version"]: row["state"] for row in http_.post("/v2/repository/index", json=named).json()}

    every, ready = states(), states(ready=True)
    assert every[str(second)] == "UNAVAILABLE"
    assert ready == {version: state for version, state in every.items() if state == "READY"}
    assert ready[live(server)] == "READY"


def test_the_server_and_the_model_are_live_and_ready(client: Client, server: Server) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, live(server))
    assert client.is_model_ready(MODEL, "live")
    assert not client.is_model_ready(MODEL, "999")
    assert not client.is_model_ready("other")


def test_the_server_says_what_it_is(client: Client) -> None:
    found = client.told("get_server_metadata")
    assert (found["name"], found["version"]) == ("lifelist", installed_version("lifelist"))
    assert {"binary_tensor_data", "classification", "statistics", "model_repository"} <= set(found["extensions"])


def test_the_model_says_what_goes_in_and_comes_out(client: Client, server: Server) -> None:
    found = client.told("get_model_metadata", MODEL)
    classes = len(server.get("/v1/classes")["classes"])
    assert live(server) in found["versions"]
    rows = {row["name"]: (row["datatype"], [int(side) for side in row["shape"]]) for row in found["inputs"]}
    assert rows == {"images": ("UINT8", [-1, 16, 16, 3]), "image_bytes": ("BYTES", [-1])}
    rows = {row["name"]: (row["datatype"], [int(side) for side in row["shape"]]) for row in found["outputs"]}
    assert (rows["similarities"], rows["class_id"]) == (("FP32", [-1, classes]), ("INT64", [-1]))
    config = client.told("get_model_config", MODEL, live(server))
    config = config.get("config", config)
    assert (config["name"], config["max_batch_size"]) == (MODEL, 256)
    assert [row["name"] for row in config["input"]] == ["images", "image_bytes"]
    assert json.loads(config["parameters"]["class_ids_nearest_mean"]["string_value"]) == list(range(classes))
    result = client.ask(tiny_images(2), *rows)  # what it says is what it gives
    for name, (_, shape) in rows.items():
        assert list(result.as_numpy(name).shape) == [2, *shape[1:]]


@pytest.mark.parametrize("form", ["pixels", "files"])
def test_answers_are_those_of_classify(client: Client, server: Server, form: str) -> None:
    images = tiny_images(3)
    files = [encoded(image) for image in images]
    with server.http() as http_:
        plain = http_.post("/v1/classify?answer=linear&top_k=9", files=[("images", file) for file in files]).json()
    answer = {"parameters": {"answer": "linear"}}
    result = client.ask(images if form == "pixels" else files, "class_id", "label", "score", "probabilities", **answer)
    best = [image["classes"][0] for image in plain["images"]]
    assert client.version(result) == str(plain["version"])
    assert result.as_numpy("class_id").tolist() == [entry["id"] for entry in best]
    assert text(result.as_numpy("label")) == [entry["name"] for entry in best]
    assert result.as_numpy("score").tolist() == pytest.approx([entry["score"] for entry in best], abs=1e-6)
    scores = [sorted((e["score"] for e in image["classes"]), reverse=True) for image in plain["images"]]
    assert np.sort(result.as_numpy("probabilities"))[:, ::-1] == pytest.approx(np.array(scores), abs=1e-6)
    assert client.parameters(result)["answer"] == "linear"


def test_without_outputs_the_best_class_is_told_and_an_id_for_feedback(client: Client, server: Server) -> None:
    result = client.ask(tiny_images(2), request_id="r1")
    response = result.get_response()
    assert (response.id if client.is_grpc else response["id"]) == "r1"
    assert result.as_numpy("class_id").dtype == np.int64
    assert text(result.as_numpy("label")) == list(BIRDS[:2])
    assert result.as_numpy("embedding") is None
    assert {len(sealed) for sealed in text(result.as_numpy("prediction_id"))} == {56}


def test_the_best_classes_are_told_with_their_labels(client: Client) -> None:
    result = client.ask(tiny_images(2), client.output("probabilities", class_count=2))
    found = result.as_numpy("probabilities")
    assert found.shape == (2, 2)
    value, column, label = found[1][0].decode().split(":")
    assert (column, label, len(value)) == ("1", BIRDS[1], 8)
    with pytest.raises(InferenceServerException, match="is more than the 3 classes that version"):
        client.ask(tiny_images(2), client.output("probabilities", class_count=4))


def test_a_deadline_in_microseconds_is_kept(client: Client) -> None:
    assert client.ask(tiny_images(1), timeout=20_000_000) is not None
    with pytest.raises(InferenceServerException, match="of the parameter timeout; it is in microseconds") as raised:
        client.ask(tiny_images(8), timeout=1)
    assert raised.value.status() in ("504", "StatusCode.DEADLINE_EXCEEDED")


def test_a_version_is_loaded_asked_and_unloaded_on_every_replica(client: Client, server: Server, second: int) -> None:
    number = str(second)
    with pytest.raises(InferenceServerException, match=rf"version {number} is not loaded; loaded: .*Load it first"):
        client.ask(tiny_images(1), model_version=number)
    assert state(client, number) == "UNAVAILABLE"
    client.load_model(f"{MODEL}/versions/{number}")
    assert state(client, number) == "READY"
    assert client.is_model_ready(MODEL, number)
    for _ in range(6):  # over both replicas
        result = client.ask(tiny_images(5), "class_id", "logits", model_version=number)
        assert client.version(result) == number
        assert result.as_numpy("logits").shape == (5, 5)
    assert client.version(client.ask(tiny_images(1))) == live(server)
    client.unload_model(f"{MODEL}/versions/{number}")
    assert state(client, number) == "UNAVAILABLE"
    assert not client.is_model_ready(MODEL, number)


@pytest.fixture(scope="module")
def named(server: Server, second: int) -> dict[str, int]:
    """What the names stand for: the version that was live before this one, of four classes, and one of five."""
    before = int(live(server))
    previous = tiny_version(server.registry, BIRDS[:4], seed=8).version
    for version in (previous, before):
        assert server.promote(version).status_code == 200
    held = server.registry.ref("candidate")
    server.registry.move("candidate", second, held.generation if held else None)
    return {"previous": previous, "candidate": second}


@pytest.mark.parametrize(("name", "classes"), [("previous", 4), ("candidate", 5)])
def test_a_version_is_asked_by_what_it_is(client: Client, named: dict[str, int], name: str, classes: int) -> None:
    if name == "candidate":
        assert not client.is_model_ready(MODEL, name)
        client.load_model(f"{MODEL}/versions/{name}")
    assert client.is_model_ready(MODEL, name)
    assert state(client, str(named[name])) == "READY"
    rows = {row["name"]: row["shape"] for row in client.told("get_model_metadata", MODEL, name)["outputs"]}
    assert [int(side) for side in rows["logits"]] == [-1, classes]
    result = client.ask(tiny_images(4), "class_id", "logits", model_version=name)
    assert client.version(result) == str(named[name])
    assert result.as_numpy("logits").shape == (4, classes)
    assert result.as_numpy("class_id").tolist() == [0, 1, 2, 3]
    if name == "candidate":
        client.unload_model(f"{MODEL}/versions/{name}")


def state(client: Client, version: str) -> str:
    found = client.told("get_model_repository_index")
    rows = found["models"] if client.is_grpc else found
    assert {row["name"] for row in rows} == {MODEL}
    return {row["version"]: row["state"] for row in rows}[version]


def test_what_cannot_be_loaded_or_unloaded_says_why(client: Client, server: Server) -> None:
    client.load_model(MODEL)  # it is there already
    for brought in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"bytes"}}):
        with pytest.raises(InferenceServerException, match="only versions that the registry has are loaded"):
            client.load_model(MODEL, **brought)
    with pytest.raises(InferenceServerException, match=r"version \d+ is live, and stays loaded: it answers"):
        client.unload_model(f"{MODEL}/versions/live")
    with pytest.raises(InferenceServerException, match="the model is what this server is for"):
        client.unload_model(MODEL)
    with pytest.raises(InferenceServerException, match="there is no version 999"):
        client.load_model(f"{MODEL}/versions/999")
    with pytest.raises(InferenceServerException, match="there is no model 'other'"):
        client.load_model("other")


def test_statistics_add_up_over_the_replicas(client: Client, server: Server) -> None:
    def row() -> tuple[int, int, int, int]:
        (found,) = client.told("get_inference_statistics", MODEL, live(server))["model_stats"]
        assert (found["name"], found["version"]) == (MODEL, live(server))
        runs = sum(int(batch["compute_infer"]["count"]) for batch in found["batch_stats"])
        assert runs == int(found["execution_count"])
        counts = [int(found["inference_stats"][kind].get("count", 0)) for kind in ("success", "fail")]
        return int(found["inference_count"]), int(found["execution_count"]), *counts  # type: ignore[return-value]

    before = row()
    for _ in range(4):
        client.ask(tiny_images(8))
    with pytest.raises(InferenceServerException):
        client.ask(tiny_images(1), "no such output")
    assert [after - b for after, b in zip(row(), before, strict=True)] == [32, 4, 4, 1]


def test_what_the_server_does_not_have_is_said_so(client: Client) -> None:
    for ask in ("get_trace_settings", "get_log_settings", "get_system_shared_memory_status",
                "get_cuda_shared_memory_status", "unregister_system_shared_memory"):  # fmt: skip
        with pytest.raises(InferenceServerException, match="this server has no") as raised:
            getattr(client, ask)()
        assert raised.value.status() in ("501", "StatusCode.UNIMPLEMENTED")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(client: Client, algorithm: str) -> None:
    how = {"compression_algorithm": algorithm} if client.is_grpc else {
        "request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm,
    }  # fmt: skip
    images = np.repeat(tiny_images(8), 8, axis=0)
    found = client.ask(images, "embedding", "class_id", **how)
    assert np.array_equal(found.as_numpy("embedding"), client.ask(images, "embedding").as_numpy("embedding"))
    assert found.as_numpy("embedding").shape == (64, DIM)


# fmt: off
REFUSED = [
    ("no images at all", lambda c: c.ask(np.zeros((0, 16, 16, 3), np.uint8)), "have no 0", "400", "INVALID_ARGUMENT"),
    ("no image file", lambda c: c.ask([b"no image"]), "not an image that we read", "400", "INVALID_ARGUMENT"),
    ("too many images", lambda c: c.ask(np.zeros((257, 1, 1, 3), np.uint8)), "257 images; send at most 256", "413",
     "INVALID_ARGUMENT"),
    ("unknown parameter", lambda c: c.ask(tiny_images(1), parameters={"x": 1}), "there is no parameter 'x'", "400",
     "INVALID_ARGUMENT"),
    ("a sequence", lambda c: c.ask(tiny_images(1), sequence_id=7, sequence_start=True),
     "no parameter 'sequence_", "400", "INVALID_ARGUMENT"),
    ("unknown model", lambda c: c.infer("other", [c.input(tiny_images(1))]), "there is no model 'other'", "404",
     "NOT_FOUND"),
    ("unknown output", lambda c: c.ask(tiny_images(1), "top"), "there is no output 'top'", "400", "INVALID_ARGUMENT"),
    ("unknown version", lambda c: c.ask(tiny_images(1), model_version="999"), "there is no version 999", "404",
     "NOT_FOUND"),
]
# fmt: on


@pytest.mark.parametrize(("what", "ask", "message", "status", "code"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_refusal_reaches_the_client_with_its_message(
    client: Client, what: str, ask: Any, message: str, status: str, code: str
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        ask(client)
    assert message in raised.value.message()
    assert raised.value.status() == (f"StatusCode.{code}" if client.is_grpc else status)


# ---------------------------------------------------------------------------------------------- wire facts, by number


def raw(server: Server, path: str, body: bytes = b"", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """A POST with no header but those named, as tritonclient's are: httpx and others add a content type."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", path, skip_accept_encoding=True)
    for name, value in ({"content-length": str(len(body))} | headers).items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def request_of(images: np.ndarray, **named: Any) -> tuple[bytes, str]:
    made = tritonclient.http.InferInput("images", list(images.shape), "UINT8")
    made.set_data_from_numpy(images)
    body, length = tritonclient.http.InferenceServerClient.generate_request_body([made], **named)
    return body, str(length)


INFER = f"/v2/models/{MODEL}/infer"


def test_wire_fact_0_the_golden_request_is_what_the_client_sends_and_it_is_understood(server: Server) -> None:
    image = tritonclient.http.InferInput("image", [1, 2], "FP32")
    image.set_data_from_numpy(np.array([[1.5, -2]], np.float32))
    body, length = tritonclient.http.InferenceServerClient.generate_request_body([image], request_id="r1")
    assert (body[:length], length) == (GOLDEN, 148)
    status, _, content = raw(server, INFER, body, inference_header_content_length="148")
    assert status == 400
    assert "send one input, images" in json.loads(content)["error"]  # the model has no input `image`


def test_wire_fact_1_a_binary_request_carries_no_content_type(server: Server) -> None:
    body, length = request_of(tiny_images(2))
    for more in ({}, {"content_type": "application/json"}, {"content_type": "text/plain"}):
        status, _, _ = raw(server, INFER, body, inference_header_content_length=length, **more)
        assert status == 200


def test_wire_fact_2_outputs_are_binary_unless_the_request_says_otherwise(server: Server) -> None:
    body, length = request_of(tiny_images(2))
    assert json.loads(body[: int(length)])["parameters"] == {"binary_data_output": True}
    _, headers, content = raw(server, INFER, body, inference_header_content_length=length)
    head = json.loads(content[: int(headers["inference-header-content-length"])])
    assert all("data" not in row and row["parameters"]["binary_data_size"] for row in head["outputs"])
    assert headers["content-type"] == "application/octet-stream"
    wanted = [
        tritonclient.http.InferRequestedOutput("probabilities", class_count=2),  # binary by itself
        tritonclient.http.InferRequestedOutput("label", binary_data=False),
    ]
    body, length = request_of(tiny_images(2), outputs=wanted)
    _, headers, content = raw(server, INFER, body, inference_header_content_length=length)
    best, label = json.loads(content[: int(headers["inference-header-content-length"])])["outputs"]
    assert "data" not in best
    assert label["data"] == list(BIRDS[:2])


def test_wire_fact_3_repository_requests_are_empty_or_small_and_have_no_content_type(server: Server) -> None:
    status, _, content = raw(server, "/v2/repository/index")
    assert status == 200
    assert {"name", "version", "state", "reason"} == set(json.loads(content)[0])
    assert len(json.loads(raw(server, "/v2/repository/index", b'{"ready":true}')[2])) < len(json.loads(content))
    for body in (b"", b"{}"):
        assert raw(server, f"/v2/repository/models/{MODEL}/load", body)[0] == 200
    refused = (
        (b'{"parameters":{"config":"{}"}}', "load", 400), (b'{"parameters":{"file:1/a":"AA=="}}', "load", 400),
        (b'{"parameters":{"unload_dependents":false}}', "unload", 409), (b"[]", "load", 400), (b"{", "unload", 400),
    )  # fmt: skip
    for body, action, wanted in refused:
        status, _, content = raw(server, f"/v2/repository/models/{MODEL}/{action}", body)
        assert (status, list(json.loads(content))) == (wanted, ["error"])


def test_wire_fact_4_every_refusal_is_an_error_that_the_client_can_read(server: Server) -> None:
    refused = [
        raw(server, INFER, b"{"), raw(server, f"{INFER}/x"), raw(server, "/v2/health/live"), raw(server, "/v2/nothing"),
        raw(server, INFER, zlib.compress(bytes(65 * 2**20)), content_encoding="deflate"),
        raw(server, INFER, b"x", content_encoding="br"),
        raw(server, "/v2/logging"), raw(server, f"/v1/classify{INFER}"), raw(server, f"/v1/classify/%76%32{INFER[3:]}"),
        raw(server, f"/v2/repository/models/{MODEL}/load", b'{"parameters":{"version":999}}'),
    ]  # fmt: skip
    assert [status for status, _, _ in refused] == [400, 404, 405, 404, 413, 415, 501, 404, 404, 404]
    for _, headers, content in refused:
        assert headers["content-type"] == "application/json"
        assert isinstance(json.loads(content)["error"], str)


def test_wire_fact_5_what_is_done_is_200_and_nothing_else(server: Server, second: int) -> None:
    path = f"/v2/repository/models/{MODEL}"
    body = json.dumps({"parameters": {"version": second}}).encode()
    assert [raw(server, f"{path}/{action}", body)[0] for action in ("load", "load", "unload", "unload")] == [200] * 4


@pytest.mark.parametrize(("algorithm", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_wire_fact_6_the_whole_body_is_compressed_and_the_length_is_of_the_json_before_that(
    server: Server, algorithm: str, squeeze: Any
) -> None:
    body, length = request_of(np.repeat(tiny_images(8), 8, axis=0))
    status, headers, content = raw(
        server, INFER, squeeze(body), inference_header_content_length=length, content_encoding=algorithm,
        accept_encoding=algorithm,
    )  # fmt: skip
    assert (status, headers["content-encoding"]) == (200, algorithm)
    result = tritonclient.http.InferenceServerClient.parse_response_body(
        content, header_length=headers["inference-header-content-length"], content_encoding=algorithm
    )
    assert result.as_numpy("class_id").tolist()[:24] == [0] * 8 + [1] * 8 + [2] * 8


def test_wire_fact_7_response_parameters_reach_the_client(server: Server) -> None:
    client = Client("http", server)
    found = client.ask(tiny_images(1)).get_response()
    assert set(found["parameters"]) == {"answer", "live_version"}
    assert found["model_version"] == found["parameters"]["live_version"] == live(server)
    client.close()


def test_wire_fact_8_the_client_sends_a_length_and_chunks_are_read_as_well(server: Server) -> None:
    client = Client("http", server)
    with pytest.raises(InferenceServerException, match="Transfer-Encoding"):
        client.infer(MODEL, [client.input(tiny_images(1))], headers={"Transfer-Encoding": "chunked"})
    client.close()
    body, length = request_of(tiny_images(2))
    with server.http() as http_:
        answer = http_.post(
            INFER, content=iter([body[:100], body[100:]]), headers={"Inference-Header-Content-Length": length}
        )
    assert answer.status_code == 200


def test_a_body_that_is_one_image_file_needs_no_json(server: Server) -> None:
    status, headers, content = raw(server, INFER, encoded(tiny_images()[1]), inference_header_content_length="0")
    assert status == 200
    result = tritonclient.http.InferenceServerClient.parse_response_body(
        content, header_length=headers["inference-header-content-length"]
    )
    assert text(result.as_numpy("label")) == [BIRDS[1]]


# -------------------------------------------------------------------------------------------------------------- gRPC


def test_a_stream_answers_each_request_and_an_error_does_not_end_it(server: Server) -> None:
    client, answers = Client("grpc", server), queue.Queue[Any]()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for images in (tiny_images(1), np.zeros((0, 16, 16, 3), np.uint8), tiny_images(2)):
        client.async_stream_infer(MODEL, [client.input(images)])
    found = [answers.get(timeout=30) for _ in range(3)]
    client.stop_stream()
    client.close()
    assert [result is not None for result, _ in found] == [True, False, True]
    assert "have no 0" in str(found[1][1])
    assert found[2][0].as_numpy("class_id").tolist() == [0, 1]


def test_typed_contents_are_read_and_not_mixed_with_raw_ones(server: Server) -> None:
    images = tiny_images(1)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name=MODEL)
        row = request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
        row.contents.uint_contents.extend(images.ravel().tolist())
        answer = stub.ModelInfer(request)
        assert np.frombuffer(answer.raw_output_contents[0], np.int64).tolist() == [0]
        request.raw_input_contents.append(images.tobytes())
        with pytest.raises(grpc.RpcError, match="has contents, and raw_input_contents too"):
            stub.ModelInfer(request)
        row.contents.Clear()
        row.contents.uint_contents.extend([300] * images.size)
        del request.raw_input_contents[:]
        with pytest.raises(grpc.RpcError, match="run from 300 to 300; UINT8 holds"):
            stub.ModelInfer(request)


def test_a_message_larger_than_any_body_may_be_is_refused_and_what_is_not_in_time_is_given_up(server: Server) -> None:
    client = Client("grpc", server)
    for how in ({}, {"compression_algorithm": "gzip"}):  # the second is small, and would unpack to as much
        with pytest.raises(InferenceServerException, match="larger than max") as raised:
            client.ask(np.zeros((1, 4800, 4800, 3), np.uint8), **how)
        assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        client.ask(np.zeros((1, 4000, 4000, 3), np.uint8), client_timeout=0.01)
    client.close()
    eventually(lambda: held(server) == 0)


def test_a_call_that_its_client_cancels_is_counted_and_leaves_nothing_behind(server: Server) -> None:
    given_up = 'lifelist_grpc_requests_total{code="CANCELLED",method="ModelInfer"'
    before = counted(server, given_up)
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    row = request.inputs.add(name="image_bytes", datatype="BYTES", shape=[30])
    row.contents.bytes_contents.extend([flat((6000, 6000))] * 30)  # seconds of decoding
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(request)

        def under_way() -> bool:
            assert not call.done(), call.code()
            return counted(server, "lifelist_inflight_requests") == 1

        eventually(under_way)
        assert call.cancel()
        eventually(lambda: held(server) == 0)
    assert counted(server, given_up) == before + 1


def held(server: Server) -> float:
    """Bytes and queries that the replicas hold."""
    with server.http() as http_:
        families = text_string_to_metric_families(http_.get("/metrics").text)
    wanted = ("lifelist_buffered_bytes", "lifelist_inflight_requests")
    return sum(sample.value for family in families for sample in family.samples if sample.name in wanted)


def test_where_grpc_is_spoken_stands_in_the_banner(server: Server) -> None:
    assert f"gRPC       127.0.0.1:{server.grpc_port}" in server.text()


def test_grpc_health_is_told(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
        assert len(stub.List(health_pb2.HealthListRequest()).statuses) == 2
        with pytest.raises(grpc.RpcError, match="there is no service 'x'"):
            stub.Check(health_pb2.HealthCheckRequest(service="x"))
        with pytest.raises(grpc.RpcError, match="ask Check"):
            next(stub.Watch(health_pb2.HealthCheckRequest()))


def methods() -> list[tuple[str, Any, Any]]:
    services = [
        service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
    ]
    return [(service.full_name, method, service) for service in services for method in service.methods]


def test_every_method_has_a_body(server: Server) -> None:
    """None answers UNKNOWN, in Ray's words, or UNIMPLEMENTED, in gRPC's own."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for service, method, _ in methods():
            code, details = called(channel, service, method)
            assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (method.name, details)
            assert "not found" not in details.lower(), (method.name, details)


def test_who_asks_a_replica_from_elsewhere_is_refused_by_every_method(server: Server) -> None:
    """Ray's gRPC servers listen on all addresses; ours, behind HAProxy, does not. The operator's has no methods."""
    address = elsewhere()
    first, answers = server.first_port(), []
    for port in range(first + 105, first + 108):  # of two replicas and the operator
        with grpc.insecure_channel(f"{address}:{port}") as channel:
            answers.append([called(channel, service, method) for service, method, _ in methods()])
    codes = [{code for code, _ in found} for found in answers]
    denied, unknown = {grpc.StatusCode.PERMISSION_DENIED}, {grpc.StatusCode.UNKNOWN}
    assert (codes.count(denied), codes.count(unknown)) == (2, 1)
    assert all("does not exist" in details for _, details in answers[codes.index(unknown)])
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((address, server.grpc_port), timeout=5)


def called(channel: grpc.Channel, service: str, method: Any) -> tuple[grpc.StatusCode, str]:
    """How an empty request to a method ends."""
    kind = "stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary"
    call = getattr(channel, "_".join(kind))(f"/{service}/{method.name}")
    try:
        found = call(iter([b""]) if method.client_streaming else b"", timeout=20)
        list(found) if method.server_streaming else None
        return grpc.StatusCode.OK, ""
    except grpc.RpcError as error:
        return error.code(), error.details() or ""  # type: ignore[attr-defined]


def elsewhere() -> str:
    """An address of this machine that is not loopback, as others would use it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no address but loopback")
        found: str = probe.getsockname()[0]
    return found


def test_calls_are_counted_by_method_and_code(server: Server) -> None:
    with server.http() as http_:
        page = http_.get("/metrics").text
    assert 'lifelist_grpc_requests_total{code="OK",method="ModelInfer",replica=' in page
    assert 'code="INVALID_ARGUMENT",method="ModelInfer"' in page


def test_the_example_in_the_documentation_works_as_it_stands(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    _, _, rest = page.partition("<!-- tests/test_oip_clients.py runs this -->\n```python\n")
    monkeypatch.chdir(tmp_path)
    Path("gull.png").write_bytes(encoded(tiny_images()[1]))
    exec(rest.partition("```")[0].replace("localhost:8000", f"127.0.0.1:{server.port}"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("[b'gull'] [")
    assert printed.count(":") == 8 * 3 * 2
