"""Bad requests by the hundred, to the real server: the short form of `python -m lifelist.benchmarks.fuzz`."""

import json
import random

import pytest
from parts_server import Server

from lifelist.benchmarks import fuzz, fuzz_inputs

HARMLESS = ("image", "form", "tensor", "paths", "headers", "raw", "feedback")  # others may teach the shared server


@pytest.fixture(autouse=True)
def _feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON for feedback alone: what is sent to other routes might be sound by chance."""

    def feedback(lot: random.Random) -> fuzz_inputs.Request:
        while (made := fuzz_inputs.json_(lot)).path != fuzz_inputs.FEEDBACK:
            pass
        return made

    monkeypatch.setitem(fuzz_inputs.GENERATORS, "feedback", feedback)


@pytest.mark.timeout(300)
def test_no_bad_request_gets_a_5xx_breaks_a_process_or_makes_one_grow(server: Server) -> None:
    found = fuzz.run(server.url, 490, seed=0, only=HARMLESS)
    assert found.failures == []
    line = found.line()
    assert line["inputs"] == 490
    assert line["processes"] >= 4  # two replicas, the operator, HAProxy
    assert {"200", "400", "404", "405", "415"} <= set(line["statuses"])
    assert "500" not in json.dumps(line["statuses"])
    assert server.get("/v1/health/ready")["ready"]


def test_the_same_seed_makes_the_same_requests_and_another_makes_others() -> None:
    def wires(seed: int) -> list[bytes]:
        return [fuzz.made(seed, number)[1].wire() for number in range(80)]

    assert wires(0) == wires(0)
    assert sum(one == other for one, other in zip(wires(0), wires(1), strict=True)) < 5
    assert {fuzz.made(0, number)[0] for number in range(80)} == set(fuzz_inputs.GENERATORS) - {"feedback"}


def test_a_5xx_a_page_that_is_not_json_and_a_connection_that_breaks_are_failures() -> None:
    import http.server
    import threading

    class Broken(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        answers = iter([(500, b'{"error": "x"}', {}), (404, b"nothing here", {}), (503, b'{"error": "x"}', {}),
                        (503, b'{"error": "later"}', {"Retry-After": "1"}), (200, b"fine", {})])  # fmt: skip

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
            found = [connection.ask(fuzz_inputs.Request(b"GET", b"/")) for _ in range(6)]
        site.shutdown()
    assert [status for status, _ in found] == [500, 404, 503, 503, 200, 0]
    assert [bool(problem) for _, problem in found] == [True, True, True, False, False, True]
