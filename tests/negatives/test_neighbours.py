"""Vectors, neighbours and hard candidates against plain numpy and scikit-learn."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from mm_cca.errors import UserError
from mm_cca.negatives import neighbours
from mm_cca.negatives.embed import embed
from mm_cca.negatives.guard import contains, make_guard
from mm_cca.negatives.hard import find_candidates
from mm_cca.negatives.neighbours import make_search
from mm_cca.negatives.vectors import DenseVectors, Vectors, on_grid
from tests.support.captions import full, sentences


def dense(count: int, features: int = 24) -> DenseVectors:
    return DenseVectors(on_grid(np.random.default_rng(0).normal(size=(count, features))))


def naive_nearest(cosines: np.ndarray, row: int, limit: float) -> list[int]:
    """All other captions up to the limit; nearest first, ties by the lower index."""
    rounded = np.rint(cosines[row] * neighbours.STEPS)
    order = sorted(range(len(cosines)), key=lambda i: (-rounded[i], i))
    return [i for i in order if i != row and cosines[row, i] <= limit]


def test_the_grid_changes_cosines_little_and_makes_sums_exact():
    raw = np.random.default_rng(1).normal(size=(300, 384))
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    vectors = DenseVectors(on_grid(raw))
    cosines = full(vectors)
    assert np.abs(cosines - (unit @ unit.T).clip(-1, 1)).max() < 1e-3
    exact = vectors.matrix.astype(np.float64)
    assert (cosines == (exact @ exact.T).clip(-1, 1)).all()
    left, right = np.arange(300), np.arange(300)[::-1]
    assert (vectors.cosines(left, right) == cosines[left, right]).all()
    assert on_grid(np.zeros((1, 3))).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("make", [lambda: embed(sentences(150), "tfidf"), lambda: dense(150)])
def test_exact_neighbours_are_those_of_a_full_sort(make, limit: float | None):
    vectors = make()
    search = make_search(vectors, limit)
    cosines = full(vectors)
    rows = np.arange(3, 150, 7)
    ids, near_cosines = search.nearest(rows, 40)
    for row, near, values in zip(rows.tolist(), ids.tolist(), near_cosines, strict=True):
        expected = naive_nearest(cosines, row, np.inf if limit is None else limit)[:40]
        assert near == expected + [-1] * (40 - len(expected))
        assert values[: len(expected)] == pytest.approx(cosines[row, expected], abs=1e-6)


def test_exact_neighbours_are_as_near_as_scikit_learns():
    vectors = embed(sentences(200), "tfidf")
    theirs = NearestNeighbors(n_neighbors=11, metric="cosine", algorithm="brute")
    distances, _ = theirs.fit(vectors.matrix).kneighbors(vectors.matrix)
    _, cosines = make_search(vectors, None).nearest(np.arange(200), 10)
    assert cosines == pytest.approx(1 - distances[:, 1:], abs=1e-5)


def test_ties_go_to_the_lower_index():
    vectors = DenseVectors(on_grid(np.array([[1.0, 0]] * 5 + [[0, 1]] * 2)))
    ids, _ = make_search(vectors, None).nearest(np.array([2, 6]), 3)
    assert ids.tolist() == [[0, 1, 3], [5, 0, 1]]


def recall(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> float:
    rows = np.arange(len(vectors))
    exact, exact_cosines = make_search(vectors, 0.95).nearest(rows, 16)
    monkeypatch.setattr(neighbours, "APPROXIMATE_ABOVE", 100)
    ids, cosines = make_search(vectors, 0.95).nearest(rows, 16)
    assert ids.shape == exact.shape
    assert (ids != rows[:, None]).all()
    assert (cosines[:, :-1] >= cosines[:, 1:] - 1e-6).all()
    assert cosines.max() <= 0.95
    # Any neighbour as near as the last exact one counts, as ties have no unique order.
    correct = (ids >= 0) & (cosines >= exact_cosines[:, -1:] - 1e-6)
    return float(correct.sum() / (exact >= 0).sum())


def test_approximate_neighbours_of_dense_vectors(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("faiss")
    assert recall(dense(3000, 16), monkeypatch) > 0.9


def test_approximate_neighbours_of_tfidf(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("faiss")
    assert recall(embed(sentences(3000), "tfidf"), monkeypatch) > 0.5


def test_approximate_neighbours_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("faiss")
    from threadpoolctl import threadpool_limits

    monkeypatch.setattr(neighbours, "APPROXIMATE_ABOVE", 100)
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            vectors = embed(sentences(1500), "tfidf")
            results.append(make_search(vectors, 0.95).nearest(np.arange(1500), 16))
    assert (results[0][0] == results[1][0]).all()
    assert (results[0][1] == results[1][1]).all()


@pytest.mark.parametrize(
    ("module", "act"),
    [
        ("faiss", lambda: make_search(dense(150), None)),
        ("sentence_transformers", lambda: embed(["a", "b"], "sentence-transformers:x")),
    ],
)
def test_a_missing_package_is_named_with_its_extra(module, act, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "APPROXIMATE_ABOVE", 100)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r'pip install "mm-cca\[hard\]"'):
        act()


captions = st.lists(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4).map(" ".join),
    min_size=2,
    max_size=25,
    unique=True,
).map(sorted)


@settings(deadline=None, max_examples=60)
@given(texts=captions, limit=st.sampled_from([None, 0.4, 0.95]), count=st.integers(1, 6))
def test_candidates_are_the_first_valid_neighbours(
    texts: list[str], limit: float | None, count: int
):
    vectors = embed(texts, "tfidf")
    guard = make_guard(texts, vectors, limit)
    ids = find_candidates(make_search(vectors, limit), guard, count, 1).ids
    cosines = full(vectors)
    for row, candidates in enumerate(ids.tolist()):
        expected = [
            i
            for i in naive_nearest(cosines, row, np.inf if limit is None else limit)
            if not contains(guard.words[row], guard.words[i]) and cosines[row, i] > 0
        ][:count]
        assert candidates == expected + [-1] * (count - len(expected))


def test_candidates_behind_many_that_are_contained():
    """200 longer captions are nearer to "owl" than the first valid one."""
    texts = sorted(
        ["owl", "red owl", *(f"owl {i}" for i in range(200)), "b owl-like c", "owl-like"]
    )
    vectors = embed(texts, "tfidf")
    guard = make_guard(texts, vectors, None)
    ids = find_candidates(make_search(vectors, None), guard, 2, 1).ids
    assert ids[texts.index("owl")].tolist() == [-1, -1]
    number = texts.index("owl 7")
    candidates = [texts[i] for i in ids[number]]
    assert all(text.startswith("owl ") and text != "owl 7" for text in candidates)


def test_a_search_is_widened_behind_many_that_are_contained():
    """30 longer captions are nearer than the only valid one; the first search returns 18."""
    texts = sorted(["red owl", *(f"red owl {i}" for i in range(30)), "far owl in red snow"])
    vectors = embed(texts, "tfidf")
    guard = make_guard(texts, vectors, None)
    ids = find_candidates(make_search(vectors, None), guard, 1, 1).ids
    assert texts[ids[texts.index("red owl"), 0]] == "far owl in red snow"


def test_the_index_excludes_the_row_itself(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbours, "APPROXIMATE_ABOVE", 100)
    rows = np.arange(300)
    ids, _ = make_search(dense(300), None).nearest(rows, 5)
    assert (ids != rows[:, None]).all()
    assert (ids >= 0).all()
