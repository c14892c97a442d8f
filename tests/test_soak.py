"""The soak, in seconds for minutes, on the real server: what it counts, and that it hears of failures."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import BIRDS, encoded, tiny_images, tiny_version
from parts_server import Server

from lifelist.benchmarks import soak
from lifelist.benchmarks.soak import Minute

IMAGE = encoded(tiny_images()[0])


@pytest.fixture
def swapping(server: Server) -> Iterator["itertools.cycle[int]"]:
    """The versions to be made live, in turn; version 1 is in the end."""
    other = tiny_version(server.registry, BIRDS[:4], seed=3).version
    assert server.promote(1).status_code == 200
    yield itertools.cycle([other, 1])
    assert server.promote(1).status_code == 200


@pytest.mark.timeout(300)
def test_minutes_with_a_swap_in_each_are_counted_and_drawn(
    server: Server, swapping: Iterator[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "PEAK_S", 1)

    def swap() -> None:
        assert server.promote(next(swapping)).status_code == 200

    said: list[str] = []
    rate, rows, problems = soak.soak(server.url, IMAGE, 2, swap, said.append, minute_s=3)
    assert problems == []
    assert [row.number for row in rows] == [1, 2]
    assert all(row.answers == int(3 * rate) and row.p99_ms >= row.p50_ms > 0 for row in rows)
    assert [len(row.versions) for row in rows] == [2, 2]
    assert len(said) == 3
    facts = soak.line(rate, rows, problems)
    assert (facts["failures"], facts["swaps"], facts["minutes"]) == (0, 2, 2)
    soak.picture(tmp_path / "soak.png", rows)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_a_swap_or_an_answer_that_fails_is_a_failure(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "PEAK_S", 0.1)
    monkeypatch.setattr(soak, "memory", lambda url: {})

    def swap() -> None:
        raise ConnectionError("it does not swap")

    rate, rows, problems = soak.soak(f"http://127.0.0.1:{free_port}", IMAGE, 1, swap, lambda line: None, minute_s=0.1)
    assert rows[0].answers == 0
    assert rows[0].failures == int(0.1 * rate) > 0
    assert "it does not swap" in problems[0]
    assert "refused" in problems[1]
    assert soak.line(rate, rows, problems)["failures"] == len(problems)


def test_the_end_is_measured_against_the_beginning_but_for_the_first_minute() -> None:
    rows = [Minute(k + 1, 100, 0, 1.0, 500.0 if not k else 10.0 + k, 2**20 * (100 + k), (1, 2)) for k in range(10)]
    facts = soak.line(5, rows, [])
    assert facts["p99_ratio"] == pytest.approx((18.5) / (11.5), abs=0.001)
    assert facts["memory_ratio"] == pytest.approx(108.5 / 101.5, abs=0.001)
