"""What a client raises. Each is also the error that the server had, so that either name catches it.

RequestFailed (LifelistError)   status, request_id
├── BadInput                    what was sent cannot be used
│   ├── TooLarge                over a limit of the server's
│   └── WrongType               a content type that it does not read
├── Denied
│   ├── BadKey                  no API key, or one that the server does not know
│   └── Forbidden               a key that may not do this
├── Missing                     a version, class or increment that does not exist
├── Conflict                    it cannot be done in the state that things are in
├── Unavailable                 not now, even after trying again; or nobody answers
└── Failed                      an error of the server's, or no Lifelist server at all
"""

from lifelist.exporter import errors


class RequestFailed(errors.LifelistError):
    """A request was not answered as it asked. The message is the server's, where it answered."""

    def __init__(self, message: str, status: int | None, request_id: str) -> None:
        super().__init__(message)
        self.status = status  # of HTTP; None: no answer came
        self.request_id = request_id  # by which the server's log knows the request


class BadInput(RequestFailed, errors.BadInput):
    """What was sent cannot be used."""


class TooLarge(BadInput, errors.TooLarge):
    """Over a limit of the server's."""


class WrongType(BadInput, errors.WrongType):
    """A content type that the server does not read."""


class Denied(RequestFailed):
    """No API key, or one that may not do this."""


class BadKey(Denied, errors.BadKey):
    """No API key, or one that the server does not know."""


class Forbidden(Denied, errors.Forbidden):
    """A key that may not do this."""


class Missing(RequestFailed, errors.Missing):
    """A version, class or increment that does not exist."""


class Conflict(RequestFailed, errors.Conflict):
    """It cannot be done in the state that things are in."""


class Unavailable(RequestFailed, errors.Unavailable):
    """Not now, or nobody answers; the same request may succeed later."""


class Failed(RequestFailed, errors.Failed):
    """An error of the server's, or no Lifelist server at all."""


OF_STATUS: dict[int, type[RequestFailed]] = {
    401: BadKey,
    403: Forbidden,
    404: Missing,
    409: Conflict,
    413: TooLarge,
    415: WrongType,
    429: Unavailable,
    503: Unavailable,
}


def of_status(status: int) -> type[RequestFailed]:
    """What an answer with this status is raised as."""
    return OF_STATUS.get(status, BadInput if 400 <= status < 500 else Failed)
