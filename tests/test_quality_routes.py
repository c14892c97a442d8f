"""GET /v1/quality of single classes, whose figures are by the hour: none that began in the time is left out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from parts_operator import Server, serving

from lifelist.monitoring import figures, times
from lifelist.monitoring.figures import HOUR, Figure

NOON = 1_800_000_000.0 - 1_800_000_000 % HOUR


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Of class 1, ten gate images in each of three hours, of which one, two and three were answered right."""
    with serving(tmp_path) as made:
        rows = [Figure(times.text(NOON + k * HOUR), HOUR, 1, "probe", "class", 1, 10, 10, k + 1, 10) for k in range(3)]
        with made.workshop.store.writing() as connection:
            figures.add(connection, rows)
        yield made


def asked(server: Server, path: str, begin: float, end: float) -> dict[str, Any]:
    query = {"group": "class", "source": "probe", "since": times.text(begin), "until": times.text(end)}
    answer = httpx.get(f"{server.url}{path}", params=query, trust_env=False)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize(
    ("begin", "end", "hours"),  # minutes after noon; the hours that are counted
    [(20, 50, (0, 1)), (70, 80, (1, 2)), (20, 70, (0, 1)), (20, 125, (0, 2)), (60, 120, (1, 2)), (0, 180, (0, 3))],
)
def test_a_time_of_classes_is_one_of_whole_hours(server: Server, begin: int, end: int, hours: tuple[int, int]) -> None:
    first, last = hours
    found = asked(server, "/v1/quality", NOON + 60 * begin, NOON + 60 * end)
    assert (found["since"], found["until"]) == tuple(times.text(NOON + k * HOUR) for k in hours)
    (row,) = found["figures"]
    assert row["class_id"] == 1
    of_hours = [k + 1 for k in range(first, last)]
    assert row["ratio"] == pytest.approx(sum(of_hours) / (10 * len(of_hours)))
    points = asked(server, "/v1/quality/curve", NOON + 60 * begin, NOON + 60 * end)["points"]
    assert [one["ratio"] for one in points] == [k / 10 for k in of_hours]


def test_an_hour_is_not_in_two_times_of_which_one_ends_where_the_other_begins(server: Server) -> None:
    """As the page asks for the trend of classes."""
    before = asked(server, "/v1/quality", NOON + 600, NOON + HOUR + 600)
    after = asked(server, "/v1/quality", NOON + HOUR + 600, NOON + 2 * HOUR + 600)
    assert [found["figures"][0]["ratio"] for found in (before, after)] == [0.1, 0.2]
