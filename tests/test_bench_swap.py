"""`lifelist bench swap`: answers that are held against the swaps they met, and four swaps of a real server."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from lifelist.benchmarks import swaps, swaps_report
from lifelist.benchmarks.swaps import FAILED, UNREADABLE, Answered, Run, Swap
from lifelist.deploy.cli import main
from lifelist.exporter.errors import Failed

SWAPS = [Swap(10.0, 10.5, before=1, after=2), Swap(20.0, 20.5, before=2, after=3)]
ANSWERED = [
    *[Answered(1 + k / 100, 1.01 + k / 100, 1, True) for k in range(99)],  # outside: 10 ms each
    Answered(10.0, 10.03, 1, True),  # inside: 30 ms
    Answered(10.52, 10.55, 1, True),  # by the old version, within the 50 ms that are allowed
    Answered(10.56, 10.59, 1, True),  # and after them: stale
    Answered(12.0, 12.01, 2, False),  # not what version 2 says
    Answered(19.99, 20.02, 3, True),  # begun before, and answered by the new one: well
    Answered(13.0, 13.01, FAILED, False),
    Answered(25.0, 25.02, 3, True),
]


def test_answers_are_held_against_the_swaps_that_they_met() -> None:
    found = Run(ANSWERED, SWAPS, [100, 103]).figures()
    assert found["swaps"] == 2
    assert found["answers"] == len(ANSWERED)
    assert found["failed_requests"] == 1
    assert found["mixed_answers"] == 1
    assert found["stale_answers"] == 1
    assert found["p99_ratio"] == pytest.approx(3.0, abs=0.01)
    assert found["swap_seconds"] == 0.5
    assert found["rss_ratio"] == 1.0  # of two swaps the last is the first that counts
    assert Run(ANSWERED, SWAPS * 6, [100] * 10 + [110, 120]).figures()["rss_ratio"] == 1.2


def test_answers_while_live_is_rolled_back_count_as_failed_or_mixed_and_are_in_no_window() -> None:
    meanwhile = [Answered(30.0, 35.0, 2, True), Answered(30.0, 30.1, FAILED, False), Answered(31.0, 31.1, 2, False)]
    alone, found = (Run(ANSWERED, SWAPS, [100, 103], [0.2, 0.3, 0.1], some).figures() for some in ([], meanwhile))
    assert (found["answers"], found["failed_requests"], found["mixed_answers"]) == (len(ANSWERED) + 3, 2, 2)
    assert found["rollback_seconds"] == 0.3
    assert all(found[name] == alone[name] for name in ("p99_ratio", "p99_ms_outside", "stale_answers"))


def test_the_course_of_a_run_is_told_by_parts() -> None:
    first, last = Run(ANSWERED, SWAPS, [100, 103]).course()
    assert (first["swaps"], last["swaps"]) == (1, 2)
    assert first["inside"] == {"50": 30.0, "99": 30.0}
    assert last["outside"] == {"50": 20.0, "99": 20.0}


@pytest.fixture
def server() -> Iterator[Any]:
    """A server of this process that gives its answers, one after the other, and the last one again and again."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        answers: ClassVar[list[tuple[int, bytes]]] = []

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def says(version: Any, *ids: int) -> tuple[int, bytes]:
    return 200, json.dumps({"version": version, "images": [{"classes": [{"id": k}]} for k in ids]}).encode()


def test_answers_that_cannot_be_right_are_wrong_and_the_client_goes_on(server: Any) -> None:
    odd = [
        says(7, 4),  # a version that nobody published
        (200, b"no JSON"),
        (200, b"{}"),
        (200, b"[]"),
        (200, b'{"version": 2, "images": [{"classes": []}]}'),
        (200, b'{"version": null, "images": []}'),
        says(2, 4, 4),  # more images than were sent
        (503, b'{"version": 2}'),
        says(2, 4),  # right
    ]
    server.RequestHandlerClass.answers = list(odd)
    clients = swaps.Clients(server.server_port, [(b"x", "1,1,1,3", [1])], {2: [3, 4]}, count=1)
    with clients:
        while len(clients.answered) < len(odd) + 3:
            assert clients.is_asking()
            time.sleep(0.01)
    found = [(one.version, one.right) for one in clients.answered[: len(odd)]]
    wrong = [(7, False), *[(UNREADABLE, False)] * 5, (2, False), (FAILED, False)]
    assert found == [*wrong, (2, True)]
    assert all(one.right for one in clients.answered[len(odd) :])
    assert len(clients.problems) == len(wrong)
    figures = Run(clients.answered, SWAPS, [1, 1]).figures()
    assert (figures["failed_requests"], figures["mixed_answers"]) == (1, 7)


def test_a_swap_that_is_refused_ends_the_measurement(server: Any) -> None:
    server.RequestHandlerClass.answers = [(409, b'{"error": "another is under way"}')]
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}", trust_env=False) as http_,
        pytest.raises(Failed, match=r"from version 1 to 2 was refused: 409 .*another is under way"),
    ):
        swaps._swap(http_, 1, 2)


def test_the_line_counts_what_all_runs_had_and_names_the_worst_of_the_rest() -> None:
    rows = [{"swaps": 2, "stale_answers": 1, "p99_ratio": 1.2}, {"swaps": 3, "stale_answers": 1, "p99_ratio": 1.1}]
    assert swaps.one_line(rows) == {"swaps": 5, "stale_answers": 2, "p99_ratio": 1.2}


@pytest.mark.timeout(600)
def test_four_swaps_of_a_server_make_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "swap", "--swaps", "4", "--replicas", "1", "--clients", "2", "--folder", str(tmp_path)]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["swaps"] == 4
    assert line["failed_requests"] == line["mixed_answers"] == 0
    assert 0 < line["rollback_seconds"] < swaps.PATIENCE_S
    facts = json.loads((tmp_path / "results.json").read_text())
    (row,) = facts["rows"].values()
    assert row["answers"] > 20
    assert row["p99_ms_inside"] > 0
    assert row["p99_ms_outside"] > 0
    assert len(facts["course"]["1"]["rss_bytes"]) == 4
    assert [part["swaps"] for part in facts["course"]["1"]["latency"]] == [1, 2, 3, 4]
    page = (tmp_path / "README.md").read_text()
    assert f"| p99_ratio | ≤ 1.2 | {row['p99_ratio']:,} |" in page
    assert "|  | bar | 1 replica |" in page
    assert str(tmp_path) not in page
    assert (tmp_path / "swaps.png").stat().st_size > 5000


def test_a_page_has_a_column_for_each_count_of_replicas(tmp_path: Path) -> None:
    run = Run(ANSWERED, SWAPS, [2**20, 2**20])
    facts = {
        "rows": {"1": run.figures(), "2": replace(run, memory=[2**20, 2**21]).figures()},
        "course": {count: {"latency": run.course(), "rss_bytes": run.memory} for count in "12"},
        "asked": {"swaps": 2, "clients": 8, "pause_s": 0.5, "images": 4, "rollbacks": 10},
        "machine": {"cores": 2, "processor": "Some CPU", "date": "2026-01-01"},
    }
    text = swaps_report.page(facts, "swaps.png", "lifelist bench swap")
    assert "|  | bar | 1 replica | 2 replicas |" in text
    assert "| rss_ratio | ≤ 1.05 | 1.0 | 1.0 |" in text
    swaps_report.picture(tmp_path / "swaps.png", facts)
    assert (tmp_path / "swaps.png").stat().st_size > 5000
