"""From rows of a step to prompts: which prompt each half sees, and which rows count as positive."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mm_cca.adapters.base import UnifiedModel
from mm_cca.batches import Pairs
from mm_cca.collate import Collator, MicroBatch

CAPTIONS = ["red owl", "small waving hand", "Red  OWL"]
GRID = (4, 4)
# One pair of each sort: another caption, an equal one (but for case and space), a dropped one.
PAIRS = Pairs(
    rows=np.array([0, 0, 1]),
    negatives=np.array([1, 2, 0]),
    variants=np.array([1, 0, 1]),
    dropped=np.array([False, False, True]),
)


def _codes(rows: torch.Tensor, variants: torch.Tensor) -> torch.Tensor:
    """Every code of an image tells its row and variant."""
    return (10 * rows + variants)[:, None].expand(-1, 16)


@pytest.fixture
def collate(tiny_model: UnifiedModel) -> Collator:
    cache = SimpleNamespace(captions=CAPTIONS, codes=_codes)
    return Collator(tiny_model, cache, (16, 16), torch.device("cpu"))


def _prompts(batch: MicroBatch) -> list[list[int]]:
    rows = zip(batch.prompt_ids, batch.prompt_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def test_own_prompts_come_first_then_the_others(collate: Collator, tiny_model: UnifiedModel):
    """A dropped condition is the unconditional form in both halves."""
    empty = tiny_model.unconditional_ids([], GRID)
    owl, hand, same = tiny_model.prompt_ids(CAPTIONS, GRID)
    assert _prompts(collate(PAIRS, with_negatives=True)) == [owl, owl, empty, hand, same, empty]


def test_equal_captions_and_dropped_conditions_count_as_positive(collate: Collator):
    batch = collate(PAIRS, with_negatives=True)
    assert batch.counts_as_positive.tolist() == [False, True, True]
    assert batch.dropped.tolist() == [False, False, True]


def test_both_halves_hold_the_same_images(collate: Collator):
    assert collate(PAIRS, with_negatives=True).codes[:, 0].tolist() == [1, 0, 11] * 2


def test_nll_needs_the_own_prompts_only(collate: Collator, tiny_model: UnifiedModel):
    batch = collate(PAIRS, with_negatives=False)
    owl, _, _ = tiny_model.prompt_ids(CAPTIONS, GRID)
    assert _prompts(batch) == [owl, owl, tiny_model.unconditional_ids([], GRID)]
    assert batch.codes[:, 0].tolist() == [1, 0, 11]
