"""Who may call which route: one table, and the layer around both applications that holds to it."""

import functools
import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from starlette.requests import Request
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from lifelist.exporter.errors import Forbidden, LifelistError
from lifelist.serving.errors import as_json
from lifelist.serving.keys import PROBE, ROLES, Guard, Role
from lifelist.serving.options import ServingOptions
from lifelist.serving.rate import Buckets

ANYONE = "anyone"
CALLER = "lifelist.caller"  # in a scope: the name of the key, or ANYONE

# fmt: off
ACCESS = {  # route → the roles that may call it; `operate` may call every one, and alone what is not in the table
    "GET /v1/health/live":                    ANYONE,  # who watches a server needs no key of it
    "GET /v1/health/ready":                   ANYONE,
    "GET /docs":                              ANYONE,  # a browser sends no key for a page; nothing in it is secret
    "GET /docs/{name}":                       ANYONE,
    "GET /openapi.json":                      ANYONE,
    "GET /dashboard":                         ANYONE,  # the page alone; what it shows it asks for with a key
    "GET /dashboard/{name}":                  ANYONE,
    "GET /v1/caller":                         ANYONE,  # says what a key may do; without one, nothing
    "POST /v1/classify":                      "classify",
    "POST /v2/models/{model}/infer":          "classify",
    "POST /v2/models/{model}/versions/{version}/infer": "classify",
    "GET /v2":                                ANYONE,
    "GET /v2/health/live":                    ANYONE,
    "GET /v2/health/ready":                   ANYONE,
    "GET /v2/models/stats":                   "read",
    "GET /v2/models/{model}":                 "classify read",
    "GET /v2/models/{model}/config":          "classify read",
    "GET /v2/models/{model}/ready":           "classify read",
    "GET /v2/models/{model}/stats":           "read",
    "GET /v2/models/{model}/versions/{version}":        "classify read",
    "GET /v2/models/{model}/versions/{version}/config": "classify read",
    "GET /v2/models/{model}/versions/{version}/ready":  "classify read",
    "GET /v2/models/{model}/versions/{version}/stats":  "read",
    "POST /v2/repository/index":              "read",
    "POST /v2/repository/models/{name:path}/load":   "operate",
    "POST /v2/repository/models/{name:path}/unload": "operate",
    "POST /v1/feedback":                      "feedback",
    "GET /v1/classes":                        "classify feedback read",
    "GET /v1/classes/{class_id}":             "read",
    "PATCH /v1/classes/{class_id}":           "operate",
    "GET /v1/versions":                       "read",
    "GET /v1/versions/{version}":             "read",
    "GET /v1/versions/{version}/exemplars":   "read",
    "GET /v1/versions/{version}/exemplars/{class_id}":  "read",
    "GET /v1/increments":                     "read",
    "GET /v1/increments/{increment}":         "read",
    "GET /v1/increments/{increment}/events":  "read",
    "GET /v1/quality":                        "read",
    "GET /v1/quality/curve":                  "read",
    "GET /v1/quality/confusions":             "read",
    "GET /v1/quality/bias":                   "read",
    "GET /v1/drift":                          "read",
    "GET /v1/alarms":                         "read",
    "GET /v1/notices":                        "read",
    "GET /v1/triggers":                       "read",
    "GET /metrics":                           "read",
    "POST /v1/examples":                      "operate",
    "POST /v1/increments":                    "operate",
    "POST /v1/increments/{increment}:cancel": "operate",
    "POST /v1/versions/{version}:promote":    "operate",
    "POST /v1/rollback":                      "operate",
    "GET /v1/review":                         "operate",  # images of users: not for whoever may read figures
    "GET /v1/review/{prediction_id}/image":   "operate",
    "POST /v1/review/{prediction_id}":        "operate",
    "GET /v1/webhooks":                       "operate",
    "POST /v1/webhooks:test":                 "operate",
}
# fmt: on

Rule = tuple[Role, ...] | None  # None: anyone


class Door:
    """Who is let in, and how often: `rate` times a second at most for each caller (0: as often as they like).

    One for each process, so that calls over HTTP and gRPC count together.

    names: what the server may be called by whoever needs no key; None: anything. Addresses may always be used.
    """

    def __init__(self, guard: Guard, rate: float, names: frozenset[str] | None = None) -> None:
        self.guard, self.rate = guard, rate
        self.buckets = Buckets(rate, holds=max(1, rate))
        self.is_own = functools.lru_cache(64)(functools.partial(_is_one_of, names))

    def caller(self, headers: Iterable[tuple[bytes, bytes]], roles: Sequence[Role]) -> str:
        """Who calls: the name of the key, or ANYONE where none is needed. BadKey or Forbidden if it may not."""
        key = self.guard.check(presented(headers), roles)
        return key.name if key else ANYONE

    def check_host(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Forbidden if the server is called by a name that is not its own.

        A page may have its own name lead to loopback once it is loaded (DNS rebinding): for the browser what it asks
        for is then of the page's own site, and only the name tells. Nothing but browsers is misled, and over HTTP/2
        without TLS, as gRPC is here, they do not speak.
        """
        for name, value in headers:
            if name == b"host" and not self.is_own(value):
                raise Forbidden(
                    f"the server is not called {value[:80].decode('latin-1')!r}; call it localhost, name that in "
                    "serving.hosts, or present an API key (lifelist keys add)"
                )

    def count(self, caller: str) -> None:
        """One more request of this caller. TooOften if that is too many; probes are few, and always let in."""
        if caller != PROBE:
            self.buckets.take(caller, 1, f"{self.rate:g} requests a second")


class Guarded:
    """An ASGI application that only those reach whom the door lets in.

    Others get 401, 403 or 429 before a byte of a body is read. Who called stands in the scope, as `CALLER`.
    """

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (roles := rule(scope["method"], scope["path"])) is not None:
            try:
                scope[CALLER] = self.door.caller(scope["headers"], roles)
                if scope[CALLER] == ANYONE:
                    self.door.check_host(scope["headers"])
                self.door.count(scope[CALLER])
                if roles == ("operate",) and scope["method"] != "GET" and _of_another_site(scope["headers"]):
                    raise Forbidden(
                        "a page of another site may not ask for this through its visitor's browser; use a page of "
                        "this server's"
                    )
            except LifelistError as error:
                await as_json(Request(scope), error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def names(options: ServingOptions) -> frozenset[str] | None:
    """What the server may be called without a key: names of loopback, and those that the settings add; None: anything,
    since everybody may do everything.
    """
    return None if options.allow_anonymous else frozenset(map(str.lower, ("localhost", options.host, *options.hosts)))


def _is_one_of(names: frozenset[str] | None, host: bytes) -> bool:
    """Whether a Host header, with or without a port, is an address or one of these names."""
    if names is None:
        return True
    found = re.fullmatch(r"\[(.*)\](?::\d*)?|([^:]*)(?::\d*)?", host.decode("latin-1").lower())
    name = (found[1] or found[2]) if found else ""
    try:
        ipaddress.ip_address(name)  # no page can have a number lead elsewhere
    except ValueError:
        return name in names
    return True


def _of_another_site(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser asks for the sake of a page of another site, which on loopback needs no key to do harm.

    Browsers say so themselves, and let no page say otherwise (Fetch Metadata, W3C).
    """
    return any(name == b"sec-fetch-site" and value in (b"cross-site", b"same-site") for name, value in headers)


def rule(method: str, path: str) -> Rule:
    """Who may call: one of these roles, or None for anyone."""
    method = "GET" if method == "HEAD" else method
    if (method, path) in _exact():
        return _exact()[method, path]
    for known, pattern, roles in _patterns():
        if method == known and pattern.match(path):
            return roles
    return ("operate",)


def presented(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key that came with a request. A header that holds no key of ours, Basic say, counts as none."""
    found = {name: value for name, value in headers if name in (b"authorization", b"x-api-key")}
    scheme, _, bearer = found.get(b"authorization", b"").partition(b" ")
    key = bearer.strip() if scheme.lower() == b"bearer" else found.get(b"x-api-key", b"")
    return key.decode("latin-1") or None


def roles_of(text: str) -> Rule:
    """What a row of a table says."""
    return None if text == ANYONE else tuple(role for role in ROLES if role in text.split())


def _rows(*, varying: bool) -> Iterator[tuple[str, str, Rule]]:
    """The table's rows (method, path, roles): those of paths with a part that varies, or those of the others."""
    for route, text in ACCESS.items():
        method, path = route.split(" ")
        if ("{" in path) == varying:
            yield method, path, roles_of(text)


@functools.cache
def _exact() -> dict[tuple[str, str], Rule]:
    return {(method, path): roles for method, path, roles in _rows(varying=False)}


@functools.cache
def _patterns() -> list[tuple[str, "re.Pattern[str]", Rule]]:
    """As Starlette itself matches them."""
    return [(method, compile_path(path)[0], roles) for method, path, roles in _rows(varying=True)]
