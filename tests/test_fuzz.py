"""Bad requests by the hundred, to the real server: the short form of `python -m lifelist.benchmarks.fuzz`."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from parts_operator import serving
from parts_server import Server

from lifelist.benchmarks import fuzz, fuzz_inputs, fuzz_protocol
from lifelist.deploy import cli
from lifelist.exporter.errors import BadInput

HARMLESS = (  # others may teach the shared server
    "image", "form", "tensor", "paths", "headers", "feedback", "infer", "binary", "message", "noise",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON for feedback alone, and calls that load nothing: what is sent elsewhere might be sound by chance."""

    def but_loading(generator: Callable[[random.Random], fuzz_protocol.Call]) -> Any:
        def call(lot: random.Random) -> fuzz_protocol.Call:
            while "/RepositoryModel" in (made := generator(lot)).path:
                pass
            return made

        return call

    for name, generator in fuzz_protocol.CALLS.items():
        monkeypatch.setitem(fuzz_protocol.CALLS, name, but_loading(generator))

    def feedback(lot: random.Random) -> fuzz_inputs.Request:
        while (made := fuzz_inputs.json_(lot)).path != fuzz_inputs.FEEDBACK:
            pass
        return made

    monkeypatch.setitem(fuzz_inputs.GENERATORS, "feedback", feedback)


@pytest.mark.timeout(300)
def test_no_bad_request_gets_a_5xx_breaks_a_process_or_makes_one_grow(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless = [row for row in fuzz_inputs._JSON if row[1] == fuzz_inputs.FEEDBACK]  # a rollback might be sound
    monkeypatch.setattr(fuzz_inputs, "_JSON", harmless)
    hardly = fuzz.run(server.url, 70, seed=0, only=["raw"])  # HTTP; of a path without a slash HAProxy says 503
    found = fuzz.run(server.url, 700, seed=0, only=HARMLESS, grpc_address=f"127.0.0.1:{server.grpc_port}")
    assert hardly.failures + found.failures == []
    line = found.line()
    assert line["inputs"] == 700
    assert line["processes"] >= 4  # two replicas, the operator, HAProxy
    assert {"200", "400", "404", "405", "415", "OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= set(line["statuses"])
    assert {"500", "503", "UNAVAILABLE"}.isdisjoint(line["statuses"])
    assert server.get("/v1/health/ready")["ready"]


@pytest.mark.timeout(300)
def test_no_bad_request_that_could_teach_or_load_gets_a_5xx(tmp_path: Path) -> None:
    """To a server in this process, which may learn from what happens to be sound."""
    with serving(tmp_path) as site:
        found = fuzz.run(site.url, 450, seed=0, only=("examples", "repository", "json"))
    by_uvicorn = "Invalid HTTP request received."  # before whom HAProxy stands elsewhere
    assert [failure for failure in found.failures if by_uvicorn not in failure] == []
    assert {"200", "400", "404", "415", "501"} <= set(found.statuses)
    assert {"500", "503"}.isdisjoint(found.statuses)


def test_the_same_seed_makes_the_same_requests_and_another_makes_others() -> None:
    every = fuzz.chosen("", grpc=True)

    def all_of(seed: int) -> list[object]:
        return [fuzz.made(seed, number, every)[1] for number in range(130)]

    assert all_of(0) == all_of(0)
    assert sum(one == other for one, other in zip(all_of(0), all_of(1), strict=True)) < 8
    there = {*fuzz_inputs.GENERATORS, *fuzz_protocol.GENERATORS, *fuzz_protocol.CALLS}
    assert {fuzz.made(0, number, every)[0] for number in range(130)} == there - {"feedback"}


def test_a_generator_that_is_not_there_is_refused() -> None:
    assert fuzz.chosen("image,noise", grpc=True) == ("image", "noise")
    with pytest.raises(BadInput, match="no generator 'noise' over HTTP; there are image, form"):
        fuzz.chosen("image,noise", grpc=False)
    assert cli.main(["bench", "fuzz", "--only", "image,nonsense"]) == 2


def test_sound_queries_are_among_them_and_answered(server: Server) -> None:
    """Were all refused at the door, nothing behind it would be tried."""
    for name, answered in (("infer", "200"), ("binary", "200"), ("message", "OK")):
        found = fuzz.run(server.url, 60, seed=3, only=[name], grpc_address=f"127.0.0.1:{server.grpc_port}")
        assert found.statuses[answered] >= 5, (name, found.statuses)
        assert found.failures == []


def test_a_5xx_a_page_that_is_not_json_and_a_connection_that_breaks_are_failures() -> None:
    import http.server
    import threading

    class Broken(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        answers = iter([(500, b'{"error": "x"}', {}), (404, b"nothing here", {}), (503, b'{"error": "x"}', {}),
                        (503, b'{"error": "later"}', {"Retry-After": "1"}), (200, b"fine", {}),
                        (501, b'{"error": "x"}', {}), (504, b'{"error": "x"}', {}),
                        (504, b'{"error": "no answer within the 1 s of the parameter timeout"}', {})])  # fmt: skip

        def do_GET(self) -> None:
            status, body, headers = next(self.answers, (0, b"", {}))
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        with fuzz._Connection(f"http://127.0.0.1:{site.server_address[1]}") as connection:
            found = [connection.ask(fuzz_inputs.Request(b"GET", b"/")) for _ in range(9)]
        site.shutdown()
    assert [status for status, _ in found] == ["500", "404", "503", "503", "200", "501", "504", "504", "0"]
    assert [bool(problem) for _, problem in found] == [True, True, True, False, False, False, True, False, True]


def test_a_call_that_breaks_and_an_answer_that_is_no_message_are_failures() -> None:
    details = {b"a": (grpc.StatusCode.INTERNAL, "x"), b"b": (grpc.StatusCode.UNKNOWN, "x"),
               b"c": (grpc.StatusCode.INVALID_ARGUMENT, "no"), b"d": (grpc.StatusCode.INVALID_ARGUMENT, ""),
               b"e": (grpc.StatusCode.UNAVAILABLE, "x")}  # fmt: skip

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        if data in details:
            context.abort(*details[data])
        return data

    handler = grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ServerLive": grpc.unary_unary_rpc_method_handler(answer)}
    )
    broken = grpc.server(ThreadPoolExecutor(1), handlers=(handler,))
    port = broken.add_insecure_port("127.0.0.1:0")
    broken.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        sent = [b"a", b"b", b"c", b"d", b"e", b"\x08\x01", b"\xff"]
        calls = [fuzz_protocol.Call("/inference.GRPCInferenceService/ServerLive", [data]) for data in sent]
        found = [fuzz.called(channel, call) for call in calls]
    broken.stop(None)
    codes = ["INTERNAL", "UNKNOWN", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "UNAVAILABLE", "OK", "OK"]
    assert [code for code, _ in found] == codes
    assert [bool(problem) for _, problem in found] == [True, True, False, True, True, False, True]
