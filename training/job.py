"""An increment as a folder: what it is given, and what came of it. The contract between a rollout and training.

job.json                options, classes, heads, bias, mean and std, and the sha256 of the files that belong to it
images.json             N image ids
images.safetensors      labels int64 N (class ids), roles uint8 N, in the same order
pixels.npy              uint8 N×S×S×3, in the same order; may be larger than memory, so it is written in parts, its
                        digest is checked in a pass of its own, and it is mapped
teacher.safetensors     the parent's checkpoint; absent for a base
statistics.safetensors  the parent's (statistics.py), if it has any
epochs/                 one checkpoint for each phase, replaced after every epoch
events.jsonl            one event a line
result/                 checkpoint.safetensors, means.safetensors, statistics.safetensors if the backbone is frozen,
                        and result.json with their sha256, written last

No byte of a file is interpreted before its digest is checked: Corrupt names a file that is not what was written.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelist.exporter.errors import BadInput, Corrupt
from lifelist.exporter.manifest import AnswerKind, BiasCorrection
from lifelist.training.checkpoint import pack, remove_halves, unpack, write_atomically
from lifelist.training.data import GATE, HOLDOUT, TRAINING, Colour, Images
from lifelist.training.methods import certainly_trains, possible
from lifelist.training.options import TrainingOptions, check
from lifelist.training.pixels import as_npy, from_npy

PIXELS = "pixels.npy"


@dataclass(frozen=True, slots=True)
class Class:
    """A class: its id, given once in order of arrival, and its name."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What one increment is given. Row k of the last layer answers (old + new)[k]. BadInput says what does not fit."""

    options: TrainingOptions
    new: tuple[Class, ...]
    images: Images
    roles: Tensor  # N uint8: 0 training (of old classes: their exemplars, best first), 1 hold-out, 2 gate
    old: tuple[Class, ...] = ()
    refreshed: Mapping[int, int] = field(default_factory=dict)  # id of an old class → how many of its images are new
    heads: tuple[int, ...] = ()  # how many classes each earlier increment brought, in row order
    teacher: bytes | None = None  # the parent's checkpoint, unfolded; None for a base
    statistics: bytes | None = None  # the parent's (statistics.py); None if its backbone has just been trained
    bias: BiasCorrection | None = None  # the parent's
    pretrained: str = ""  # the file of weights that the teacher's backbone began from
    mean: Colour | None = None  # computed from a base's training images, and the same ever after
    std: Colour | None = None

    def __post_init__(self) -> None:
        ids = self.class_ids
        if not self.new and not self.refreshed:
            raise BadInput("an increment needs at least one new class, or new images of a known one; this one has none")
        if len(set(ids)) != len(ids):
            raise BadInput(f"a class id stands twice among old and new classes: {ids}; ids are given once")
        if (self.teacher is None) != (not self.old) or sum(self.heads) != len(self.old):
            raise BadInput(
                f"{len(self.old)} old classes need a teacher and heads that sum to as many; "
                f"got {'a' if self.teacher else 'no'} teacher and heads {self.heads}"
            )
        if unknown := sorted(set(self.refreshed) - {c.id for c in self.old}):
            raise BadInput(f"refreshed classes should be old ones, {[c.id for c in self.old]}; {unknown} are not")
        if self.bias is not None and not 0 <= self.bias.first_row < self.bias.last_row <= len(self.old):
            raise BadInput(
                f"the teacher's correction is of rows that it does not have: {self.bias}; it has {len(self.old)}"
            )
        size = self.options.image_size
        if self.images.pixels.shape[1:] != (size, size, 3) or self.images.pixels.dtype != torch.uint8:
            raise BadInput(
                f"images should be uint8 N×{size}×{size}×3 for image_size {size}, "
                f"not {self.images.pixels.dtype} {tuple(self.images.pixels.shape)}"
            )
        if not len(self.images) == len(self.images.labels) == len(self.roles) == len(self.images.pixels):
            raise BadInput("pixels, labels, ids and roles of the images differ in number")
        if unknown := sorted(set(self.roles.tolist()) - {TRAINING, HOLDOUT, GATE}):
            raise BadInput(f"roles are 0 (training), 1 (hold-out) and 2 (gate); got {unknown}")
        if unknown := sorted(set(self.images.labels.tolist()) - set(ids)):
            raise BadInput(
                f"there are images of classes {unknown}, which are neither old nor new; the increment names {ids}"
            )
        if len(set(self.images.ids)) != len(self.images):
            raise BadInput("an image stands twice: an image plays one role, once and for good")
        named = [*(c for c in self.old if c.id in self.refreshed), *self.new]
        missing = [c for c in named if not bool(self.of(c.id, TRAINING).any())]
        if missing:
            raise BadInput(
                f"increment names classes {[c.id for c in named]} but has no training images of "
                f"{', '.join(f'{c.id} ({c.name})' for c in missing)}; add images, or leave it out"
            )
        for class_id, count in self.refreshed.items():
            if not 1 <= count <= (found := int(self.of(class_id, TRAINING).sum())):
                raise BadInput(f"class {class_id} should bring 1 … {found} new training images, not {count}")
        replays = any(row.replays for row in possible(self.options.method))
        shown = torch.isin(self.images.labels, torch.tensor(ids if replays else self.with_news))
        images = int((shown & (self.roles == TRAINING)).sum())
        trains = certainly_trains(self.options.method, len(self.old))
        check(self.options, classes=len(ids), images=images if trains else None)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Class ids in row order."""
        return tuple(c.id for c in (*self.old, *self.new))

    def of(self, class_id: int, role: int) -> Tensor:
        """Mask, N bool: the images of a class in a role."""
        return (self.images.labels == class_id) & (self.roles == role)

    @property
    def with_news(self) -> tuple[int, ...]:
        """Ids of the classes that bring images: refreshed ones, then new ones."""
        return (*self.refreshed, *(c.id for c in self.new))

    @property
    def reserved(self) -> bool:
        """Whether any image was set apart for bias correction."""
        return bool((self.roles == HOLDOUT).any())

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the outcome; epochs of another increment are told by it."""
        digest = hashlib.sha256(json.dumps(_as_json(self), sort_keys=True).encode())
        digest.update(json.dumps([*self.images.ids, *self.images.labels.tolist(), *self.roles.tolist()]).encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """What came of an increment. `checkpoint` is unfolded: the next student starts from it."""

    checkpoint: bytes  # safetensors
    class_ids: tuple[int, ...]  # row order
    means: Tensor  # C×D float32, unit rows
    heads: tuple[int, ...]  # this increment's included
    bias: BiasCorrection | None
    mean: Colour
    std: Colour
    exemplars: Mapping[int, tuple[str, ...]]  # class id → image ids, best first
    holdout: Mapping[int, tuple[str, ...]]
    evaluation: Mapping[str, Any]  # on gate images: "linear", "linear_uncorrected", "nearest_mean"
    answers_by: AnswerKind
    embedding_dim: int
    seconds: float
    warnings: tuple[str, ...]
    software: Mapping[str, str]
    method: str  # the row: of "auto", the one that was chosen …
    reason: str = ""  # … and why
    statistics: bytes | None = None  # safetensors (statistics.py), of every class; only of a frozen backbone

    @property
    def figures(self) -> dict[str, Any]:
        """`evaluation` without its confusions, which are as long as there are images."""
        return {answer: {k: v for k, v in f.items() if k != "confusion"} for answer, f in self.evaluation.items()}


def write_task(folder: Path, task: Task) -> None:
    """Everything that `read_task` needs; job.json last, so that a folder that has it is whole. Pixels go in parts."""
    remove_halves(folder)
    files: dict[str, bytes | Iterable[bytes]] = {
        PIXELS: as_npy(task.images.pixels),
        "images.safetensors": pack({"labels": task.images.labels, "roles": task.roles}),
        "images.json": json.dumps(task.images.ids).encode(),
    }
    if task.teacher is not None:
        files["teacher.safetensors"] = task.teacher
    if task.statistics is not None:
        files["statistics.safetensors"] = task.statistics
    _write(folder, files, "job.json", _as_json(task))


def _as_json(task: Task) -> dict[str, Any]:
    return {
        "options": task.options.as_dict(),
        "old": [dataclasses.asdict(c) for c in task.old],
        "new": [dataclasses.asdict(c) for c in task.new],
        "refreshed": {str(class_id): count for class_id, count in task.refreshed.items()},
        "heads": list(task.heads),
        "teacher_sha256": _sha256(task.teacher),
        "statistics_sha256": _sha256(task.statistics),
        "pretrained": task.pretrained,
        "bias": dataclasses.asdict(task.bias) if task.bias else None,
        "mean": task.mean,
        "std": task.std,
    }


def _sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def read_task(folder: Path) -> Task:
    """The increment in a folder, its images mapped into memory: they may be larger.

    BadInput names a file that is missing, Corrupt one that is damaged.
    """
    try:
        job, files = _read(folder, "job.json", but_for=PIXELS)
    except FileNotFoundError as error:
        raise BadInput(f"{folder} is not a whole increment: {error.filename} does not exist") from error
    try:
        tensors = unpack(files["images.safetensors"], f"{folder}/images.safetensors")
        return Task(
            options=TrainingOptions.from_dict(job["options"]),
            old=tuple(Class(c["id"], c["name"]) for c in job["old"]),
            new=tuple(Class(c["id"], c["name"]) for c in job["new"]),
            refreshed={int(class_id): count for class_id, count in job["refreshed"].items()},
            heads=tuple(job["heads"]),
            teacher=files["teacher.safetensors"] if job["old"] else None,
            statistics=files.get("statistics.safetensors"),
            pretrained=job["pretrained"],
            bias=BiasCorrection(**job["bias"]) if job["bias"] else None,
            mean=_colour(job["mean"]),
            std=_colour(job["std"]),
            images=Images(from_npy(folder / PIXELS), tensors["labels"], tuple(json.loads(files["images.json"]))),
            roles=tensors["roles"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{folder}/job.json does not describe an increment: {error!r}") from error


def write_result(folder: Path, learned: Learned, fingerprint: str) -> None:
    """result/, with result.json last: a folder that has it, with the fingerprint of its task, is finished."""
    means = {"ids": torch.tensor(learned.class_ids), "means": learned.means}
    rest = {f.name: getattr(learned, f.name) for f in dataclasses.fields(Learned)} | {
        "bias": dataclasses.asdict(learned.bias) if learned.bias else None,
        "exemplars": {str(k): list(v) for k, v in learned.exemplars.items()},
        "holdout": {str(k): list(v) for k, v in learned.holdout.items()},
    }
    del rest["checkpoint"], rest["means"], rest["statistics"]
    rest["fingerprint"] = fingerprint
    files = {"checkpoint.safetensors": learned.checkpoint, "means.safetensors": pack(means)}
    if learned.statistics is not None:
        files["statistics.safetensors"] = learned.statistics
    _write(folder / "result", files, "result.json", rest)


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether result/ holds the result of the task with this fingerprint; that of another task does not count."""
    file = folder / "result" / "result.json"
    try:
        found = _object(file, file.read_bytes())
    except FileNotFoundError:
        return False
    return bool(found.get("fingerprint") == fingerprint)


def read_result(folder: Path) -> Learned:
    """What `write_result` wrote; BadInput if the increment has not ended, Corrupt if a file is damaged."""
    result = folder / "result"
    try:
        rest, files = _read(result, "result.json")
    except FileNotFoundError:
        raise BadInput(f"{folder} has no result yet; run the increment to its end") from None
    try:
        del rest["fingerprint"]
        changed: dict[str, Any] = {
            "class_ids": tuple(rest["class_ids"]),
            "heads": tuple(rest["heads"]),
            "bias": BiasCorrection(**rest["bias"]) if rest["bias"] else None,
            "mean": _colour(rest["mean"]),
            "std": _colour(rest["std"]),
            "exemplars": {int(k): tuple(v) for k, v in rest["exemplars"].items()},
            "holdout": {int(k): tuple(v) for k, v in rest["holdout"].items()},
            "warnings": tuple(rest["warnings"]),
            "statistics": files.get("statistics.safetensors"),
        }
        means = unpack(files["means.safetensors"], f"{result}/means.safetensors")
        return Learned(checkpoint=files["checkpoint.safetensors"], means=means["means"], **(rest | changed))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{result}/result.json does not describe a result: {error!r}") from error


def _write(folder: Path, files: Mapping[str, bytes | Iterable[bytes]], last: str, facts: Mapping[str, Any]) -> None:
    """The files, whole or in parts, and then the JSON object `last` with `facts` and their digests."""
    digests = {}
    for name, data in files.items():
        digest = hashlib.sha256()
        write_atomically(folder / name, _hashed([data] if isinstance(data, bytes) else data, digest))
        digests[name] = digest.hexdigest()
    write_atomically(folder / last, json.dumps({**facts, "sha256": digests}, indent=2).encode())


def _hashed(data: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for part in data:
        digest.update(part)
        yield part


def _read(folder: Path, last: str, but_for: str = "") -> tuple[dict[str, Any], dict[str, bytes]]:
    """(facts, files) of `_write`. FileNotFoundError if one is missing, Corrupt if one is not what was written.

    but_for: a file whose digest is checked, but which is not held.
    """
    facts = _object(folder / last, (folder / last).read_bytes())
    digests = facts.pop("sha256", None)
    if not isinstance(digests, dict):
        raise Corrupt(f"{folder}/{last} does not say which files belong to it; nothing was read")
    files: dict[str, bytes] = {}
    for name, pinned in digests.items():
        with (folder / name).open("rb") as file:
            if name != but_for:
                files[name] = file.read()
                found = hashlib.sha256(files[name]).hexdigest()
            else:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != pinned:
            raise Corrupt(f"{folder}/{name} has sha256 {found}; {last} pinned {pinned}")
    return facts, files


def _object(file: Path, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise Corrupt(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Corrupt(f"{file} should hold a JSON object, not {type(found).__name__}")
    return found


def _colour(found: Any) -> Any:
    """A Colour, or None where there is none yet."""
    if found is None:
        return None
    r, g, b = map(float, found)
    return r, g, b
