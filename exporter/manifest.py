"""What a version says of itself: typed, validated, immutable. Standard library only: a bare GPU box reads it."""

import dataclasses
import hashlib
import json
import re
import types
import typing
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from lifelist.exporter.errors import BadManifest, Corrupt

SCHEMA_VERSION = 1
QUANTILES = 101
SURE_POINTS = 51
_UNSEEN = ("Cc", "Cs")  # Unicode's categories of control characters and of halves of a pair

ClassState = Literal["trained", "enrolled"]  # has a row in the last layer | has a class mean only
AnswerKind = Literal["linear", "nearest_mean"]
# has a model of its own | shares its parent's, and adds class means | shares it, and says something else of its classes
VersionKind = Literal["increment", "enrolment", "change"]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a version: its name there, and the blob that holds it."""

    name: str
    size: int  # bytes
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.name, re.ASCII):
            raise BadManifest(
                f"a file is named {self.name!r}; letters, digits, '.', '_' and '-' are allowed, no folders"
            )
        if self.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise BadManifest(
                f"file {self.name!r} has size {self.size} and sha256 {self.sha256!r}; "
                "a size is at least 0, and a sha256 has 64 lower-case hexadecimal digits"
            )

    @classmethod
    def of(cls, name: str, data: bytes) -> Self:
        """The entry of a file with these bytes."""
        return cls(name, len(data), hashlib.sha256(data).hexdigest())

    def verified(self, data: bytes) -> bytes:
        """The same bytes, or Corrupt. Every blob passes here before anything deserialises it."""
        found = hashlib.sha256(data).hexdigest()
        if len(data) != self.size or found != self.sha256:
            raise Corrupt(
                f"{self.name}: {len(data)} bytes, sha256 {found}; the manifest says {self.size} bytes, {self.sha256}"
            )
        return data


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """A class that a version knows. `id` is given once, in order of arrival, and never reused; `name` may change."""

    id: int
    name: str
    state: ClassState
    increment: int  # 0: the base; k: the k-th increment that reached training; enrolled classes carry the next one
    aliases: tuple[str, ...] = ()  # other names that mean this class
    retired: bool = False  # it is never answered
    merged_into: int | None = None  # the class that is answered in its place

    def __post_init__(self) -> None:
        if self.state not in typing.get_args(ClassState):
            raise BadManifest(f"class {self.id} has state {self.state!r}; allowed: {typing.get_args(ClassState)}")
        if self.id < 0 or self.increment < 0:
            raise BadManifest(f"class {self.name!r} has id {self.id} and increment {self.increment}; both count from 0")
        if self.retired and self.merged_into is not None:
            raise BadManifest(
                f"class {self.id} is retired, and merged into class {self.merged_into}; it is one or none"
            )
        for name in (self.name, *self.aliases):
            tidy = unicodedata.normalize("NFC", name.strip())
            if not 1 <= len(name) <= 100 or name != tidy or any(unicodedata.category(c) in _UNSEEN for c in tidy):
                raise BadManifest(
                    f"class {self.id} is named {name!r}; a name has 1 to 100 characters, in Unicode's form NFC, "
                    "without control characters, and no space at either end"
                )

    @property
    def active(self) -> bool:
        """Whether it is answered as itself. If not, the next increment goes on without its row."""
        return not self.retired and self.merged_into is None


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

    def __post_init__(self) -> None:
        if not 0 <= self.first_row < self.last_row:
            raise BadManifest(f"a bias correction needs 0 ≤ first_row < last_row; got {self}")


@dataclass(frozen=True, slots=True)
class Parity:
    """How well the exported graph agrees with the network it came from, on real images."""

    images: int
    max_abs_logit_difference: float
    top1_agreement: float  # share, 0 … 1
    max_abs_embedding_difference: float | None = None


@dataclass(frozen=True, slots=True)
class Int8:
    """How well the graph in 8 bits answers beside the one in fp32, on gate images; and so whether it is used."""

    used: bool
    images: int
    loss: float  # bound: the share of all images that it may lose
    class_loss: float  # bound: of those of one class
    answers: Mapping[str, Any]  # by kind of answer: {"fp32": accuracy, "int8": …, "worst_class": name, …}
    message: str


@dataclass(frozen=True, slots=True)
class KnownScores:
    """How known held-out images look, by kind of answer: quantiles, evenly spaced, the least first (unknowns.py)."""

    images: int
    linear: tuple[float, ...]  # of the largest logit
    nearest_mean: tuple[float, ...]  # of the cosine similarity to the nearest mean

    def __post_init__(self) -> None:
        for name in ("linear", "nearest_mean"):
            found = getattr(self, name)
            if len(found) != QUANTILES or list(found) != sorted(found):
                raise BadManifest(f"known scores are {QUANTILES} quantiles that rise; {name} has {len(found)}: {found}")


@dataclass(frozen=True, slots=True)
class Confidence:
    """How probable an answer is that looks so sure, as held-out images show (confidence.py)."""

    images: int
    scale: float  # of what speaks for the classes, before its softmax
    sure: tuple[float, ...]  # probabilities of the best class that were seen, evenly spread, the least first
    right: tuple[float, ...]  # at each of them, the share of answers that are right; it rises

    def __post_init__(self) -> None:
        for name in ("sure", "right"):
            found = getattr(self, name)
            if len(found) != SURE_POINTS or list(found) != sorted(found) or not 0 <= found[0] <= found[-1] <= 1:
                raise BadManifest(f"a confidence has {SURE_POINTS} shares that rise; {name} has {len(found)}: {found}")


@dataclass(frozen=True, slots=True)
class Confidences:
    """By kind of answer; None: too few held-out images."""

    linear: Confidence | None
    nearest_mean: Confidence | None


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
    kind: VersionKind
    parent: int | None
    method: str
    network: str
    embedding_dim: int
    default_answer: AnswerKind
    preprocess: Preprocess
    classes: tuple[ClassEntry, ...]
    former: tuple[ClassEntry, ...] = ()  # retired or merged, and without a row and a mean by now
    files: tuple[FileEntry, ...] = ()
    bias: BiasCorrection | None = None
    parity: Parity | None = None
    int8: Int8 | None = None
    known_scores: KnownScores | None = None  # None: made before there were any, or with too few held-out images
    confidences: Confidences | None = None  # None: the same
    gate: tuple[Check, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # hyper-parameters, seeds included
    results: Mapping[str, Any] = field(default_factory=dict)  # held-out data: {"linear": {…}, "nearest_mean": {…}}
    exemplars_sha256: str | None = None
    software: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        who = f"version {self.version}"
        if self.schema != SCHEMA_VERSION:
            raise BadManifest(f"{who} has manifest schema {self.schema}; this program reads {SCHEMA_VERSION}")
        if self.version < 0 or self.embedding_dim < 1:
            raise BadManifest(
                f"{who} has {self.embedding_dim} embedding dimensions; both numbers count up, from 0 and 1"
            )
        if not self.classes:
            raise BadManifest(f"{who} names no class")
        names = [name for c in self.entries for name in (c.name, *c.aliases)]
        for what, values in (("id", [c.id for c in self.entries]), ("name", names)):
            if len(set(values)) != len(values):
                raise BadManifest(f"{who} lists a class {what} twice: {values}")
        answered = {c.id for c in self.classes if c.active}
        if astray := [c.name for c in self.entries if c.merged_into is not None and c.merged_into not in answered]:
            raise BadManifest(f"{who} merges {astray} into classes that are not answered; those that are: {answered}")
        if present := [c.name for c in self.former if c.active]:
            raise BadManifest(f"{who} lists {present} as former classes; those are retired or merged")
        if self.trained and not any(c.active for c in self.trained):
            raise BadManifest(f"{who}: none of its trained classes is left to answer; one must be")
        if len({f.name for f in self.files}) != len(self.files):
            raise BadManifest(f"{who} lists a file twice: {[f.name for f in self.files]}")
        states = [c.state for c in self.classes]
        if states != sorted(states, key=("trained", "enrolled").index):
            raise BadManifest(f"{who}: trained classes come first, then enrolled; got {states}")
        for what, value, kind in (
            ("default_answer", self.default_answer, AnswerKind),
            ("kind", self.kind, VersionKind),
        ):
            if value not in typing.get_args(kind):
                raise BadManifest(f"{who} has {what} {value!r}; allowed: {typing.get_args(kind)}")
        if self.bias and self.bias.last_row > len(self.trained):
            raise BadManifest(f"{who} has {len(self.trained)} rows in its last layer, and corrects {self.bias}")

    @property
    def trained(self) -> tuple[ClassEntry, ...]:
        """The classes with a row in the last layer: row k answers trained[k]."""
        return tuple(c for c in self.classes if c.state == "trained")

    @property
    def entries(self) -> tuple[ClassEntry, ...]:
        """All classes of which it says something, the former ones last."""
        return (*self.classes, *self.former)

    @property
    def answerable(self) -> tuple[ClassEntry, ...]:
        """The classes that it can answer."""
        return tuple(c for c in self.classes if c.active)

    @property
    def staying(self) -> tuple[ClassEntry, ...]:
        """The classes whose rows the next increment goes on with."""
        return tuple(c for c in self.trained if c.active)

    @property
    def instead(self) -> dict[int, int | None]:
        """What is answered in place of a class: the one that it is merged into, or None where it is retired.

        `instead.get(k, k)` is what class k is answered, and learned, as; of most versions it is empty.
        """
        return {c.id: c.merged_into for c in self.entries if not c.active}

    @property
    def newest(self) -> frozenset[int]:
        """Ids of the classes of the latest increment that it can answer; empty when all came with the base."""
        latest = max(c.increment for c in self.classes)
        return frozenset(c.id for c in self.answerable if c.increment == latest) if latest else frozenset()

    @property
    def passed(self) -> bool:
        """Whether every check of the gate passed."""
        return all(check.passed for check in self.gate)

    @property
    def digest(self) -> str:
        """sha256 of everything that the manifest says, in one canonical spelling."""
        return _digest(self._plain())

    def file(self, name: str) -> FileEntry:
        """The entry of a file, or Corrupt if the version has none of that name."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise Corrupt(f"version {self.version} has no file {name!r}; it has {[f.name for f in self.files]}")

    def as_json(self) -> str:
        """The manifest as it is stored: sorted, indented, with its own digest; ends with a newline."""
        value = self._plain()
        return json.dumps(value | {"digest": _digest(value)}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def _plain(self) -> dict[str, Any]:
        """As JSON will give it back, types and all; BadManifest if what is written could not be read again."""
        return dataclasses.asdict(_typed(type(self), _jsoned(dataclasses.asdict(self)), "manifest"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The manifest in `text`; BadManifest names the field that is wrong, Corrupt says that it was altered."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:  # the second: nested a thousand deep
            raise BadManifest(f"the manifest is not JSON: {error}") from error
        if not isinstance(found, dict) or "digest" not in found:
            raise BadManifest(
                "the manifest should be an object with its own 'digest'; was it cut off, or made by hand?"
            )
        stated = found.pop("digest")
        if (digest := _digest(found)) != stated:
            raise Corrupt(
                f"the manifest's content has sha256 {digest}, and it says {stated!r} of itself: it was altered"
            )
        value = _typed(cls, found, "manifest")
        assert isinstance(value, cls)
        return value


def _digest(value: Mapping[str, Any]) -> str:
    """sha256 of a JSON value, without regard to layout and order of keys."""
    return hashlib.sha256(json.dumps(_jsoned(value), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _jsoned(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as JSON gives it back: lists for tuples, texts for keys. BadManifest if it has what JSON lacks."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadManifest(f"a manifest holds JSON values only, and no NaN or infinity: {error}") from error
    return found


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gave it, as the declared type; BadManifest names the place where it is not."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object(kind, value, where)
    if origin is types.UnionType:
        return None if value is None else _typed(next(a for a in arguments if a is not types.NoneType), value, where)
    if origin is tuple:
        fixed = None if arguments[-1] is Ellipsis else len(arguments)
        if not isinstance(value, list) or fixed not in (None, len(value)):
            raise BadManifest(f"{where} should be a list{f' of {fixed}' if fixed else ''}, not {value!r}")
        return tuple(_typed(arguments[0], item, f"{where}[{k}]") for k, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise BadManifest(f"{where} should be one of {arguments}, not {value!r}")
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    expected = dict if origin is not None else kind  # what is left with an origin is Mapping[str, …]
    if not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool):
        raise BadManifest(f"{where} should be {expected.__name__}, not {value!r}")
    return value


def _object(kind: type, value: Any, where: str) -> Any:
    """`value` as an instance of the dataclass `kind`."""
    if not isinstance(value, dict):
        raise BadManifest(f"{where} should be an object, not {value!r}")
    declared = {f.name: f for f in dataclasses.fields(kind)}
    required = {n for n, f in declared.items() if f.default is f.default_factory is dataclasses.MISSING}
    unknown, missing = set(value) - set(declared), required - set(value)
    if unknown or missing:
        raise BadManifest(f"{where} has unknown fields {sorted(unknown)} and lacks {sorted(missing)}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _typed(hints[name], item, f"{where}.{name}") for name, item in value.items()})
