"""Class means in a faiss index: which class is nearest, by stable class id.

An index is built whole, from all means, and never changed: faiss allows no search beside an addition. A version with
one more class brings an index of its own.

Up to MOST_EXACT numbers every mean is compared, which is exact and as quick as anything. Beyond, a graph is walked
(HNSW; Malkov & Yashunin 2018) that finds nearly always the same; `lifelist bench index` measures both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from lifelist.exporter.errors import Corrupt
from lifelist.exporter.fold import Floats, unit

MOST_EXACT = 2**22  # numbers in all means together: 65,536 classes of 64 dimensions
NEIGHBOURS, BUILD_WIDTH, SEARCH_WIDTH = 32, 100, 128  # of the graph: edges of a node, and how widely it is searched


@dataclass(frozen=True, slots=True)
class ClassMeans:
    """The means of all classes of a version, ready to be searched. Safe to use from several threads at once."""

    ids: tuple[int, ...]  # class ids, as they were given
    dim: int
    index: Any  # faiss.IndexIDMap2 over faiss.IndexFlatIP, or over faiss.IndexHNSWFlat

    @property
    def exact(self) -> bool:
        """Whether every mean is compared; else the nearest are found nearly always."""
        return isinstance(faiss.downcast_index(self.index.index), faiss.IndexFlatIP)

    def nearest(self, embedding: Floats, top_k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Cosine similarities and class ids of the nearest means, best first: N×k each, k at most the class count.

        embedding: N×dim float32, unit rows. A zero row is like nothing: its similarities are all 0.
        """
        scores, ids = self.index.search(np.ascontiguousarray(embedding), min(top_k, len(self.ids)))
        return scores, ids

    def means(self) -> Floats:
        """The unit means, len(ids)×dim float32, in the order of `ids`."""
        return _vectors(self.index)


def build(ids: Sequence[int], means: npt.ArrayLike) -> bytes:
    """A file of class means. ids: C class ids, all different; means: C×D, made unit here (a zero row stays zero)."""
    rows = unit(means)
    if rows.ndim != 2 or len(rows) != len(ids) or len(set(ids)) != len(ids) or not np.isfinite(rows).all():
        raise ValueError(
            f"need one finite mean for each of {len(ids)} different class ids; got {rows.shape}, ids {ids}"
        )
    index = faiss.IndexIDMap2(flat(rows.shape[1]) if rows.size <= MOST_EXACT else graph(rows.shape[1]))
    index.add_with_ids(rows, np.asarray(ids, np.int64))
    return bytes(faiss.serialize_index(index))


def flat(dim: int) -> Any:
    """An empty index that compares every mean."""
    return faiss.IndexFlatIP(dim)


def graph(dim: int) -> Any:
    """An empty index that walks a graph of near means."""
    index = faiss.IndexHNSWFlat(dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_WIDTH, SEARCH_WIDTH
    return index


def _vectors(index: Any) -> Floats:
    """The means in an index of either kind, in the order in which they were added."""
    vectors: Floats = index.index.reconstruct_n(0, index.ntotal)
    return vectors


def load(data: bytes, dim: int) -> ClassMeans:
    """The means in a file whose digest was verified. Corrupt if it is not an index as `build` makes them, of `dim`."""
    try:
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    except RuntimeError as error:
        raise Corrupt(f"the class means are no faiss index: {error}") from error
    kinds = faiss.IndexFlatIP, faiss.IndexHNSWFlat
    if not isinstance(index, faiss.IndexIDMap2) or not isinstance(inner := faiss.downcast_index(index.index), kinds):
        raise Corrupt(f"the class means should be a faiss IndexIDMap2 over IndexFlatIP, not {type(index).__name__}")
    if inner.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise Corrupt("the class means should be compared by inner product; the index has another metric")
    if index.d != dim:
        raise Corrupt(f"the class means have {index.d} dimensions; the manifest says {dim}")
    ids = tuple(faiss.vector_to_array(index.id_map).tolist())
    length = np.linalg.norm(_vectors(index), axis=1)
    if len(set(ids)) != len(ids) or len(ids) != index.ntotal or not ((abs(length - 1) < 1e-3) | (length == 0)).all():
        raise Corrupt(f"the class means should be unit vectors with different ids; got ids {ids}, lengths {length}")
    return ClassMeans(ids, dim, index)
