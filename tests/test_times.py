"""Times as people write them."""

import pytest

from lifelist.exporter.errors import BadInput
from lifelist.monitoring import times

NOON = times.unix("2026-11-28T12:00:00.000Z")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("90m", "2026-11-28T10:30:00.000Z"),
        ("24h", "2026-11-27T12:00:00.000Z"),
        ("7d", "2026-11-21T12:00:00.000Z"),
        ("2026-11-28", "2026-11-28T00:00:00.000Z"),
        ("2026-11-28T12:00:00+02:00", "2026-11-28T10:00:00.000Z"),
        ("0001-01-01", "0001-01-01T00:00:00.000Z"),
    ],
)
def test_a_moment_is_a_time_or_so_long_ago(given: str, found: str) -> None:
    assert times.text(times.moment(given, NOON)) == found


@pytest.mark.parametrize(
    "given", ["", "7w", "-1d", "noon", "999999d", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59-12:00"]
)
def test_what_is_none_is_refused_as_is_what_no_calendar_has(given: str) -> None:
    with pytest.raises(BadInput, match="a time is RFC 3339"):
        times.moment(given, NOON)
