"""The gate: declared checks on what a candidate answers, as exported, to images that nothing was trained on."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lifelist.deploy.settings import CheckName, GateCheck
from lifelist.exporter.manifest import AnswerKind, Check, Manifest, Parity
from lifelist.exporter.preprocess import Pixels
from lifelist.exporter.session import Loaded

Ids = npt.NDArray[np.int64]
BATCH = 64  # images
SAME = 0.9  # of the images of a class that are answered as one other class
NOT_JUDGED = "not judged: "  # what a message says before the classes of which there were too few images
ROUNDING = 1e-9  # 0.66 - 0.64 is a little more than 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the checks look at. Old classes: those in live's last layer that stay. All answers are to gate images."""

    candidate: Manifest
    live: Manifest | None  # None for a base: then nothing is old
    names: Mapping[int, str]  # of the new classes
    truth: Ids  # N class ids, of old and new classes
    answered: Ids  # N class ids, by the candidate
    answered_by_live: Ids  # N class ids, by live as it answers by default; empty for a base
    parity: Parity

    @property
    def old(self) -> npt.NDArray[np.bool_]:
        """N: whether an image shows an old class."""
        return np.isin(self.truth, [entry.id for entry in self.live.staying] if self.live else [])


def answers(loaded: Loaded, images: Pixels, kind: AnswerKind) -> Ids:
    """The class id that a version answers for each of N×S×S×3 uint8 images; N int64."""
    found: list[int] = []
    for start in range(0, len(images), BATCH):
        logits, embedding = loaded.run(images[start : start + BATCH])
        ranked = loaded.linear(logits, 1) if kind == "linear" else loaded.nearest_mean(embedding, 1)
        found += [best[0][0] for best in ranked]
    return np.array(found, np.int64)


def judge(evidence: Evidence, checks: Sequence[GateCheck]) -> tuple[Check, ...]:
    """The verdict of every declared check, in their order."""
    return tuple(CHECKS[check.check](evidence, check.limit or 0.0, check.min_images) for check in checks)


def refusal(checks: Sequence[Check]) -> str | None:
    """What the failed checks say, or None if all passed."""
    return "; ".join(check.message for check in checks if not check.passed) or None


def _classes(evidence: Evidence, limit: float, min_images: int) -> Check:
    """The candidate has exactly live's rows and the new ones, the old in their places; none of a class that is out."""
    old = [entry.id for entry in evidence.live.staying] if evidence.live else []
    wanted, found = [*old, *evidence.names], [entry.id for entry in evidence.candidate.trained]
    passed = found == wanted
    message = f"{len(found)} classes: {len(old)} of live and {len(evidence.names)} new"
    if not passed:
        message = f"the candidate's rows are of classes {found}; live's and the new ones are {wanted}"
    return Check("classes", passed, None, None, message)


def _old_accuracy(evidence: Evidence, limit: float, min_images: int) -> Check:
    """Accuracy on all gate images of old classes is at most `limit` below live's on the same images."""
    old, live = evidence.old, evidence.live
    if live is None:
        return Check("old_accuracy", True, None, limit, "no version was live, so no class is old")
    if (count := int(old.sum())) < min_images:
        message = f"old classes have {count} gate images; the gate needs {min_images} to compare with version"
        return Check("old_accuracy", False, None, limit, f"{message} {live.version}. Keep more, or lower min_images")
    found = float((evidence.answered == evidence.truth)[old].mean())
    before = float((evidence.answered_by_live == evidence.truth)[old].mean())
    drop = before - found
    compared = f"{abs(drop):.3f} {'below' if drop > 0 else 'above'}" if drop else "the same as"
    message = (
        f"old-class accuracy {found:.3f} is {compared} version {live.version} ({before:.3f}) on {count} gate images"
    )
    message += f"; the gate allows {limit:g} below"
    if passed := drop <= limit + ROUNDING:
        return Check("old_accuracy", passed, drop, limit, message)
    right = [(answered == evidence.truth).astype(int) for answered in (evidence.answered, evidence.answered_by_live)]
    lost = {entry: int((right[1] - right[0])[evidence.truth == entry.id].sum()) for entry in live.staying}
    most = max(lost, key=lambda entry: lost[entry])
    if taken_for := _taken_for(evidence, most.id):
        message += f"; {most.name!r} lost most{taken_for}"
    return Check("old_accuracy", passed, drop, limit, message)


def _new_class_accuracy(evidence: Evidence, limit: float, min_images: int) -> Check:
    """Accuracy of every new class is at least `limit`; `found` is the lowest. Refreshed classes are old.

    A class with fewer than `min_images` is not judged, and named: what a few images say of it is chance.
    """
    if not evidence.names:
        return Check("new_class_accuracy", True, None, limit, "no class is new")
    found: dict[int, float] = {}
    low, few = [], []
    for class_id, name in evidence.names.items():
        images = evidence.truth == class_id
        if (count := int(images.sum())) < min_images:
            few.append(f"{name!r} ({count} gate image{'' if count == 1 else 's'})")
            continue
        found[class_id] = float((evidence.answered[images] == class_id).mean())
        if found[class_id] < limit:
            low.append(f"{name!r} has {found[class_id]:.3f} on {count} gate images{_taken_for(evidence, class_id)}")
    lowest = min(found.values(), default=None)
    said = [f"{NOT_JUDGED}{some(few)}, for that needs {min_images} of a class"] if few else []
    if low:
        said.insert(0, f"new-class accuracy below {limit:g}: class {some(low)}")
    elif lowest is not None:
        which = "every new class that is judged" if few else "every new class"
        said.insert(0, f"{which} has at least {lowest:.3f}; the gate asks for {limit:g}")
    return Check("new_class_accuracy", not low, lowest, limit, "; ".join(said))


def _taken_for(evidence: Evidence, class_id: int) -> str:
    """What most images of a class are answered as, if it is another class: it may be the same under another name."""
    answered = evidence.answered[evidence.truth == class_id].tolist()
    ((other, count),) = Counter(answered).most_common(1)
    if other == class_id:
        return ""
    name = next((entry.name for entry in evidence.candidate.classes if entry.id == other), str(other))
    same = ": if that is the same class, leave one out" if count >= SAME * len(answered) else ""
    return f" (answered as {name!r} in {count} of {len(answered)}{same})"


def some(found: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    return f"{', '.join(found[:5])}{f' and {len(found) - 5} more' if len(found) > 5 else ''}"


def _parity_top1(evidence: Evidence, limit: float, min_images: int) -> Check:
    """The exported graph names the same best class as the network on at least the share `limit` of images."""
    parity, found = evidence.parity, evidence.parity.top1_agreement
    message = f"graph and network agree on {found:.2%} of {parity.images} images; the gate asks for {limit:.2%}"
    return _of_enough("parity_top1", found >= limit, found, limit, message, parity.images, min_images)


def _parity_logits(evidence: Evidence, limit: float, min_images: int) -> Check:
    """No logit of the exported graph is further than `limit` from the network's."""
    parity, found = evidence.parity, evidence.parity.max_abs_logit_difference
    message = f"graph and network differ by {found:.2g} at most in a logit; the gate allows {limit:g}"
    return _of_enough("parity_logits", found <= limit, found, limit, message, parity.images, min_images)


def _of_enough(
    name: CheckName, passed: bool, found: float, limit: float, message: str, images: int, min_images: int
) -> Check:
    if images < min_images:
        message = f"graph and network were compared on {images} images; the gate needs {min_images}"
    return Check(name, passed and images >= min_images, found, limit, message)


CHECKS: Mapping[CheckName, Callable[[Evidence, float, int], Check]] = {
    "classes": _classes,
    "old_accuracy": _old_accuracy,
    "new_class_accuracy": _new_class_accuracy,
    "parity_top1": _parity_top1,
    "parity_logits": _parity_logits,
}
