"""Which captions are not true negatives, and what is drawn instead."""

import numpy as np
import pytest

from mm_cca.negatives import redraw as redrawing
from mm_cca.negatives.captions import distinct, key_of, spaced_words
from mm_cca.negatives.guard import CONTAINED, FINE, IDENTICAL, SIMILAR, contains, make_guard
from mm_cca.negatives.hard import draw
from mm_cca.negatives.vectors import DenseVectors, on_grid


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


def test_draws_are_uniform_over_the_unused_candidates():
    keys = np.array([key_of(text) for text in "abcd"], dtype=np.uint64)
    ids = np.array([[3, 1, 0, -1]] * 300)
    uniform = (np.arange(300) + 0.5) / 300
    none_used = np.empty((300, 0), np.uint64)
    assert np.bincount(draw(ids, keys, none_used, uniform)).tolist() == [100, 100, 0, 100]
    used = np.tile(keys[[1]], (300, 1))
    assert np.bincount(draw(ids, keys, used, uniform)).tolist() == [150, 0, 0, 150]
    all_used = np.tile(keys[[0, 1, 3]], (300, 1))
    assert np.bincount(draw(ids, keys, all_used, uniform)).tolist() == [100, 100, 0, 100]


@pytest.mark.parametrize("tries", [0, 16])
def test_a_redraw_repeats_only_if_there_is_no_other(tries: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(redrawing, "TRIES", tries)
    groups = distinct(["a", "b", "c"] * 50)
    guard = make_guard(groups.texts, None, None)
    keys = np.array([key_of(text) for text in groups.texts], dtype=np.uint64)
    rows = np.arange(0, 150, 3)
    used = np.tile(keys[[1]], (50, 1))
    drawn = redrawing.redraw(groups, guard, rows, keys, used, np.random.default_rng(0))
    assert set(groups.labels[drawn].tolist()) == {2}
    used = np.tile(keys[[1, 2]], (50, 1))
    drawn = redrawing.redraw(groups, guard, rows, keys, used, np.random.default_rng(0))
    assert set(groups.labels[drawn].tolist()) == {1, 2}
