"""From rows of a step to prompts: which prompt each half sees, and which rows count as positive."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features

from mm_cca.adapters.base import UnifiedModel
from mm_cca.data.texts import TextStream
from mm_cca.data.token_cache import TokenCache
from mm_cca.data.token_shards import FEATURES, MORE_FEATURES, TEXTS
from mm_cca.training.collate import Collator, MicroBatch
from mm_cca.training.negative_texts import NegativeTexts
from mm_cca.training.schedule import Pairs
from tests.support.captions import negatives_of

CAPTIONS = ["red owl", "small waving hand", "Red  OWL"]
GRID = (4, 4)
# One pair of each sort: another caption, an equal one (but for case and space), a dropped one.
PAIRS = Pairs(
    start=6,
    rows=np.array([0, 0, 1]),
    negatives=negatives_of([[CAPTIONS[1]], [CAPTIONS[2]], [CAPTIONS[0]]]),
    variants=np.array([1, 0, 1]),
    dropped=np.array([False, False, True]),
)


def _cache(texts: Sequence[Sequence[str]] = ()) -> TokenCache:
    """Every code of an image tells its row and variant; ``texts`` are those of several columns."""
    codes = [[10 * row + variant for variant in range(2) for _ in range(16)] for row in range(3)]
    columns = {"row": [0, 1, 2], "caption": CAPTIONS, "codes": codes, "problem": [""] * 3}
    features = FEATURES
    if texts:
        columns |= {"caption": [row[0] for row in texts], TEXTS: texts}
        features = Features({**FEATURES, TEXTS: MORE_FEATURES[TEXTS]})
    return TokenCache("train", Dataset.from_dict(columns, features=features), num_variants=2)


@pytest.fixture
def collate(tiny_model: UnifiedModel) -> Collator:
    return Collator(tiny_model, _cache(), (16, 16), torch.device("cpu"), template=None)


def _prompts(batch: MicroBatch) -> list[list[int]]:
    rows = zip(*batch.prompts, strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def test_own_prompts_come_first_then_the_negatives(collate: Collator, tiny_model: UnifiedModel):
    """A dropped condition is the unconditional prompt in both halves."""
    empty = tiny_model.unconditional_ids([], GRID)
    owl, hand, same = tiny_model.prompt_ids(CAPTIONS, GRID)
    assert _prompts(collate(PAIRS)) == [owl, owl, empty, hand, same, empty]


def test_a_template_is_around_own_and_negative_captions_only(tiny_model: UnifiedModel):
    """Which captions are equal is decided without it; dropped prompts have no text at all."""
    cache = _cache()
    template, device = "Draw {prompt}!", torch.device("cpu")
    batch = Collator(tiny_model, cache, (16, 16), device, template=template)(PAIRS)
    empty = tiny_model.unconditional_ids([], GRID)
    written = ["Draw red owl!", "Draw small waving hand!", "Draw Red  OWL!"]
    owl, hand, same = tiny_model.prompt_ids(written, GRID)
    assert _prompts(batch) == [owl, owl, empty, hand, same, empty]
    assert batch.counts_as_positive.tolist() == [False, True, True]


def test_equal_captions_and_dropped_conditions_count_as_positive(collate: Collator):
    batch = collate(PAIRS)
    assert batch.counts_as_positive.tolist() == [False, True, True]
    assert batch.dropped.tolist() == [False, False, True]


def test_both_halves_hold_the_same_images(collate: Collator):
    assert collate(PAIRS).codes[:, 0].tolist() == [1, 0, 11] * 2


def test_nll_needs_the_own_prompts_only(collate: Collator, tiny_model: UnifiedModel):
    batch = collate(replace(PAIRS, negatives=NegativeTexts.none(3)))
    owl, _, _ = tiny_model.prompt_ids(CAPTIONS, GRID)
    assert _prompts(batch) == [owl, owl, tiny_model.unconditional_ids([], GRID)]
    assert batch.codes[:, 0].tolist() == [1, 0, 11]
    assert batch.counts_as_positive.tolist() == []


def test_several_negatives_come_in_blocks(collate: Collator, tiny_model: UnifiedModel):
    """Rows 0..2 own prompts, 3..5 the first negative caption of each image, 6..8 the second."""
    two = [["a", "b"], ["c", CAPTIONS[2]], ["e", "f"]]
    batch = collate(replace(PAIRS, negatives=negatives_of(two)))
    a, b, c, same = tiny_model.prompt_ids(["a", "b", "c", CAPTIONS[2]], GRID)
    empty = tiny_model.unconditional_ids([], GRID)
    assert _prompts(batch)[3:] == [a, c, empty, b, same, empty]
    assert batch.counts_as_positive.tolist() == [False, False, True, False, True, True]
    assert batch.codes[:, 0].tolist() == [1, 0, 11] * 3
    assert (batch.start, batch.num_pairs) == (6, 3)


def test_unconditional_and_texts_only_where_they_are_needed(
    tiny_model: UnifiedModel, collate: Collator
):
    assert collate(PAIRS).unconditional is None
    assert collate(PAIRS).texts is None
    cache = _cache()
    device = torch.device("cpu")
    texts = TextStream(["x y z", "owl"], seed=0)
    full = Collator(
        tiny_model, cache, (16, 16), device, template=None, with_unconditional=True, texts=texts
    )
    batch = full(PAIRS)
    assert [
        ids[mask].tolist()
        for ids, mask in zip(batch.unconditional.ids, batch.unconditional.mask, strict=True)
    ] == [tiny_model.unconditional_ids([], GRID)] * 3
    expected = tiny_model.text_ids(list(texts.at(range(6, 9))))
    assert [ids[mask].tolist() for ids, mask in zip(*batch.texts, strict=True)] == expected


def test_another_caption_of_the_image_is_no_negative(tiny_model: UnifiedModel):
    """Of several captions the drawn one is the prompt, and all count as the image's own."""
    texts = [["red owl", "an owl"], ["small waving hand", ""], ["smiling face", ""]]
    collate = Collator(tiny_model, _cache(texts), (16, 16), torch.device("cpu"), template=None)
    pairs = replace(
        PAIRS,
        columns=np.array([1, 0, 0]),
        negatives=negatives_of([["Red  OWL"], ["small waving hand"], ["red owl"]]),
        dropped=np.zeros(3, dtype=bool),
    )
    batch = collate(pairs)
    prompts = ["an owl", "red owl", "small waving hand", "Red  OWL", "small waving hand", "red owl"]
    assert _prompts(batch) == tiny_model.prompt_ids(prompts, GRID)
    assert batch.counts_as_positive.tolist() == [True, False, False]
