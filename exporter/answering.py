"""How a version makes answers of what its graph says: rows, class means, and what it knows of its own certainty.

Without the graph: whoever has logits and embeddings already, as one that watches a server has, needs no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from lifelist.exporter import confidence, index, provisional
from lifelist.exporter.errors import Corrupt, few
from lifelist.exporter.fold import Floats
from lifelist.exporter.manifest import AnswerKind, Confidence, Confidences, Manifest
from lifelist.exporter.provisional import HeldOut, Provisional
from lifelist.exporter.ranking import Ranking
from lifelist.exporter.registry import Registry
from lifelist.exporter.rows import Rows
from lifelist.exporter.unknowns import unknown_scores

MEANS = "class_means.faiss"
MOST_SCORES = 2_000_000  # images × classes that a calibration error is measured on

Believed = tuple[npt.NDArray[np.int64], confidence.Probabilities]  # A class ids, N×A


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """A version but for its graph. Immutable, and safe to use from several threads at once."""

    manifest: Manifest
    means: index.ClassMeans  # of all its classes
    provisional: Provisional | None = None  # rows of its enrolled classes, beside those of the graph
    rows: Rows = field(init=False)  # of the logits
    of_means: Rows = field(init=False)
    _imprinted: Floats | None = field(init=False)  # the means that the provisional rows are made of

    def __post_init__(self) -> None:
        instead, provisional = self.manifest.instead, self.provisional.ids if self.provisional else ()
        trained = [entry.id for entry in self.manifest.trained]
        object.__setattr__(self, "rows", Rows.of([*trained, *provisional], instead))
        object.__setattr__(self, "of_means", Rows.of(self.means.ids, instead))
        object.__setattr__(self, "_imprinted", self.means.of(provisional) if provisional else None)

    @classmethod
    def of(cls, registry: Registry, version: int) -> Self:
        """A version of the registry. Missing if there is none; Corrupt if its files are altered, or of another."""
        manifest = registry.manifest(version)
        means = index.load(registry.read(manifest, MEANS), manifest.embedding_dim)
        known = {entry.id for entry in manifest.classes}
        if missing := sorted(known - {*means.ids}):
            raise Corrupt(f"version {version} names the classes {few(missing)}, and has no means of them")
        if beside := sorted({*means.ids} - known):
            raise Corrupt(f"version {version} has means of the classes {few(beside)}, which it does not name")
        return cls(manifest=manifest, means=means, provisional=_provisional(registry, manifest))

    @property
    def version(self) -> int:
        """The number of the version."""
        return self.manifest.version

    @property
    def row_count(self) -> int:
        """How many logits there are for an image."""
        return len(self.manifest.trained) + (len(self.provisional.ids) if self.provisional else 0)

    def all_logits(self, logits: Floats, embedding: Floats) -> Floats:
        """N×C logits of N×T, which the graph gave, beside those of the provisional rows; embedding: N×D unit rows."""
        if self.provisional is None or self._imprinted is None:
            return logits
        return np.concatenate([logits, self.provisional.logits(embedding, self._imprinted)], axis=1)

    def linear(self, logits: Floats, top_k: int) -> list[Ranking]:
        """The best classes of each image by the last layer, with their softmax probabilities over all that have a row.

        logits: N×C float32, as `run` gives them. Enrolled classes are among them by their provisional rows, if the
        version has any, or where a trained one is merged into them. Retired ones never are; the others sum to 1.
        """
        return self.rows.by_logits(logits, top_k)

    def probabilities(self, logits: Floats) -> npt.NDArray[np.float64]:
        """N×A, a column for each of `rows.ids`; each row sums to 1."""
        return self.rows.scores(logits)

    def similarities(self, embedding: Floats) -> Floats:
        """Cosine similarities to each class that is answered, enrolled ones included: N×K float32, columns by class id.

        Of a class and those merged into it the nearest mean counts.
        """
        found = self.of_means.highest(self.means.similarities(embedding))
        return found[:, np.argsort(self.of_means.ids)]

    def nearest_mean(self, embedding: Floats, top_k: int) -> list[Ranking]:
        """The nearest classes of each image, enrolled ones included, with cosine similarities in -1 … 1.

        embedding: N×D float32, as `run` gives them. Of a class and those merged into it the nearest mean counts.
        """
        scores, rows = self.means.nearest(embedding, top_k + self.of_means.spare)
        return self.of_means.by_rows(rows, scores, top_k)

    def unknown_scores(
        self, kind: AnswerKind, logits: Floats, rankings: Sequence[Ranking]
    ) -> npt.NDArray[np.float64] | None:
        """For each image how unlike a known one it looks to this kind of answer, 0 … 1 (unknowns.py).

        logits: N×C, as `run` gives them; rankings: N, of that kind. None if the version was not calibrated.
        """
        if (known := self.manifest.known_scores) is None:
            return None
        if kind == "nearest_mean":
            return unknown_scores([ranking[0][1] for ranking in rankings], known.nearest_mean)
        answering = logits if self.rows.order is None else logits[:, self.rows.order]
        return unknown_scores(answering.max(axis=1), known.linear)

    def evidence(self, kind: AnswerKind, logits: Floats, embedding: Floats) -> confidence.Evidence:
        """For each image and class that this kind of answer can name, how much speaks for it."""
        if kind == "linear":
            return confidence.Evidence(np.array(self.rows.ids), np.log(np.maximum(self.rows.scores(logits), 1e-30)))
        similar = self.of_means.highest(self.means.similarities(embedding))
        return confidence.Evidence(np.array(self.of_means.ids), similar.astype(np.float64))

    def fitted(self, held: HeldOut) -> Confidences:
        """How probable its answers are, as held-out images show; a merged class's are its target's here."""
        kept, labels = self._answered(held)
        logits, embedding = self.all_logits(held.logits, held.embedding)[kept], held.embedding[kept]

        def of(kind: AnswerKind) -> Confidence | None:
            return confidence.fit(self.evidence(kind, logits, embedding), labels)

        return Confidences(of("linear"), of("nearest_mean"))

    def calibration_error(self, held: HeldOut, kind: AnswerKind) -> float | None:
        """How far off its probabilities are on held-out images (confidence.py); None if they are too few."""
        kept, labels = self._answered(held)
        every = 1 + len(kept) * self.row_count // MOST_SCORES
        kept, labels = kept[::every], labels[::every]
        logits, embedding = self.all_logits(held.logits[kept], held.embedding[kept]), held.embedding[kept]
        return confidence.error(self.evidence(kind, logits, embedding), labels)

    def _answered(self, held: HeldOut) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """Which held-out images are of classes that are answered, and as which: a merged class's are its target's."""
        instead = self.manifest.instead
        labels = np.array([instead.get(label, label) for label in held.labels.tolist()], np.float64)  # None: NaN
        kept = np.flatnonzero(~np.isnan(labels))
        return kept, labels[kept].astype(np.int64)

    def probabilities_of(self, kind: AnswerKind, logits: Floats, embedding: Floats) -> Believed | None:
        """Class ids, and N×A how probable each is; None if this kind of answer was not calibrated."""
        fitted = getattr(self.manifest.confidences, kind, None)
        if fitted is None:
            return None
        found = self.evidence(kind, logits, embedding)
        return found.ids, confidence.probabilities(fitted, found)


def held_out(registry: Registry, version: Manifest, precision: str = "fp32") -> HeldOut | None:
    """What the model of a version says to held-out images, in fp32 or int8; None of one that did not keep that."""
    name = provisional.HELD_OUT_INT8 if precision == "int8" else provisional.HELD_OUT
    if all(entry.name != name for entry in version.files):
        return None
    return HeldOut.from_bytes(registry.read(version, name))


def _provisional(registry: Registry, manifest: Manifest) -> Provisional | None:
    if all(entry.name != provisional.FILE for entry in manifest.files):
        return None
    enrolled = [entry.id for entry in manifest.classes if entry.state == "enrolled"]
    return Provisional.from_bytes(registry.read(manifest, provisional.FILE), enrolled)
