"""Training's rows: padding at the end, no mask, and the same numbers as the naive way with one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import Cache

from mm_cca import load_adapter
from mm_cca.adapters.base import UnifiedModel
from mm_cca.adapters.emu3 import Emu3
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import LossConfig
from mm_cca.config.shipped import ADAPTERS
from mm_cca.modeling.inputs import every_position, left_pad, padding_last, right_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.text_nll import text_nll
from mm_cca.training.collate import MicroBatch
from mm_cca.training.losses import code_terms_of, loss_of
from mm_cca.training.reference import CopyReference
from tests.support.closeness import assert_close
from tests.support.reference_training import ReferenceTraining
from tests.support.third_party import THIRD_PARTY, checkpoint_paths

GRID = (4, 4)
PROMPTS = ["red owl, noto style", "grinning face with big eyes, twemoji style", "a"]


def _codes(model: UnifiedModel, count: int = len(PROMPTS)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.codebook_size, (count, 16), generator=generator)


def test_right_padding_by_hand():
    ids, mask = right_pad([[7, 8, 9], [5]], 0, multiple=4)
    assert ids.tolist() == [[7, 8, 9, 0], [5, 0, 0, 0]]
    assert mask.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_padding_is_moved_to_the_end():
    """Two rows of a prompt padded on the left and on the right, each before a span of two."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()
    assert padding_last(mask).tolist() == [[2, 3, 4, 0, 1], [0, 3, 4, 1, 2], [0, 1, 2, 3, 4]]
    seen, places = every_position(torch.zeros(2, 3, 7))
    assert seen.tolist() == [[True] * 3] * 2
    assert places.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("name", [*ADAPTERS, THIRD_PARTY])
def test_every_family_reaches_its_kernel_without_a_mask(
    name: str, folders: Path, monkeypatch: pytest.MonkeyPatch
):
    """The decoder's attention gets ``is_causal`` and no mask, for images and for plain texts.

    Prompts differ in length, so that a mask would have been needed with padding on the left.
    """
    model = load_adapter(name, **checkpoint_paths(folders, name))
    model.module.eval()
    calls: list[tuple[bool, bool]] = []
    kernel = F.scaled_dot_product_attention

    def seen(*args: Any, attn_mask: Any = None, is_causal: bool = False, **more: Any) -> Any:
        calls.append((attn_mask is None, is_causal))
        return kernel(*args, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    rows = model.prompt_ids(PROMPTS, GRID)
    assert len({len(row) for row in rows}) > 1
    policy = CodeLogProbs(model, model.layout(GRID), whole_vocabulary=False).eval()
    prompts = right_pad(rows, model.pad_id)
    texts = right_pad(model.text_ids(PROMPTS), model.pad_id)
    with torch.no_grad():
        policy(*prompts, _codes(model), text_ids=texts.ids, text_mask=texts.mask)
        layers = len(model._decoder.layers)
        assert calls == [(True, True)] * (2 * layers)
        calls.clear()
        padded = left_pad(rows, model.pad_id)
        model.hidden_states(
            model.embed_text(padded.ids), padded.mask, padded.mask.long().cumsum(1) - 1
        )
    assert calls == [(False, False)] * layers, "the test would not notice a mask"


def test_the_side_of_the_padding_does_not_matter(tiny_model: UnifiedModel):
    policy = CodeLogProbs(tiny_model, tiny_model.layout(GRID), whole_vocabulary=False)
    rows, codes = tiny_model.prompt_ids(PROMPTS, GRID), _codes(tiny_model)
    texts = tiny_model.text_ids(PROMPTS)
    with torch.no_grad():
        one, other = (
            policy(*pad(rows, tiny_model.pad_id), codes).per_code for pad in (left_pad, right_pad)
        )
        assert torch.equal(one, other)
        scores = [
            text_nll(tiny_model, *pad(texts, tiny_model.pad_id)) for pad in (left_pad, right_pad)
        ]
    assert torch.equal(*scores)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("objective", ["nll", "cca", "cca_code", "gft"])
def test_losses_and_gradients_equal_left_padding_with_a_mask(
    tiny_model: UnifiedModel, objective: str, threads: int
):
    """Against full logits of rows padded on the left, with a model that has left its reference."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    count, layout = 2, tiny_model.layout(GRID)
    terms = LossTerms.of(
        LossConfig(objective=objective, scale=3.0, beta=0.4, beta_codes=None, whole_vocabulary=True)
    )
    policy = CodeLogProbs(tiny_model, layout, whole_vocabulary=True)
    reference = CopyReference(policy)
    naive = ReferenceTraining(tiny_model, layout, beta=0.4, scale=3.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tiny_model._decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    rows = tiny_model.prompt_ids(PROMPTS[:count], GRID)
    unconditional = [tiny_model.unconditional_ids(row, GRID) for row in rows]
    codes = _codes(tiny_model, count)
    if objective == "cca":
        rows += tiny_model.prompt_ids(PROMPTS[1:], GRID)
    none, pad_id = torch.zeros(count, dtype=torch.bool), tiny_model.pad_id
    batch = MicroBatch(
        0,
        count,
        right_pad(rows, pad_id),
        codes.repeat(len(rows) // count, 1),
        none,
        none[: len(rows) - count],
        right_pad(unconditional, pad_id),
    )
    ref = reference.scores(batch) if terms.needs_reference else None
    base = (
        reference.base_states(batch, conditional=terms.needs_conditional_base)
        if terms.needs_base
        else None
    )
    scored = policy(*batch.prompts, batch.codes, base=base, code_terms=code_terms_of(terms, 3.0))
    loss, _ = loss_of(terms, batch, scored, ref)
    expected = naive.loss(objective, rows, unconditional, codes)
    trained = [p for p in tiny_model._decoder.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(value, trained) for value in (loss, expected))
    torch.set_num_threads(before)
    assert_close(loss, expected, 2e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, 1e-5)


class OwnMask(Emu3):
    """An adapter that turns the mask into additive numbers by itself, and knows no rows without."""

    def hidden_states(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        length = embeds.shape[1]
        sees = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None, :]
        additive = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
        return super().hidden_states(embeds, additive, position_ids, cache)


def test_an_adapter_that_always_wants_a_mask_still_gets_one(tiny_model: UnifiedModel):
    rows, codes = tiny_model.prompt_ids(PROMPTS, GRID), _codes(tiny_model)
    prompts = right_pad(rows, tiny_model.pad_id)
    other = OwnMask(tiny_model.module, tiny_model._processor)
    with torch.no_grad():
        ours, theirs = (
            CodeLogProbs(model, model.layout(GRID), whole_vocabulary=False)(*prompts, codes)
            for model in (tiny_model, other)
        )
    assert_close(ours.per_code, theirs.per_code, 1e-5)
