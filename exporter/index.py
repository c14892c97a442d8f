"""Class means in a faiss index: which class is nearest, by stable class id.

An index is never changed: faiss allows no search beside an addition. A version with one more class brings an index of
its own, which is a copy with one more mean, or is built whole where the others are not the same.

Up to MOST_EXACT numbers every mean is compared, which is exact and as quick as anything. Beyond, a graph is walked
(HNSW; Malkov & Yashunin 2018) that finds nearly always the same; `lifelist bench index` measures both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from lifelist.exporter.errors import Corrupt, few
from lifelist.exporter.fold import Floats, unit

MOST_EXACT = 2**22  # numbers in all means together: 65,536 classes of 64 dimensions
NEIGHBOURS, BUILD_WIDTH, SEARCH_WIDTH = 32, 100, 128  # of the graph: edges of a node, and how widely it is searched


@dataclass(frozen=True, slots=True)
class ClassMeans:
    """The means of all classes of a version, ready to be searched. Safe to use from several threads at once."""

    ids: tuple[int, ...]  # class ids, as they were given: the rows
    dim: int
    whole: Any  # faiss.IndexIDMap2, as the file has it
    index: Any  # what it is over, and what is searched: faiss.IndexFlatIP or faiss.IndexHNSWFlat

    @property
    def exact(self) -> bool:
        """Whether every mean is compared; else the nearest are found nearly always."""
        return isinstance(self.index, faiss.IndexFlatIP)

    def nearest(self, embedding: Floats, top_k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Cosine similarities and rows (places in `ids`) of the nearest means, best first: N×k, k at most the classes.

        embedding: N×dim float32, unit rows. A zero row is like nothing: its similarities are all 0.
        """
        queries, count = np.ascontiguousarray(embedding), min(top_k, len(self.ids))
        scores, rows = self.index.search(queries, count)
        if not self.exact and (missed := rows[:, -1] < 0).any():  # its edges do not lead to as many from everywhere
            scores[missed], rows[missed] = _flat(self.index).search(queries[missed], count)
        return scores, rows

    def similarities(self, embedding: Floats) -> Floats:
        """Cosine similarities to every mean, N×len(ids) float32, of N×dim unit rows."""
        found: Floats = embedding @ _vectors(self.index).T
        return found

    def means(self) -> Floats:
        """A copy of the unit means, len(ids)×dim float32, in the order of `ids`."""
        return _vectors(self.index).copy()

    def of(self, ids: Sequence[int]) -> Floats:
        """The unit means of these classes, len(ids)×dim float32."""
        place = {class_id: k for k, class_id in enumerate(self.ids)}
        return _vectors(self.index)[[place[class_id] for class_id in ids]]


def is_exact(count: int, dim: int) -> bool:
    """The rule: whether an index of so many means is one that compares them all."""
    return count * dim <= MOST_EXACT


def build(ids: Sequence[int], means: npt.ArrayLike) -> bytes:
    """A file of class means. ids: C class ids, all different; means: C×D, made unit here (a zero row stays zero)."""
    rows = unit(means)
    if rows.ndim != 2 or len(rows) != len(ids) or len(set(ids)) != len(ids) or not np.isfinite(rows).all():
        raise ValueError(
            f"need one finite mean for each of {len(ids)} different class ids; got {rows.shape}, ids {few(ids)}"
        )
    dim = rows.shape[1]
    index = faiss.IndexIDMap2(flat(dim) if is_exact(len(rows), dim) else graph(dim))
    index.add_with_ids(rows, np.asarray(ids, np.int64))
    return bytes(faiss.serialize_index(index))


def extended(means: ClassMeans, ids: Sequence[int], more: npt.ArrayLike) -> bytes:
    """A file of the same means and those of more classes. A graph is not built anew, but gets more nodes.

    ids: C further class ids; more: C×D, made unit here.
    """
    if means.exact:
        return build((*means.ids, *ids), np.concatenate([means.means(), unit(more)]))
    if len(set(ids) | set(means.ids)) != len(ids) + len(means.ids):
        raise ValueError(f"need ids of further classes; got {few(ids)}, of which some are there")
    index = faiss.clone_index(means.whole)  # the one that is there may be searched meanwhile
    index.add_with_ids(unit(more), np.asarray(ids, np.int64))
    return bytes(faiss.serialize_index(index))


def flat(dim: int) -> Any:
    """An empty index that compares every mean."""
    return faiss.IndexFlatIP(dim)


def graph(dim: int) -> Any:
    """An empty index that walks a graph of near means."""
    index = faiss.IndexHNSWFlat(dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_WIDTH, SEARCH_WIDTH
    return index


def one_thread() -> None:
    """Let faiss search in the thread that calls this, and start no others. Each thread has to say so for itself."""
    faiss.omp_set_num_threads(1)  # for a few hundred means a team would spin more than search


def _flat(index: Any) -> Any:
    """The index of either kind as one that compares every mean: itself, or where a graph keeps its vectors."""
    return index if isinstance(index, faiss.IndexFlatIP) else faiss.downcast_index(index.storage)


def _is_of_ours(index: Any) -> bool:
    return isinstance(index, faiss.IndexFlatIP | faiss.IndexHNSWFlat) and isinstance(_flat(index), faiss.IndexFlat)


def _vectors(index: Any) -> Floats:
    """The means in an index of either kind, in the order in which they were added: its own memory, not a copy."""
    kept = _flat(index)
    vectors: Floats = faiss.rev_swig_ptr(kept.get_xb(), kept.ntotal * kept.d).reshape(kept.ntotal, kept.d)
    return vectors


def load(data: bytes, dim: int) -> ClassMeans:
    """The means in a file whose digest was verified. Corrupt if it is not an index as `build` makes them, of `dim`."""
    try:
        whole = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    except RuntimeError as error:
        raise Corrupt(f"the class means are no faiss index: {error}") from error
    index: Any = faiss.downcast_index(whole.index) if isinstance(whole, faiss.IndexIDMap2) else None
    if not isinstance(whole, faiss.IndexIDMap2) or not _is_of_ours(index):
        over = "" if index is None else f" over {type(index).__name__}"
        raise Corrupt(
            "the class means should be a faiss IndexIDMap2 over IndexFlatIP or IndexHNSWFlat, "
            f"not {type(whole).__name__}{over}"
        )
    if {index.metric_type, _flat(index).metric_type} != {faiss.METRIC_INNER_PRODUCT}:
        raise Corrupt("the class means should be compared by inner product; the index has another metric")
    if whole.d != dim:
        raise Corrupt(f"the class means have {whole.d} dimensions; the manifest says {dim}")
    ids = tuple(faiss.vector_to_array(whole.id_map).tolist())
    if len(set(ids)) != len(ids) or not len(ids) == whole.ntotal == _flat(index).ntotal:
        raise Corrupt(f"the class means should have different ids; got {whole.ntotal} means, ids {few(ids)}")
    length = np.linalg.norm(_vectors(index), axis=1)
    if not (sound := (abs(length - 1) < 1e-3) | (length == 0)).all():
        raise Corrupt(f"the class means should be unit vectors; got lengths {few(length[~sound].tolist())}")
    return ClassMeans(ids, dim, whole, index)
