"""Measuring a server: load whose every answer is read, and the ratios that come of it."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lifelist.benchmarks import beside, index_report, index_size, load, serving, serving_report
from lifelist.exporter.errors import Missing

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt-get install wrk")


class Handler(BaseHTTPRequestHandler):
    """Answers each request by what `says` gives for its number."""

    protocol_version = "HTTP/1.1"
    number = 0
    lock = threading.Lock()
    says: Any = None

    def do_POST(self) -> None:
        assert self.rfile.read(int(self.headers["Content-Length"])) == b"body"
        with Handler.lock:
            Handler.number += 1
            status, content = Handler.says(Handler.number)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the generator hangs up at its end
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def loaded(url: str, says: Any, **options: Any) -> load.Load:
    Handler.number, Handler.says = 0, staticmethod(says)
    asked: dict[str, Any] = {"clients": 2, "seconds": 1, "pattern": r'"id": (%d+)', "expected": [7, 8]} | options
    return load.run(url, b"body", {"X-Name": "value"}, **asked)


RIGHT = (200, {"classes": [{"id": 7}, {"id": 8}]})


@needs_wrk
def test_every_answer_of_a_load_is_read(url: str) -> None:
    found = loaded(url, lambda n: RIGHT)
    assert found.errors == 0
    assert found.requests == pytest.approx(Handler.number, abs=3)  # those under way at the end
    assert 0 < found.p50_ms <= found.p99_ms < 1000
    assert 0 < found.generator_cores < 1.1


@needs_wrk
@pytest.mark.parametrize(
    "wrong", [(200, {"classes": [{"id": 8}, {"id": 7}]}), (200, {"classes": [{"id": 7}]}), (503, {"error": "busy"})]
)
def test_an_answer_of_another_class_or_status_is_an_error(url: str, wrong: tuple[int, Any]) -> None:
    found = loaded(url, lambda n: wrong if n % 10 == 0 else RIGHT)
    assert found.errors == pytest.approx(Handler.number // 10, abs=3)
    assert found.right == found.requests - found.errors
    assert found.requests_per_second == found.right / found.seconds
    assert found.first_error == f"{wrong[0]} {json.dumps(wrong[1])}"


@needs_wrk
def test_answers_that_are_all_wrong_are_no_speed(url: str) -> None:
    found = loaded(url, lambda n: (500, {"error": "é"}))
    assert found.requests > 0
    assert found.requests_per_second == 0


@needs_wrk
def test_a_load_can_be_held_to_a_rate(url: str) -> None:
    found = loaded(url, lambda n: RIGHT, rate=100, clients=4, seconds=3)
    assert 20 < found.requests_per_second < 150  # without a rate it is a thousand, on a busy machine too


@needs_wrk
def test_a_load_ends_when_it_is_told_to(url: str) -> None:
    began = time.monotonic()
    found = loaded(url, lambda n: RIGHT, seconds=60, until=lambda: time.monotonic() > began + 1)
    assert 0 < found.seconds < 20
    assert found.errors == 0
    assert 0 < found.requests == pytest.approx(Handler.number, abs=3)


def test_without_the_generator_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Missing, match="apt-get install wrk"):
        load.wrk()


def cell(contender: str, case: str, clients: int, rates: list[float], p50: float = 1.0) -> dict[str, Any]:
    return {
        "contender": contender, "case": case, "clients": clients, "images_per_second": rates,
        "p50_ms": [p50] * 3, "p99_ms": [2.0] * 3, "errors": [0, 0, 1], "generator_cores": [0.1] * 3,
        "first_error": ["", "", "503"],
    }  # fmt: skip


FACTS: dict[str, Any] = {
    "cells": [
        cell("Lifelist", serving_report.R32, 1, [50, 50, 50], p50=1.2),
        cell("bare uvicorn", serving_report.R32, 1, [60, 60, 60]),
        cell("a peer", serving_report.R32, 1, [20, 20, 20]),
        cell("Lifelist", serving_report.R32, 8, [100, 60, 95]),
        cell("bare uvicorn", serving_report.R32, 8, [100, 100, 100]),
        cell("a peer", serving_report.R32, 8, [50, 50, 50]),
        cell("Lifelist", serving_report.R32_PNG, 1, [50, 50, 50], p50=1.3),
        cell("bare uvicorn", serving_report.R32_PNG, 1, [60, 60, 60]),
        cell("Lifelist", serving_report.R32_PNG, 32, [99, 99, 99]),
        cell("bare uvicorn", serving_report.R32_PNG, 32, [110, 110, 110]),
        cell("a peer", serving_report.R32_PNG, 32, [90, 90, 90]),
        cell("a broken peer", serving_report.R32_PNG, 32, [0, 0, 0]),
        cell("a slow peer", serving_report.R32_PNG, 1, [0, 0, 0]),  # measured at one count, and had no answer yet
        cell("Lifelist", f"{serving_report.R32} × 32", 1, [1, 1, 1]),
        cell("Lifelist", f"{serving_report.R32} × 32", 8, [190, 190, 190]),
        cell("Lifelist", f"{serving_report.R32_PNG} × 32", 64, [150, 150, 150]),
        cell("Lifelist", serving_report.R18, 1, [1, 1, 1]),
        cell("Lifelist", serving_report.R18, 8, [18, 18, 18]),
        cell("Lifelist", serving_report.R18, 32, [17, 17, 17]),
    ],
    "raw": {
        serving_report.R32: [{"images_per_second": 200, "way": "2 sessions × 1 thread", "batch": 8}] * 3,
        **{
            case: [{"images_per_second": 200, "way": "2 sessions × 1 thread", "batch": 32}] * 3
            for case in (serving_report.R32_PNG, *serving_report.BATCHES[:2])
        },
        serving_report.R18: [{"images_per_second": 20, "way": "2 sessions × 1 thread", "batch": 8}] * 3,
    },
    "how": {"a peer": "base64 in JSON"},
    "repeats": 3,
    "seconds": 5.0,
    "machine": {"cores": 2, "processor": "Some CPU", "date": "2026-01-01"},
}


def test_the_line_has_the_median_of_ratios_and_of_clients_the_worst() -> None:
    assert serving_report.line(FACTS) == {
        "resnet18_fp32_of_raw": 0.85,  # one lone client does not count
        "resnet32_of_uvicorn": 0.9,  # of tensors 0.95, of PNG files 0.9
        "resnet32_of_best_peer": 1.1,  # of those that gave right answers
        "batch32_of_raw": 0.75,  # of tensors 0.95
        "lone_client_latency_of_uvicorn": 1.3,
        "errors": len(FACTS["cells"]),  # one in each, whoever made it
    }


def test_both_kinds_of_single_images_are_shown_beside_the_bar() -> None:
    text = serving_report.page(FACTS, "rates.png", "lifelist bench serving")
    each = "resnet32 fp32, tensor, 8, 0.95; resnet32 fp32, PNG 32×32, 32, 0.90"
    assert f"| resnet32_of_uvicorn | ≥ 0.95 | 0.90 | {each} |" in text


def test_the_worst_figure_on_the_page_is_that_of_its_cell() -> None:
    """0.7546 is 0.75, and not 0.755, which would be 0.76."""
    cells = [cell("Lifelist", serving_report.R18_INT8, 8, [15.092] * 3)]
    raw = {serving_report.R18_INT8: [{"images_per_second": 20, "way": "1 session", "batch": 8}] * 3}
    text = serving_report.page({**FACTS, "cells": cells, "raw": raw}, "rates.png", "lifelist bench serving")
    assert f"| resnet18_int8_of_raw | ≥ 0.75 | 0.75 | {serving_report.R18_INT8}, 8, 0.75 |" in text


def test_the_cases_are_the_grid_that_the_bars_are_about() -> None:
    """One image and 32 images of each kind; Lifelist at 1, 8, 32 and 64 clients; what is compared, at the same."""
    names = [case.name for case in serving.CASES]
    assert {*serving_report.SINGLE, *serving_report.BATCHES, serving_report.R18, serving_report.R18_INT8} == {*names}
    for case in serving.CASES:
        assert {*case.bare, *case.peers} <= {*case.clients}
        assert case.clients == ((1, 8) if case.name == f"{serving_report.R18} × 32" else (1, 8, 32, 64))
        if case.name in serving_report.SINGLE:
            assert case.bare == case.clients


def spell(requests: int, p99_ms: float) -> load.Load:
    return load.Load(requests, requests, 10.0, 0, 1.0, p99_ms, 0.1)


def test_learning_beside_serving_is_in_the_line_and_on_the_page() -> None:
    rounds = [
        beside.Round(spell(5000, 10.0), spell(4900, 12.0), seconds=30.0, seconds_alone=20.0),
        beside.Round(spell(5000, 10.0), spell(4900, 14.0), seconds=32.0, seconds_alone=20.0),
    ]
    found = beside.figures(1000, [0.2, 0.4, 0.3], rounds) | {"asked": {"images": 50, "epochs": 6}}
    assert found["training_slowdown"] == 1.55
    facts = {**FACTS, "beside": found}
    line = serving_report.line(facts)
    assert (line["p99_while_training_of_idle"], line["enrol_seconds"]) == (1.3, 0.3)
    text = serving_report.page(facts, "rates.png", "lifelist bench serving")
    assert "| 2 | 10.0 | 14.0 | 1.40 | 500 | 490 | 0 | 32.0 | 20.0 | 1.60 |" in text
    assert "0.30 s after their images were posted, at worst after 0.40 s" in text
    alone = serving_report.page({**facts, "cells": [], "raw": {}}, "rates.png", "lifelist bench serving")
    assert "rates.png" not in alone  # there is no picture of no case


@needs_wrk
@pytest.mark.timeout(600)  # a base, a server and two increments: less than a minute on quiet cores
def test_a_server_is_measured_while_it_learns() -> None:
    said: list[str] = []
    asked = beside.Asked(repeats=1, seconds=2, peak_seconds=2, epochs=1, classes=2, images=9, image_size=8)
    found = beside.measure(asked, said.append)
    (one,) = found["rounds"]
    assert one["idle"]["errors"] == one["training"]["errors"] == 0
    assert one["training"]["requests"] > 0
    assert one["training"]["seconds"] == pytest.approx(one["seconds"], abs=5)  # as long as it trained, and no longer
    rate = one["idle"]["requests"] / one["idle"]["seconds"]
    assert 0 < rate < 0.8 * found["peak_per_second"]
    assert found["enrolled"] == 2
    assert 0 < found["enrol_seconds"] <= found["enrol_seconds_worst"]


def test_the_page_shows_every_cell(tmp_path: Any) -> None:
    text = serving_report.page(FACTS, "rates.png", "lifelist bench serving")
    assert "| Lifelist | 8 | 95 | 60 … 100 | 0.47 | 1.0 | 2.0 | 1 | 0.10 |" in text
    assert "| raw ONNX Runtime (2 sessions × 1 thread, batch 8) |  | 200 | 200 … 200 | 1.00 |" in text
    assert "a peer, base64 in JSON" in text
    assert ("a broken peer", "32", "0") in [row[:3] for row in serving_report.rows(FACTS, serving_report.R32_PNG)]
    serving_report.rates_picture(tmp_path / "rates.png", FACTS)
    assert (tmp_path / "rates.png").stat().st_size > 5000


def test_from_few_classes_to_many_everything_is_measured(tmp_path: Any) -> None:
    said: list[str] = []
    facts = index_size.measure(index_size.Asked(counts=(10, 2000), dim=16), said.append)
    few, many = facts["rows"]
    assert len(said) == 2
    assert few["graph"]["recall_1"] == 1.0
    assert many["graph"]["recall_1"] > 0.95
    assert many["exact"]["bytes"] > 2000 * 16 * 4
    assert many["linear"]["bytes"] == 2000 * 16 * 4
    assert facts["chosen"] == {"10": "exact", "2000": "exact"}
    assert many["exact"]["one_more_seconds"] > 0
    text = index_report.page(facts, "index.png", "lifelist bench index")
    assert "| 2,000 | exact |" in text
    index_report.curves(tmp_path / "index.png", facts)
    assert (tmp_path / "index.png").stat().st_size > 5000
