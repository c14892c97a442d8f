"""What an increment learnt, gathered from the database, the registry and the stored images. No server is asked."""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lifelist.deploy import examples, thumbnails
from lifelist.deploy.naming import learned_as
from lifelist.deploy.records import Rollout, StepRecord
from lifelist.deploy.store import Store
from lifelist.deploy.workshop import EVALUATION, Workshop, memory
from lifelist.exporter.errors import LifelistError, Missing
from lifelist.exporter.manifest import AnswerKind, Manifest, Preprocess
from lifelist.exporter.preprocess import decode
from lifelist.training.methods import METHODS

SHOWN = 12  # exemplars of a class
Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations

Evaluation = Mapping[str, Any]  # answer → figures, as training/evaluate.py makes them
Losses = Mapping[str, Sequence[tuple[int, Mapping[str, float]]]]  # phase → (epoch, term → loss)


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of images."""

    share: float  # 0 … 1
    images: int | None  # how many there are in all; None if that was not kept

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval (Wilson 1927), within 0 … 1; None without a count."""
        if not self.images:
            return None
        p, n = self.share, self.images
        middle, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return max(0.0, (middle - half) / (1 + Z**2 / n)), min(1.0, (middle + half) / (1 + Z**2 / n))


@dataclass(frozen=True, slots=True)
class ClassOutcome:
    """How a class is answered. A rate is None where it has no gate images, or where nothing is known."""

    id: int
    name: str
    new: bool
    before: Rate | None  # by the version that the increment learned from; None for a new class
    after: Rate | None
    taken_for: tuple[tuple[str, int], ...]  # after: the other classes that were answered, by count of images

    @property
    def change(self) -> float | None:
        """What its accuracy gained; None if one of the two is not known."""
        return None if self.before is None or self.after is None else self.after.share - self.before.share


@dataclass(frozen=True, slots=True)
class AnswerOutcome:
    """What one kind of answer makes of all gate images."""

    key: str  # linear_uncorrected, linear, nearest_mean
    groups: Mapping[str, Rate | None]  # all, old, new → accuracy
    answered_new: Rate | None  # the share of images that are taken for a new class


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A chosen image, as the model sees it. `webp` is None where its bytes cannot be had: `missing` says why."""

    sha256: str
    webp: bytes | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """The exemplars of a class: how many there are, and the best of them."""

    name: str
    new: bool
    count: int
    shown: tuple[Exemplar, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One increment. `notes`: what could not be had, by the part it belongs to (classes, bias, exemplars, losses)."""

    rollout: Rollout
    names: tuple[str, ...]  # of the new classes
    version: Manifest | None  # that it published
    teacher: Manifest | None  # that it learned from
    before: Manifest | None  # the one whose model that is: the teacher, or what it was enrolled upon
    answers_before: AnswerKind | None
    answers_by: AnswerKind
    old_before: Rate | None  # accuracy on all old classes, by `before`
    classes: tuple[ClassOutcome, ...]  # who lost most is first; then the new ones, and those of which nothing is known
    answers: tuple[AnswerOutcome, ...]
    truly_new: Rate | None  # the share of gate images that show a new class
    memories: tuple[Memory, ...]  # the new classes first
    image_size: int  # pixels
    losses: Losses
    steps: tuple[StepRecord, ...]
    notes: Mapping[str, Sequence[str]]

    @property
    def is_base(self) -> bool:
        """Whether it learned from nothing; what waits in the queue has not looked yet, and is none."""
        return self.rollout.facts.get("teacher", 0) is None


def outcome(workshop: Workshop, number: int) -> Outcome:
    """What is known of increment `number`, in whatever state it is; what is not known is a note. Missing if none."""
    rollout = workshop.store.rollout(number)
    notes: dict[str, list[str]] = {part: [] for part in ("classes", "bias", "exemplars", "losses")}
    version = _manifest(workshop, rollout.version, notes)
    teacher = _manifest(workshop, rollout.facts.get("teacher"), notes)
    before = _of_model(workshop, teacher, notes)
    after_found, chosen = _after(workshop, rollout, version, notes)
    before_found = _before(workshop, before, notes)

    old = [entry.id for entry in teacher.staying] if teacher else []
    new = [class_id for class_id in learned_as(rollout.class_ids, teacher) if class_id not in old]
    names = {known.id: known.name for known in workshop.store.classes()}
    names |= {c.id: c.name for m in (teacher, version) if m for c in m.entries}
    answers_by: AnswerKind = METHODS[rollout.row].answers_by if rollout.row in METHODS else "linear"
    answers_before = _answers_by(before) if before else None
    after_own = after_found.get(answers_by, {})
    before_own = before_found.get(answers_before or "", {})
    seen = next((m.preprocess for m in (version, teacher) if m), None) or examples.decoding(
        workshop.settings.training.image_size, workshop.settings.training.resized_to
    )
    losses = _losses(workshop.store, number)
    if not losses:
        notes["losses"].append("No epoch of this increment was told.")
    return Outcome(
        rollout=rollout,
        names=tuple(names[class_id] for class_id in rollout.class_ids),
        version=version,
        teacher=teacher,
        before=before,
        answers_before=answers_before,
        answers_by=answers_by,
        old_before=_group(before_own, "all", old),
        classes=_classes(before_own, after_own, old, new, names),
        answers=tuple(_answer(key, after_found[key], old, new) for key in _KEYS if key in after_found),
        truly_new=_truly_new(after_own, old, new) if old else None,
        memories=_memories(workshop, chosen, [*new, *old], frozenset(new), names, seen),
        image_size=seen.size,
        losses=losses,
        steps=tuple(workshop.store.steps(number)),
        notes=notes,
    )


_KEYS = ("linear_uncorrected", "linear", "nearest_mean")


def _manifest(workshop: Workshop, number: int | None, notes: dict[str, list[str]]) -> Manifest | None:
    try:
        return None if number is None else workshop.registry.manifest(number)
    except LifelistError as error:
        notes["classes"].append(f"Version {number} cannot be read: {error}.")
        return None


def _of_model(workshop: Workshop, teacher: Manifest | None, notes: dict[str, list[str]]) -> Manifest | None:
    """The version that brought the teacher's model: others share that of their parent, and were not evaluated."""
    found = teacher
    while found is not None and found.kind != "increment":
        found = _manifest(workshop, found.parent, notes)
    return found


def _answers_by(version: Manifest) -> AnswerKind:
    """How its method answers. By default it may answer by nearest mean for the sake of classes that were enrolled."""
    return METHODS[version.method].answers_by if version.method in METHODS else version.default_answer


def _before(workshop: Workshop, before: Manifest | None, notes: dict[str, list[str]]) -> Evaluation:
    if before is None:
        return {}
    found = _published(workshop, before, notes)
    if found is None:
        notes["classes"].append(_without(before) + " Before has no image counts and no intervals.")
    return before.results if found is None else found


def _after(
    workshop: Workshop, rollout: Rollout, version: Manifest | None, notes: dict[str, list[str]]
) -> tuple[Evaluation, Mapping[int, Sequence[str]]]:
    """(evaluation, exemplars by class) of the version, else of the increment's folder, else what the database has."""
    if version is not None:
        found = _published(workshop, version, notes)
        if found is None:
            lacks = "image counts, no intervals, and nothing of what images are taken for"
            notes["classes"].append(f"{_without(version)} After has no {lacks}.")
            notes["bias"].append(f"{_without(version)} How often new classes are answered is not known.")
        return version.results if found is None else found, _chosen(workshop, version, notes)
    folder = workshop.folder(rollout.id)
    if (folder / "result" / "result.json").exists():
        from lifelist.training.job import read_result

        try:
            learned = read_result(folder)
        except LifelistError as error:
            notes["classes"].append(f"What training left cannot be read: {error}.")
        else:
            return learned.evaluation, learned.exemplars
    ended = f"ended as {rollout.state}" if rollout.ended else f"is in state {rollout.state}"
    reason = f"Increment {rollout.id} {ended}, and has published no version"
    notes["exemplars"].append(f"{reason}; which exemplars it chose is not known.")
    figures: Evaluation = rollout.facts.get("evaluation", {})
    if figures:
        notes["classes"].append(f"{reason}; of its evaluation the shares are left, without counts and confusions.")
        notes["bias"].append(f"{reason}; how often it answers new classes is not known.")
    else:
        notes["classes"].append(f"{reason}; it was not evaluated.")
        notes["bias"].append(f"{reason}; it was not evaluated.")
    return figures, {}


def _published(workshop: Workshop, version: Manifest, notes: dict[str, list[str]]) -> Evaluation | None:
    """What evaluation.json of a version says; None if it has none that can be read."""
    if all(entry.name != EVALUATION for entry in version.files):
        return None
    try:
        found: Evaluation = json.loads(workshop.registry.read(version, EVALUATION))
    except LifelistError as error:
        notes["classes"].append(f"{EVALUATION} of version {version.version} cannot be read: {error}.")
        return None
    return found


def _chosen(workshop: Workshop, version: Manifest, notes: dict[str, list[str]]) -> Mapping[int, Sequence[str]]:
    try:
        return {int(class_id): ids for class_id, ids in memory(workshop.registry, version)["exemplars"].items()}
    except LifelistError as error:
        notes["exemplars"].append(f"Those of version {version.version} cannot be read: {error}.")
        return {}


def confusions_of(workshop: Workshop, version: Manifest) -> dict[str, dict[tuple[int, int], int]]:
    """Kind of answer, `linear_uncorrected` among them → (true, answered) class ids → held-out images.

    Of the model that the version answers with, when it was made; of a version made by hand nothing may be known.
    """
    model = _of_model(workshop, version, {"classes": []})
    found = {} if model is None else _published(workshop, model, {"classes": []}) or {}
    return {
        key: {(int(t), int(p)): n for t, row in found[key].get("confusion", {}).items() for p, n in row.items()}
        for key in _KEYS
        if key in found
    }


def _without(version: Manifest) -> str:
    return f"Version {version.version} has no {EVALUATION} to read."


def _classes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    old: Sequence[int],
    new: Sequence[int],
    names: Mapping[int, str],
) -> tuple[ClassOutcome, ...]:
    found = []
    for class_id in (*old, *new):
        row = after.get("confusion", {}).get(str(class_id), {})
        others = sorted(((n, int(k)) for k, n in row.items() if int(k) != class_id), key=lambda one: (-one[0], one[1]))
        taken_for = tuple((names[k], n) for n, k in others)
        rates = [_class(figures, class_id) for figures in (before, after)]
        found.append(ClassOutcome(class_id, names[class_id], class_id in new, rates[0], rates[1], taken_for))

    def order(one: ClassOutcome) -> tuple[bool, float, bool, float]:
        return one.change is None, one.change or 0.0, one.after is None, one.after.share if one.after else 0.0

    return tuple(sorted(found, key=order))


def _class(figures: Mapping[str, Any], class_id: int) -> Rate | None:
    """Accuracy on one class; without the confusion, its share alone."""
    row = figures.get("confusion", {}).get(str(class_id))
    if row:
        return Rate(row.get(str(class_id), 0) / sum(row.values()), sum(row.values()))
    share = figures.get("per_class", {}).get(str(class_id))
    return None if share is None else Rate(share, None)


def _answer(key: str, figures: Mapping[str, Any], old: Sequence[int], new: Sequence[int]) -> AnswerOutcome:
    groups = {"all": [*old, *new], "old": old, "new": new if old else []}
    confusion = figures.get("confusion")
    answered = None
    if confusion is not None and old:
        count = _images(confusion, groups["all"])
        taken = sum(n for row in confusion.values() for k, n in row.items() if int(k) in set(new))
        answered = Rate(taken / count, count) if count else None
    return AnswerOutcome(key, {group: _group(figures, group, ids) for group, ids in groups.items()}, answered)


def _group(figures: Mapping[str, Any], group: str, ids: Sequence[int]) -> Rate | None:
    """Accuracy on the images of several classes; without the confusion, the share alone."""
    confusion = figures.get("confusion")
    if confusion is None:
        share = figures.get(group)
        return None if share is None else Rate(share, None)
    count = _images(confusion, ids)
    right = sum(confusion.get(str(k), {}).get(str(k), 0) for k in ids)
    return Rate(right / count, count) if count else None


def _truly_new(figures: Mapping[str, Any], old: Sequence[int], new: Sequence[int]) -> Rate | None:
    confusion = figures.get("confusion", {})
    count = _images(confusion, [*old, *new])
    return Rate(_images(confusion, new) / count, count) if count else None


def _images(confusion: Mapping[str, Mapping[str, int]], ids: Iterable[int]) -> int:
    return sum(sum(confusion.get(str(k), {}).values()) for k in ids)


def _memories(
    workshop: Workshop,
    chosen: Mapping[int, Sequence[str]],
    order: Sequence[int],
    new: frozenset[int],
    names: Mapping[int, str],
    seen: Preprocess,
) -> tuple[Memory, ...]:
    return tuple(
        Memory(names[k], k in new, len(chosen[k]), tuple(_exemplar(workshop, d, seen) for d in chosen[k][:SHOWN]))
        for k in order
        if k in chosen
    )


def _exemplar(workshop: Workshop, sha256: str, seen: Preprocess) -> Exemplar:
    """The part of the image that the model sees, at most LARGEST pixels in each direction."""
    try:
        image = decode(workshop.images.get(sha256), thumbnails.shown(seen))
    except Missing:
        return Exemplar(sha256, None, "deleted since")
    except LifelistError as error:
        return Exemplar(sha256, None, str(error))
    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", lossless=seen.size < thumbnails.LARGEST, quality=85)
    return Exemplar(sha256, out.getvalue())


def _losses(store: Store, number: int) -> Losses:
    """Of every phase, the epochs in their order; an epoch that was trained again counts as it went the last time."""
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    after = 0
    while events := store.events(number, after):
        after = events[-1].id
        for event in events:
            if event.kind == "epoch":
                found.setdefault(event.data["phase"], {})[event.data["epoch"]] = event.data["loss"]
    return {phase: sorted(epochs.items()) for phase, epochs in found.items()}
