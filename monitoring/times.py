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
    if given[:-1].isdecimal() and given[-1:] in UNITS and len(given) < 8:
        return at - int(given[:-1]) * UNITS[given[-1]]
    try:
        found = datetime.fromisoformat(given)
    except ValueError:
        raise BadInput(
            f"a time is RFC 3339 (2026-11-28T12:00:00Z), or so long ago: 90m, 24h, 7d; not {given[:40]!r}"
        ) from None
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
