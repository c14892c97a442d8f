"""Whether accuracy fell with a swap, and which: what an automatic rollback rests on.

Like is compared with like: the same gate images before and after, in pairs; or labels of as long a time before the
swap as has passed since, that came within that time, of classes that both versions can name. So neither new classes,
which are harder, nor labels that are still to come, which are sooner sent of mistakes, look like a loss.

A swap can be taken back if it made its version live for the first time. One that was live before was made so again by
somebody, or by a rollback; and so was all that has been made of it since.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lifelist.exporter.manifest import Manifest
from lifelist.exporter.registry import Ref, Registry
from lifelist.exporter.session import MODEL
from lifelist.monitoring import feedback, probe, times
from lifelist.monitoring.database import Database
from lifelist.monitoring.intervals import Change, Share, points

SOURCES: tuple[Literal["audit", "feedback"], ...] = ("audit", "feedback")  # the fairer first
LEAST = 100  # labels on each side, of the audit or of all, to judge by
GROWTH = 2.0  # labels must have become so many times as many before they are judged again: few looks, few false alarms


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap that may be taken back, as long as live is at `live`."""

    live: Ref
    version: Manifest  # that is live
    before: Manifest  # that the swap, or the first of several, replaced
    at: float  # Unix time of that


@dataclass(frozen=True, slots=True)
class Fallen:
    """Accuracy is lower than before a swap, with all of its interval."""

    swap: Swap
    source: Literal["probe", "audit", "feedback"]
    change: Change

    @property
    def message(self) -> str:
        """What is known, in a sentence."""
        live, before, images = self.swap.version.version, self.swap.before.version, self.change.total
        of = {"probe": "the same gate images", "audit": "audited answers", "feedback": "labelled answers"}[self.source]
        return (
            f"version {live} is right {points(-self.change.difference)} points less often than version {before} "
            f"({points(-self.change.high)} to {points(-self.change.low)}), by {images} of {of}"
        )


def swaps(registry: Registry) -> list[Swap]:
    """The swaps that may be taken back: to the version before, and to the last one of another model before that."""
    history = registry.history("live")
    if not history:
        return []
    live, version = history[-1], registry.manifest(history[-1].version)
    first = {ref.version: place for place, ref in reversed(list(enumerate(history)))}
    found: list[Swap] = []
    for place in range(len(history) - 1, 0, -1):
        made, replaced = history[place], registry.manifest(history[place - 1].version)
        if first[made.version] < place:
            break  # it was live before: somebody's will, or a rollback
        is_other = replaced.file(MODEL).sha256 != version.file(MODEL).sha256
        if not found or is_other:
            found.append(Swap(live, version, replaced, times.unix(made.at)))
        if is_other:
            break
    return found


def by_probe(database: Database, swap: Swap, loss: float) -> Fallen | None:
    """By what both versions answered to the same gate images."""
    change = probe.change(database, swap.before, swap.version)
    return Fallen(swap, "probe", change) if change is not None and change.high < -loss else None


class Labels:
    """By labels. It looks again only when there are markedly more than when it last did."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self.database, self.registry = database, registry
        self._judged: dict[tuple[int, int, str], float] = {}  # labels, by generation of live, version before, source

    def fallen(self, swap: Swap, loss: float, at: float) -> Fallen | None:
        """By those of the audit, if there are enough; else by all."""
        sides = _labelled(self.database, self.registry, swap, at)
        for source in SOURCES:
            before, now = sides[source]
            if min(before.total, now.total) < LEAST:
                continue
            key = swap.live.generation, swap.before.version, source
            self._judged = {known: n for known, n in self._judged.items() if known[0] == swap.live.generation}
            if now.total < GROWTH * self._judged.get(key, 0):
                return None
            self._judged[key] = now.total
            change = Change.between(before, now)
            return Fallen(swap, source, change) if change is not None and change.high < -loss else None
        return None


def _labelled(database: Database, registry: Registry, swap: Swap, at: float) -> dict[str, tuple[Share, Share]]:
    """By source (before, now): the share of right answers to images of classes that both versions can name."""
    both = {entry.id for entry in swap.version.answerable} & {
        swap.version.instead.get(entry.id, entry.id) for entry in swap.before.answerable
    }
    spans = ((swap.at - (at - swap.at), swap.at, swap.before), (swap.at, at, swap.version))
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for side, (since, until, manifest) in enumerate(spans):
        for figure in feedback.of_version(database, registry, manifest.version, since, until):
            if swap.version.instead.get(figure.class_id, figure.class_id) in both:
                for place, value in enumerate((figure.right, figure.total, figure.squares)):
                    sums[figure.source, side][place] += value
    return {one: (Share.of_weights(*sums[one, 0]), Share.of_weights(*sums[one, 1])) for one in SOURCES}


def worst(found: Sequence[Fallen]) -> Fallen | None:
    """The one that lost most for certain."""
    return min(found, key=lambda one: one.change.high, default=None)
