"""Few class means are all compared; of very many, a graph finds the nearest nearly always."""

from typing import Any

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
    wanted = np.argsort(-similar, axis=1)[:, :5]
    assert (found[:, 0] == wanted[:, 0]).mean() > 0.98
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, wanted, strict=True)]) > 0.95
    assert scores == pytest.approx(np.take_along_axis(similar, found, axis=1), abs=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()  # best first


def test_a_graph_of_another_distance_is_refused() -> None:
    made = faiss.IndexIDMap2(faiss.IndexHNSWFlat(DIM, 8))
    made.add_with_ids(unit(np.random.default_rng(0).normal(size=(20, DIM))), np.arange(20))
    with pytest.raises(Corrupt, match="compared by inner product"):
        index.load(bytes(faiss.serialize_index(made)), DIM)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT), "ScalarQ"),
        (faiss.IndexHNSWSQ(DIM, faiss.ScalarQuantizer.QT_8bit, 8, faiss.METRIC_INNER_PRODUCT), "HNSWSQ"),
    ],
)
def test_an_index_of_another_kind_is_refused_with_the_kinds_that_are_right(inner: Any, said: str) -> None:
    rows = unit(np.random.default_rng(0).normal(size=(20, DIM)))
    inner.train(rows)
    for made, what in ((faiss.IndexIDMap2(inner), f"IndexIDMap2 over Index{said}"), (inner, f"Index{said}")):
        with pytest.raises(Corrupt, match=f"over IndexFlatIP or IndexHNSWFlat, not {what}"):
            index.load(bytes(faiss.serialize_index(made)), DIM)


@pytest.mark.parametrize("more", [1, 40])
def test_more_classes_join_a_graph_without_building_it_anew(means: np.ndarray, more: int) -> None:
    before = index.load(index.build(range(COUNT), means), DIM)
    added = unit(np.random.default_rng(2).normal(size=(more, DIM)))
    after = index.load(index.extended(before, range(COUNT, COUNT + more), added), DIM)
    assert (len(before.ids), after.ids, after.exact) == (COUNT, tuple(range(COUNT + more)), False)
    edges = faiss.vector_to_array(before.index.hnsw.neighbors), faiss.vector_to_array(after.index.hnsw.neighbors)
    kept = edges[1][: len(edges[0])] == edges[0]
    assert 1 - 0.01 * more < kept.mean() < 1  # a graph that was built anew would have others everywhere
    scores, rows = after.nearest(added, 1)
    assert rows[:, 0].tolist() == list(range(COUNT, COUNT + more))
    assert scores[:, 0] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match=r"need ids of further classes; got \[7\]"):
        index.extended(before, [7], added[:1])


def test_a_class_more_than_may_all_be_compared_makes_a_graph(means: np.ndarray) -> None:
    before = index.load(index.build(range(COUNT - 1), means[1:]), DIM)
    after = index.load(index.extended(before, [COUNT], means[:1]), DIM)
    assert (before.exact, after.exact) == (True, False)
    assert after.means() == pytest.approx(np.concatenate([means[1:], means[:1]]), abs=1e-6)


def test_an_error_lists_a_few_of_a_million_ids() -> None:
    with pytest.raises(ValueError, match=r"ids \[0, 1, 2, 3, 4, 5, 6, 7\] and 999,992 more$"):
        index.build(range(1_000_000), np.zeros((1, DIM)))
    twice = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
    twice.add_with_ids(np.zeros((9999, DIM), np.float32), np.zeros(9999, np.int64))
    long = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
    long.add_with_ids(np.ones((9999, DIM), np.float32), np.arange(9999))
    for made, said in ((twice, r"different ids; .* and 9,991 more"), (long, r"got lengths \[4\.0, .* and 9,991 more")):
        with pytest.raises(Corrupt, match=said) as error:
            index.load(bytes(faiss.serialize_index(made)), DIM)
        assert len(str(error.value)) < 200
