"""Few class means are all compared; of very many, a graph finds the nearest nearly always."""

import faiss
import numpy as np
import pytest

from lifelist.exporter import index
from lifelist.exporter.errors import Corrupt
from lifelist.exporter.fold import unit

COUNT, DIM = 3000, 16


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.setattr(index, "MOST_EXACT", COUNT * DIM - 1)
    return unit(np.random.default_rng(0).normal(size=(COUNT, DIM)))


def test_beyond_the_bound_the_nearest_means_are_found_nearly_always(means: np.ndarray) -> None:
    ids = range(5, 5 + COUNT)
    many, few = index.load(index.build(ids, means), DIM), index.load(index.build(ids[1:], means[1:]), DIM)
    assert (many.exact, few.exact) == (False, True)
    assert many.ids == tuple(ids)
    assert np.allclose(many.means(), means, atol=1e-6)  # so a class can be added to them
    queries = unit(means[::10] + np.random.default_rng(1).normal(size=(COUNT // 10, DIM)) * 0.1)
    similar = queries @ means.T
    scores, found = many.nearest(queries, 5)
    wanted = np.argsort(-similar, axis=1)[:, :5] + 5
    assert (found[:, 0] == wanted[:, 0]).mean() > 0.98
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, wanted, strict=True)]) > 0.95
    assert scores == pytest.approx(np.take_along_axis(similar, found - 5, axis=1), abs=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()  # best first


def test_a_graph_of_another_distance_is_refused() -> None:
    made = faiss.IndexIDMap2(faiss.IndexHNSWFlat(DIM, 8))
    made.add_with_ids(unit(np.random.default_rng(0).normal(size=(20, DIM))), np.arange(20))
    with pytest.raises(Corrupt, match="compared by inner product"):
        index.load(bytes(faiss.serialize_index(made)), DIM)
