"""Texts in one piece of memory are those that were packed, and sort as strings do."""

from hypothesis import given
from hypothesis import strategies as st

from mm_cca.negatives.packed import PackedTexts

# Also halves of surrogate pairs, which Python's strings may hold and UTF-8 may not.
texts = st.lists(st.text(st.characters(exclude_categories=()), max_size=4), max_size=12)


@given(texts)
def test_packed_texts_are_the_texts(given_texts: list[str]):
    packed = PackedTexts.of(given_texts)
    assert list(packed) == packed[:] == given_texts
    assert packed[1::2] == given_texts[1::2]
    assert [packed[-i] for i in range(1, len(packed) + 1)] == given_texts[::-1]


@given(texts)
def test_distinct_texts_are_sorted_by_code_point(given_texts: list[str]):
    own, places = PackedTexts.of(given_texts).sorted_distinct()
    assert list(own) == sorted(set(given_texts))
    assert [own[i] for i in places.tolist()] == given_texts
