"""Each limit, gone past by one on a real server whose limits are small; and clients that dawdle, or leave half-way."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bad_requests import flat
from parts import encoded, tiny_images, tiny_version
from parts_server import Server, eventually, started

from lifelist.exporter.registry import Registry

pytestmark = pytest.mark.timeout(300)

LIMITS = {
    "serving.max-header-bytes": 4096,
    "serving.head-timeout-s": 2,
    "serving.read-timeout-s": 3,
    "serving.stall-timeout-s": 1,
    "serving.keep-alive-s": 2,
    "serving.max-json-bytes": 2000,
    "serving.max-json-depth": 5,
    "serving.max-infer-json-bytes": 3000,
    "serving.max-images": 4,
    "serving.max-body-bytes": 100_000,
    "serving.max-buffered-bytes": 100_000,
    "serving.max-image-bytes": 50_000,
    "serving.max-pixels": 10_000,
    "examples.max-request-bytes": 100_000,
    "examples.max-per-request": 3,
    "examples.max-uploads": 2,
    "examples.max-bytes-per-day": 150_000,
    "examples.read-timeout-s": 3,
}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose every limit is small."""
    home = tmp_path_factory.mktemp("tight")
    tiny_version(Registry(str(home / "registry")), first_id=1, live=True)
    with started(home, *(f"--{name}={value}" for name, value in LIMITS.items())) as made:
        yield made


def tensor(count: int, side: int = 16) -> dict[str, Any]:
    return {
        "content": bytes(count * side * side * 3),
        "headers": {"Content-Type": "application/octet-stream", "X-Tensor-Shape": f"{count},{side},{side},3"},
    }


def wide(width: int) -> dict[str, Any]:
    return {"content": bytes(100 * width * 3), "headers": {"X-Tensor-Shape": f"1,100,{width},3"}}


def nested(depth: int) -> dict[str, Any]:
    return {"content": b"[" * depth + b"]" * depth, "headers": JSON}


def padded(size: int) -> bytes:
    """An image file of so many bytes."""
    data = encoded(tiny_images()[0])
    return data + bytes(size - len(data))


def form(*files: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{k}.png", data)) for k, data in enumerate(files)]


small = encoded(tiny_images()[0])
QUERY, EXAMPLES, FEEDBACK, INFER = "/v1/classify", "/v1/examples", "/v1/feedback", "/v2/models/lifelist/infer"
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PAST = [  # what; where; at the limit, and its status; one past it, its status, and its message
    ("images", QUERY, tensor(4), 200, tensor(5), 413, "at most 4 in one query"),
    ("images of a form", QUERY, {"files": form(*[small] * 4)}, 200, {"files": form(*[small] * 5)}, 413, "at most 4"),
    ("body", QUERY, {"content": bytes(100_000)}, 413, {"content": bytes(100_001)}, 413, "limit is 100,000"),
    ("image file", QUERY, {"content": padded(50_000)}, 200, {"content": padded(50_001)}, 413, "limit is 50,000"),
    ("pixels", QUERY, {"content": flat((100, 100))}, 200, {"content": flat((100, 101))}, 413, "limit is 10,000"),
    ("pixels of a tensor", QUERY, wide(100), 200, wide(101), 413, "limit is 10,000"),
    ("JSON", FEEDBACK, {"content": b" " * 2000, "headers": JSON}, 400, {"content": b" " * 2001, "headers": JSON},
     413, "limit is 2,000"),
    ("depth", FEEDBACK, nested(5), 400, nested(6), 400, "nests 6 deep; the limit is 5"),
    ("depth of a query", INFER, nested(5), 400, nested(6), 400, "nests 6 deep; the limit is 5"),
    ("JSON of a query", INFER, {"content": b" " * 3000}, 400, {"content": b" " * 3001}, 413, "limit is 3,000"),
    ("examples", EXAMPLES, None, 0, {"data": {"class": "x"}, "files": form(*[small] * 4)}, 413, "more than 3 images"),
    ("upload", EXAMPLES, None, 0, {"content": bytes(100_001), "headers": FORM}, 413, "limit is 100,000"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "path", "at", "fine", "past", "status", "says"), PAST, ids=[row[0] for row in PAST])
def test_one_past_a_limit_is_refused_and_says_the_limit(
    tight: Server, what: str, path: str, at: Any, fine: int, past: Any, status: int, says: str
) -> None:
    with tight.http() as http:
        if at is not None:
            answer = http.post(path, **at)
            assert answer.status_code == fine, answer.text
            assert says not in answer.text
        answer = http.post(path, **past)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/classes"])
def test_a_head_past_its_limit_is_refused(tight: Server, path: str) -> None:
    with tight.http() as http:
        assert http.get(path, headers={"X-Long": "x" * 3500}).status_code in (200, 405)
        assert http.get(path, headers={"X-Long": "x" * 4096}).status_code == 400


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/classes"])
@pytest.mark.parametrize(("lines", "statuses"), [(500, (200, 405)), (501, (400,))])
def test_a_head_of_more_lines_than_500_is_refused(
    server: Server, path: str, lines: int, statuses: tuple[int, ...]
) -> None:
    top = "".join(["Host: localhost\r\n", "Connection: close\r\n", *["a:\r\n"] * (lines - 2)])
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n{top}\r\n".encode())
        assert said(connection)[0] in statuses


def test_more_than_a_day_holds_is_put_off(tight: Server) -> None:
    part = {"files": form(padded(49_000)), "headers": {}}
    statuses = []
    with tight.http() as http:
        for _ in range(4):
            answer = http.post("/v1/examples", data={"class": ""}, **part)  # no class is called so: nothing is added
            statuses.append(answer.status_code)
    assert statuses[0] == 400
    assert statuses[-1] == 429
    assert "150,000 bytes of examples a day" in answer.json()["error"]
    assert int(answer.headers["Retry-After"]) > 60


# ------------------------------------------------------------------------------------------------------ slow clients


def head(path: str, length: int, kind: str = "application/json") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()
    )


def said(connection: socket.socket) -> tuple[int, str]:
    """The status and the body of what comes until the other side closes."""
    data = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    top, _, body = data.partition("\r\n\r\n")
    return int(top.split(" ")[1]) if top else 0, body


KINDS = {
    "/v1/classify": "image/png",
    "/v1/feedback": "application/json",
    "/v1/increments": "application/json",
    "/v1/rollback": "application/json",
    "/v1/examples": "multipart/form-data; boundary=x",
}


def at_once(ask: Callable[[str], tuple[int, str, float]]) -> None:
    """Ask at every path at the same time, for it takes seconds: each is given up, with a 408 in JSON, and closed."""
    with ThreadPoolExecutor(len(KINDS)) as pool:
        for path, (status, body, seconds) in zip(KINDS, pool.map(ask, KINDS), strict=True):
            assert status == 408, path
            assert "send less in one request" in json.loads(body)["error"], path
            assert seconds < 10, path


def test_a_body_that_stops_half_way_is_given_up_and_its_connection_closed(tight: Server) -> None:
    def stop(path: str) -> tuple[int, str, float]:
        with socket.create_connection(("127.0.0.1", tight.port), timeout=20) as connection:
            began = time.monotonic()
            connection.sendall(head(path, 1000, KINDS[path]) + b"x" * 500)
            return *said(connection), time.monotonic() - began

    at_once(stop)


def test_a_body_that_trickles_in_is_given_up_and_its_connection_closed(tight: Server) -> None:
    def trickle(path: str) -> tuple[int, str, float]:
        with socket.create_connection(("127.0.0.1", tight.port), timeout=20) as connection:
            connection.sendall(head(path, 1000, KINDS[path]))
            done = threading.Event()

            def drip() -> None:
                with contextlib.suppress(OSError):
                    while not done.wait(0.2):
                        connection.sendall(b"x")

            thread = threading.Thread(target=drip)
            thread.start()
            began = time.monotonic()
            try:
                return *said(connection), time.monotonic() - began
            finally:
                done.set()
                thread.join()

    at_once(trickle)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/classify HT", b"GET /v1/classes HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(tight: Server, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", tight.port), timeout=20) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        assert said(connection)[0] in (0, 408)
        assert 1 < time.monotonic() - began < 10


def test_a_client_that_does_not_read_its_answers_is_let_go(tight: Server) -> None:
    page = "/docs/swagger-ui-bundle.js"
    with tight.http() as http:
        size = len(http.get(page).content)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", tight.port))
        connection.sendall(f"GET {page} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 40)
        time.sleep(6)  # stall_timeout_s and 2 s, and time to spare
        with tight.http() as http:
            assert http.post("/v1/classify", content=small).status_code == 200
        read = sum(map(len, iter(lambda: connection.recv(2**20), b"")))
    assert 0 < read < 20 * size  # what was on its way


def test_a_connection_on_which_nothing_more_is_asked_is_closed(tight: Server) -> None:
    with socket.create_connection(("127.0.0.1", tight.port), timeout=20) as connection:
        connection.sendall(b"GET /v1/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began = time.monotonic()
        assert said(connection)[0] == 200
        assert 1 < time.monotonic() - began < 10


def test_more_uploads_at_once_than_allowed_are_put_off_and_their_places_come_free(tight: Server) -> None:
    connections = [socket.create_connection(("127.0.0.1", tight.port), timeout=20) for _ in range(2)]
    for connection in connections:
        connection.sendall(head("/v1/examples", 1000, "multipart/form-data; boundary=x") + b"-")
    body = {"content": b"-", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}
    with tight.http() as http:
        refused = eventually(lambda: (a := http.post("/v1/examples", **body)).status_code == 503 and a, 5)
        assert "2 uploads of examples are under way, the limit" in refused.json()["error"]
        assert refused.headers["Retry-After"] == "1"
        for connection in connections:
            connection.close()
        eventually(lambda: http.post("/v1/examples", **body).status_code != 503, 5)


# ----------------------------------------------------------------------------------- the shared server, as it comes


def counted(server: Server, name: str) -> float:
    """The sum of a metric over the replicas."""
    with server.http() as http:
        lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_a_client_that_leaves_while_its_images_are_decoded_is_counted_and_leaves_nothing_behind(server: Server) -> None:
    large = flat((6000, 6000))
    with server.http() as http:
        request = http.build_request("POST", "/v1/classify", files=form(*[large] * 10))
    lines = [f"{name.decode()}: {value.decode()}" for name, value in request.headers.raw]
    raw = "\r\n".join(["POST /v1/classify HTTP/1.1", *lines, "", ""]).encode() + request.read()
    before = counted(server, 'lifelist_requests_total{code="499"')

    for _ in range(4):  # one after the other: each on a connection that the one before has left, or on a new one
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(raw)
            eventually(lambda: counted(server, "lifelist_inflight_requests") == 1)
        eventually(lambda: counted(server, "lifelist_inflight_requests") == 0)
    assert counted(server, 'lifelist_requests_total{code="499"') == before + 4
    eventually(lambda: counted(server, "lifelist_inflight_requests") == 0)
    assert counted(server, "lifelist_queued_images") == counted(server, "lifelist_buffered_bytes") == 0
    with server.http() as http:
        assert http.post("/v1/classify", content=small).status_code == 200


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/feedback"])
def test_a_client_that_closes_its_side_before_the_answer_is_told_so_and_not_held(server: Server, path: str) -> None:
    kind = "image/png" if path == "/v1/classify" else "application/json"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head(path, len(small), kind) + small)
        connection.shutdown(socket.SHUT_WR)
        status, body = said(connection)
    assert status == 400
    told = json.loads(body)["error"]  # an image is no JSON: a server that is quick says that instead
    assert "the client closed its sending side before the answer" in told or "the body is not JSON" in told
    eventually(lambda: counted(server, "lifelist_inflight_requests") == 0)


def test_a_client_that_closes_its_side_in_the_middle_of_a_body_is_let_go_at_once(server: Server) -> None:
    for path, kind in (("/v1/classify", "image/png"), ("/v1/feedback", "application/json")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(head(path, 1000, kind) + b"x" * 10)
            connection.shutdown(socket.SHUT_WR)
            began = time.monotonic()
            assert said(connection)[0] in (0, 400)
            assert time.monotonic() - began < 5


def test_a_thousand_idle_connections_take_nothing_from_one_that_asks(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for k in range(1000):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            if k % 2:
                connection.sendall(b"GET /v1/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")  # then idle, and kept
        http = stack.enter_context(server.http())
        for _ in range(50):
            began = time.monotonic()
            assert http.post("/v1/classify", content=small).status_code == 200
            assert time.monotonic() - began < 5
        assert http.get("/v1/health/ready").status_code == 200
