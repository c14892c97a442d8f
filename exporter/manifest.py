"""What a version says of itself: typed, validated, immutable. Standard library only, so that a bare GPU box reads it."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from lifelist.exporter.errors import BadManifest, Corrupt

SCHEMA_VERSION = 1

ClassState = Literal["trained", "enrolled"]  # has a row in the last layer | has a class mean only
AnswerKind = Literal["linear", "nearest_mean"]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a version: its name there, and the blob that holds it."""

    name: str
    size: int  # bytes
    sha256: str

    def verified(self, data: bytes) -> bytes:
        """The same bytes, or Corrupt. Every blob passes here before anything deserialises it."""
        if len(data) != self.size or (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            found = hashlib.sha256(data).hexdigest()
            raise Corrupt(f"{self.name}: {len(data)} bytes, sha256 {found}; the manifest says {self.size}, {self.sha256}")
        return data


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """A class that a version can name. `id` is given once, in order of arrival, and never reused; `name` may change."""

    id: int
    name: str
    state: ClassState
    increment: int  # 0: the base; k: the k-th increment that reached training; enrolled classes carry the next one

    def __post_init__(self) -> None:
        if self.state not in typing.get_args(ClassState):
            raise BadManifest(f"class {self.id} has state {self.state!r}; allowed: {typing.get_args(ClassState)}")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """From image file to model input, the same in training's evaluation and in serving (exporter/preprocess.py)."""

    size: int  # the model sees size×size pixels
    resize_to: int  # shorter side after resizing, before the centre crop; equal to `size` for small images
    mean: tuple[float, float, float]  # of RGB in 0…1, inside the graph
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize_to or min(self.std) <= 0:
            raise BadManifest(f"preprocessing needs 1 ≤ size ≤ resize_to and std > 0; got {self}")


@dataclass(frozen=True, slots=True)
class BiasCorrection:
    """BiC's active pair: q_k = alpha·z_k + beta for the rows first_row … last_row-1 (Wu et al. 2019, eq. 4)."""

    alpha: float
    beta: float
    first_row: int
    last_row: int


@dataclass(frozen=True, slots=True)
class Parity:
    """How well the exported graph agrees with the network it came from, on real images."""

    images: int
    max_abs_logit_difference: float
    top1_agreement: float  # share, 0 … 1


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the gate: what was asked, what was found."""

    name: str
    passed: bool
    found: float | None
    limit: float | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A version. `classes` lists the trained ones first, in the order of the last layer's rows; then the enrolled."""

    version: int  # 1, 2, 3 …; 0 for a draft that has no number yet
    created_at: str  # RFC 3339, UTC
    kind: Literal["increment", "enrolment"]
    parent: int | None
    method: str
    network: str
    embedding_dim: int
    default_answer: AnswerKind
    preprocess: Preprocess
    classes: tuple[ClassEntry, ...]
    files: tuple[FileEntry, ...] = ()
    bias: BiasCorrection | None = None
    parity: Parity | None = None
    gate: tuple[Check, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # hyper-parameters, seeds included
    results: Mapping[str, Any] = field(default_factory=dict)  # on held-out data: {"linear": {...}, "nearest_mean": {...}}
    exemplars_sha256: str | None = None
    software: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema != SCHEMA_VERSION:
            raise BadManifest(f"version {self.version} has manifest schema {self.schema}; this program reads {SCHEMA_VERSION}")
        if not self.classes:
            raise BadManifest(f"version {self.version} names no class")
        for what, values in (("id", [c.id for c in self.classes]), ("name", [c.name for c in self.classes])):
            if len(set(values)) != len(values):
                raise BadManifest(f"version {self.version} lists a class {what} twice: {values}")
        if len({f.name for f in self.files}) != len(self.files):
            raise BadManifest(f"version {self.version} lists a file twice: {[f.name for f in self.files]}")
        states = [c.state for c in self.classes]
        if states != sorted(states, key=("trained", "enrolled").index):
            raise BadManifest(f"version {self.version}: trained classes come first, then enrolled; got {states}")
        if self.default_answer not in typing.get_args(AnswerKind):
            raise BadManifest(f"version {self.version} answers by {self.default_answer!r}; allowed: {typing.get_args(AnswerKind)}")

    @property
    def trained(self) -> tuple[ClassEntry, ...]:
        """The classes with a row in the last layer: row k answers trained[k]."""
        return tuple(c for c in self.classes if c.state == "trained")

    @property
    def newest(self) -> frozenset[int]:
        """Ids of the classes of the latest increment; empty when all came with the base."""
        latest = max(c.increment for c in self.classes)
        return frozenset(c.id for c in self.classes if c.increment == latest) if latest else frozenset()

    @property
    def passed(self) -> bool:
        """Whether every check of the gate passed."""
        return all(check.passed for check in self.gate)

    def file(self, name: str) -> FileEntry:
        """The entry of a file, or Corrupt if the version has none of that name."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise Corrupt(f"version {self.version} has no file {name!r}; it has {[f.name for f in self.files]}")

    def as_json(self) -> str:
        """The manifest as it is stored: sorted, indented, ends with a newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The manifest in `text`; BadManifest names the field that is wrong."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise BadManifest(f"not JSON: {error}") from error
        value = _typed(cls, found, "manifest")
        assert isinstance(value, cls)
        return value


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gave it, as the declared type; BadManifest names the place where it is not."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise BadManifest(f"{where} should be an object, not {value!r}")
        hints = typing.get_type_hints(kind)
        declared = {f.name: f for f in dataclasses.fields(kind)}
        required = {n for n, f in declared.items() if f.default is f.default_factory is dataclasses.MISSING}
        if (unknown := set(value) - set(declared)) or (missing := required - set(value)):
            missing = required - set(value)
            raise BadManifest(f"{where} has unknown fields {sorted(unknown)} and lacks {sorted(missing)}")
        return kind(**{name: _typed(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    if origin is types.UnionType or origin is typing.Union:
        if value is None:
            return None
        return _typed(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise BadManifest(f"{where} should be a list{'' if arguments[-1] is Ellipsis else f' of {len(arguments)}'}, not {value!r}")
        return tuple(_typed(arguments[0], item, f"{where}[{k}]") for k, item in enumerate(value))
    if origin is typing.Literal:
        if value not in arguments:
            raise BadManifest(f"{where} should be one of {arguments}, not {value!r}")
        return value
    expected = (dict,) if origin is not None else (int, float) if kind is float else (kind,)
    if not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool):
        raise BadManifest(f"{where} should be {expected[0].__name__}, not {value!r}")
    return float(value) if kind is float else value
