"""API keys: made once, kept as hashes in a file, read again by every process when the file changes.

A key is 256 random bits, so its plain SHA-256 can be kept. A slow hash with salt, as passwords need one, makes guessing
dear; here there is nothing to guess, and each request would pay for it.
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from lifelist.exporter.errors import BadInput, BadKey, Conflict, Corrupt, Forbidden, Missing, Unavailable

Role = Literal["read", "classify", "feedback", "operate"]

ROLES: tuple[Role, ...] = get_args(Role)
PREFIX, OWN = (
    "lifelist_",
    "lifelist_own_",
)  # so that people, and programs that search for leaked secrets, know what it is
PROBE = "\0probe"  # who asks with the server's own key; no key that is made can be called so
LOOK_S = 1.0  # between looks at the file
HOW = "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key: enough to know it again, and nothing to make it from."""

    name: str
    roles: tuple[Role, ...]
    sha256: str
    created_at: str  # ISO 8601, UTC
    expires_at: str | None = None

    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and datetime.now(UTC) >= datetime.fromisoformat(self.expires_at)

    def may(self, roles: Sequence[Role]) -> bool:
        """Whether it has one of the roles; `operate` includes every other."""
        return "operate" in self.roles or any(role in self.roles for role in roles)


def read(file: Path) -> tuple[Key, ...]:
    """The keys in a file, none if there is no file. Corrupt if it is not a file of keys."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["keys"]
        found = tuple(Key(**{**row, "roles": tuple(row["roles"])}) for row in rows)
        for key in found:
            key.has_expired()  # its date can be read
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Corrupt(
            f"{file} cannot be read as a file of API keys ({error!r}); restore it, or move it away"
        ) from error
    return found


def add(file: Path, name: str, roles: Sequence[Role], days: float | None = None) -> str:
    """Make a key, which holds for `days` if they are given; the key itself, which is kept nowhere.

    BadInput if it cannot be called so, Conflict if another is.
    """
    if not 1 <= len(name) <= 100 or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise BadInput(f"a key's name has 1 to 100 characters, and no control characters; not {name[:120]!r}")
    if unknown := [role for role in roles if role not in ROLES]:
        raise BadInput(f"there is no role {unknown[0]!r}; there are {', '.join(ROLES)}")
    if not roles:
        raise BadInput(f"a key needs a role: {', '.join(ROLES)}")
    text = PREFIX + secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    expires_at = None if days is None else (now + timedelta(days=days)).isoformat(timespec="seconds")
    made = Key(name, tuple(dict.fromkeys(roles)), _sha256(text), now.isoformat(timespec="seconds"), expires_at)
    with _alone(file):
        known = read(file)
        if name in {key.name for key in known}:
            raise Conflict(f"there is a key {name!r} already; remove it first: lifelist keys remove {name}")
        _write(file, (*known, made))
    return text


def remove(file: Path, name: str) -> None:
    """Whoever has this key is refused from the next look at the file on. Missing if there is none of that name."""
    with _alone(file):
        known = read(file)
        left = tuple(key for key in known if key.name != name)
        if len(left) == len(known):
            raise Missing(f"there is no key {name!r}; there are: {', '.join(key.name for key in known) or 'none'}")
        _write(file, left)


def own(secret: bytes) -> str:
    """The key that a server's own probes present; whoever has the secret of its prediction ids can make it."""
    return f"{OWN}{hashlib.blake2b(b'probe', digest_size=32, key=secret).hexdigest()}"


class Guard:
    """Who may call, by the keys of a file as they stand: it is looked at once a second, however many ask.

    anonymous   whether everybody may do everything as long as there is no key
    own         the key of the server itself, by which it may classify; empty: none
    """

    def __init__(self, file: Path, *, anonymous: bool, own: str = "") -> None:
        self.file, self.anonymous = file, anonymous
        self._own = Key(PROBE, ("classify",), _sha256(own), "")
        self._keys: tuple[Key, ...] | None = None  # None: never read yet
        self._seen: tuple[int, ...] | None = None
        self._next_look = 0.0

    def check(self, presented: str | None, roles: Sequence[Role]) -> Key | None:
        """The key that was presented, if it has one of the roles; None where none is needed.

        BadKey without one, or with one that is not known or has expired; Forbidden with one of other roles.
        """
        if presented is not None and presented.startswith(OWN) and self._is_own(presented) and self._own.may(roles):
            return self._own
        known = self._known()
        if not known and self.anonymous:
            return None
        if presented is None:
            raise BadKey(f"this needs an API key; {HOW}. Who runs the server makes one: lifelist keys add NAME")
        digest, found = _sha256(presented), None
        for key in known:  # all of them, each in constant time: how long it takes tells nothing
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            raise BadKey(f"the API key is not known here: it was removed, mistyped, or is of another server; {HOW}")
        if found.has_expired():
            raise BadKey(f"the API key {found.name!r} has expired, at {found.expires_at}; ask for a new one")
        if not found.may(roles):
            raise Forbidden(
                f"the API key {found.name!r} may {', '.join(found.roles)}; this is for keys that may "
                f"{' or '.join(dict.fromkeys((*roles, 'operate')))}"
            )
        return found

    def _is_own(self, presented: str) -> bool:
        return hmac.compare_digest(self._own.sha256, _sha256(presented))

    def _known(self) -> tuple[Key, ...]:
        """The keys. A file that vanishes or breaks changes nothing for who has read it: no fault opens the doors."""
        now = time.monotonic()
        if now >= self._next_look or self._keys is None:
            self._next_look = now + LOOK_S
            try:
                if (stands := _stands(self.file)) != self._seen or self._keys is None:
                    found = read(self.file)
                    if stands is not None or not self._keys:
                        self._keys, self._seen = found, stands
            except (Corrupt, OSError) as error:
                if self._keys is None:  # what it says names a file, which is nobody's business out there
                    log.error("keys.unreadable", extra={"facts": {"file": str(self.file), "reason": str(error)}})
                    raise Unavailable("the API keys cannot be read; the server's log says why") from error
                log.warning("keys.unreadable", extra={"facts": {"file": str(self.file), "reason": str(error)}})
        assert self._keys is not None
        return self._keys


def _stands(file: Path) -> tuple[int, ...] | None:
    """What is different after each change of a file; None if there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """No other process changes the file meanwhile: two keys that are made at once are both kept."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file: Path, keys: Sequence[Key]) -> None:
    """Readable by its owner alone; a reader sees the old file or the new one, whole."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(json.dumps({"keys": [asdict(key) for key in keys]}, indent=2, ensure_ascii=False) + "\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
