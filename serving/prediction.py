"""Prediction ids that carry the prediction: which version answered what, and when. So the request path writes nothing.

An id is base64url of: format (1 byte), version (4), class id (8), answer (1), milliseconds since 1970 (6), a number to
tell it from others of that moment (4), of how many answers it stands for in the audit (2, a float16), and 16 bytes of
BLAKE2b over all of it, keyed. 42 bytes, 56 characters; only who has the key can make one or change one. Format 2, from
before there were audits, had 6 bytes of number, and is still read.

Nothing here gives up Python's lock, as os.urandom and HMAC in OpenSSL do: with the model's threads waiting for it, to
have it back takes longer than all the rest.
"""

import base64
import binascii
import hashlib
import hmac
import itertools
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from lifelist.exporter.errors import BadInput
from lifelist.exporter.manifest import AnswerKind

FORMAT = 3
KINDS: tuple[AnswerKind, ...] = ("linear", "nearest_mean")

_FIELDS = struct.Struct(">BIqBHIIe")  # format, version, class id, answer, time (high, low), number, weight
_SEAL = 16  # bytes
_numbers = itertools.count(int.from_bytes(os.urandom(4)))  # each process begins elsewhere


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one image was taken for."""

    version: int
    class_id: int
    answer: AnswerKind
    at: float  # Unix time in seconds, to the millisecond
    weight: float = 0.0  # of how many answers it stands for, if it was chosen for the audit: 1 / rate; else 0


def seal(key: bytes, prediction: Prediction) -> str:
    """The id of a prediction. Two predictions of the same never have the same id."""
    at = round(prediction.at * 1000)
    fields = _FIELDS.pack(
        FORMAT,
        prediction.version,
        prediction.class_id,
        KINDS.index(prediction.answer),
        *divmod(at, 2**32),
        next(_numbers) % 2**32,
        prediction.weight,
    )
    return base64.urlsafe_b64encode(fields + _mac(key, fields)).decode()


def open(key: bytes, text: str) -> Prediction:
    """The prediction that an id stands for. BadInput if it is not one that was sealed with this key, unaltered."""
    try:
        data = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise BadInput(_refusal(text)) from None
    fields, mac = data[: _FIELDS.size], data[_FIELDS.size :]
    genuine = len(fields) == _FIELDS.size and hmac.compare_digest(mac, _mac(key, fields))
    if not genuine or base64.urlsafe_b64encode(data).decode() != text:  # one prediction, one spelling
        raise BadInput(_refusal(text))
    kind, version, class_id, answer, high, low, _, weight = _FIELDS.unpack(fields)
    if kind not in (2, FORMAT) or answer >= len(KINDS):
        raise BadInput(f"prediction_id {text!r} is of format {kind}; this server reads formats 2 and {FORMAT}")
    return Prediction(version, class_id, KINDS[answer], (high * 2**32 + low) / 1000, weight if kind == FORMAT else 0.0)


def key_in(path: Path) -> bytes:
    """The key in a file: 32 random bytes, made if there is none yet, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # if two make one at once, the first one's holds
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    key = path.read_bytes()
    if len(key) != 32:
        raise BadInput(f"{path} should hold a key of 32 bytes, not {len(key)}; remove it, and a new one is made")
    return key


def _mac(key: bytes, fields: bytes) -> bytes:
    return hashlib.blake2b(fields, digest_size=_SEAL, key=key).digest()


def _refusal(text: str) -> str:
    return f"prediction_id {text[:80]!r} was not given out by this server, or was altered; send it as it was received"
