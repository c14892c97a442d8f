"""Everything that can go wrong, as one tree. The core knows no HTTP; serving/errors.py maps these to statuses.

LifelistError
├── BadInput            what a caller sent cannot be used; the message says what would be right
│   ├── BadImage        not an image we read, or one we refuse to decode
│   ├── BadSetting      an option, or a value of one, that does not exist
│   ├── TooLarge        over a declared limit
│   ├── TooSlow         a body that did not arrive in time
│   └── WrongType       a content type that we do not read
├── BadKey              no API key, or one that is not known here
├── Forbidden           an API key that is not for this
├── Missing             a version, class, increment or prediction that does not exist
├── Conflict            it cannot be done in the state things are in
│   ├── Moved           a reference was not what the caller expected (compare-and-swap lost)
│   └── NotPrepared     a version asked to answer was not loaded here
├── Unavailable         not now; try again
│   ├── Overloaded      more work is queued than the limit allows
│   │   └── TooOften    one caller wants more than its share
│   └── TooLate         the time that the client gave has passed
├── Corrupt             stored bytes are not what the manifest says
│   └── BadManifest     a manifest that is not one
├── Unsupported         a part of a protocol that we do not have
├── Refused             a verdict: a candidate failed a declared check
├── Cancelled           somebody asked for the end of what is being done
└── Failed              an increment cannot go on
"""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 8  # of a list in a message, which may have a million


def few(values: Sequence[Any]) -> str:
    """A list as a message shows it: the first of it, and how many more there are."""
    left = len(values) - SHOWN
    return f"{list(values[:SHOWN])}{f' and {left:,} more' if left > 0 else ''}"


class LifelistError(Exception):
    """The base of every error that this project raises on purpose."""


class BadInput(LifelistError):
    """What a caller sent cannot be used; the message says what would be right."""


class BadImage(BadInput):
    """Not an image that we read, or one that we refuse to decode."""


class BadSetting(BadInput):
    """An option, or a value of one, that does not exist."""


class TooLarge(BadInput):
    """Over a declared limit."""


class TooSlow(BadInput):
    """A body that did not arrive within the time it is given."""


class WrongType(BadInput):
    """A content type that we do not read; the message names those we do."""


class BadKey(LifelistError):
    """No API key, or one that is not known here."""


class Forbidden(LifelistError):
    """An API key that is not for this."""


class Missing(LifelistError):
    """A version, class, increment or prediction that does not exist."""


class Conflict(LifelistError):
    """It cannot be done in the state that things are in."""


class Moved(Conflict):
    """A reference was not what the caller expected: somebody moved it first."""


class NotPrepared(Conflict):
    """A version was asked to answer that is not loaded here."""


class Unavailable(LifelistError):
    """Not now; the same request may succeed later."""


class Overloaded(Unavailable):
    """More work is queued than the limit allows."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooLate(Unavailable):
    """The time that the client gave for an answer has passed."""


class Unsupported(LifelistError):
    """A part of a protocol that this server does not have."""


class TooOften(Overloaded):
    """One caller wants more than its share; another may be served."""


class Corrupt(LifelistError):
    """Stored bytes are not what the manifest says."""


class BadManifest(Corrupt):
    """A manifest that is not one."""


class Refused(LifelistError):
    """A verdict: a candidate failed a declared check. `facts` are the figures that it rests on."""

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = dict(facts or {})


class Cancelled(LifelistError):
    """Somebody asked for the end of what is being done."""


class Failed(LifelistError):
    """An increment cannot go on; the message says why."""
