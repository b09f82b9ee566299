"""The plan never pairs an image with its own caption, for any captions."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_cca.errors import UserError
from mm_cca.negatives import normalise, plan

names = st.lists(st.sampled_from(["a", "b", "c", "d", "A", " b ", "e f", "e  F"]), min_size=2)
many_distinct = st.integers(2, 60).map(lambda n: [f"caption {i}" for i in range(n)])


@settings(deadline=None, max_examples=300)
@given(captions=names | many_distinct, seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_no_row_gets_its_own_caption(captions: list[str], seed: int, epoch: int):
    labels = [normalise(caption) for caption in captions]
    if len(set(labels)) < 2:
        with pytest.raises(UserError, match="two distinct captions"):
            plan(captions, seed=seed, epoch=epoch)
        return
    chosen = plan(captions, seed=seed, epoch=epoch)
    assert all(labels[i] != labels[j] for i, j in enumerate(chosen))
    if 2 * max(Counter(labels).values()) <= len(labels):
        assert sorted(chosen.tolist()) == list(range(len(captions)))


def test_two_captions_swap():
    assert plan(["a", "b"], seed=0, epoch=0).tolist() == [1, 0]


def test_a_caption_that_fills_most_rows_draws_from_all_others():
    captions = ["same"] * 900 + [f"other {i}" for i in range(100)]
    chosen = plan(captions, seed=0, epoch=0)
    assert (chosen[:900] >= 900).all()
    counts = np.bincount(chosen[:900], minlength=1000)[900:]
    assert (counts > 0).all()
    # The mean is 9; ten standard deviations above it the draw would not be uniform.
    assert counts.max() < 9 + 10 * 3


def test_the_plan_is_a_function_of_seed_and_epoch():
    captions = [f"caption {i}" for i in range(100)]
    first = plan(captions, seed=1, epoch=2)
    assert (first == plan(captions, seed=1, epoch=2)).all()
    assert (first != plan(captions, seed=1, epoch=3)).any()
    assert (first != plan(captions, seed=2, epoch=2)).any()


def test_captions_that_differ_in_case_and_space_are_one():
    with pytest.raises(UserError, match="two distinct captions"):
        plan(["An owl", "an  OWL ", "AN OWL"], seed=0, epoch=0)


def test_nothing_to_pair():
    with pytest.raises(UserError, match="no captions"):
        plan([], seed=0, epoch=0)


def test_unknown_kind():
    with pytest.raises(UserError, match="allowed: shuffle"):
        plan(["a", "b"], kind="roll", seed=0, epoch=0)


def test_one_long_caption_does_not_cost_its_length_for_every_row():
    """A numpy array of these strings takes 400 MB (4 bytes x 5,000 characters x 20,000 rows)."""
    captions = [f"caption {i}" for i in range(20_000)] + ["x" * 5_000]
    tracemalloc.start()
    plan(captions, seed=0, epoch=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6, f"{peak / 1e6:.0f} MB"


def test_a_caption_that_fills_exactly_half():
    """Every valid permutation swaps its rows with all others; the repair must find one."""
    captions = ["same"] * 500 + [f"other {i}" for i in range(500)]
    chosen = plan(captions, seed=0, epoch=0)
    assert sorted(chosen[:500].tolist()) == list(range(500, 1000))
    assert sorted(chosen[500:].tolist()) == list(range(500))
