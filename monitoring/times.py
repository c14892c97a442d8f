"""Times as they are stored everywhere: RFC 3339, UTC, milliseconds, so that texts sort as times do."""

from datetime import UTC, datetime

from lifelist.exporter.errors import BadInput


def text(at: float) -> str:
    """A Unix time in seconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now() -> str:
    """This moment."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix(at: str) -> float:
    """The Unix time of a stored text, in seconds."""
    return datetime.fromisoformat(at).timestamp()


UNITS = {"m": 60, "h": 3600, "d": 86_400}


def moment(given: str, at: float) -> float:
    """A Unix time as people write it: an RFC 3339 time, or how long before `at`: 90m, 24h, 7d. BadInput if neither."""
    try:
        if given[:-1].isdecimal() and given[-1:] in UNITS and len(given) < 8:
            found = at - int(given[:-1]) * UNITS[given[-1]]
        else:
            parsed = datetime.fromisoformat(given)
            found = parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp()
        text(found)  # ValueError where no calendar has it: before the year 1, after 9999
    except (ValueError, OverflowError):
        raise BadInput(
            f"a time is RFC 3339 (2026-11-28T12:00:00Z), or so long ago: 90m, 24h, 7d; not {given[:40]!r}"
        ) from None
    return found
