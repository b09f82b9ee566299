"""Chunked log-probabilities equal the naive formula, forward and backward, and save memory."""

import pytest
import torch

from mm_cca.adapters.base import UnifiedModel
from mm_cca.adapters.vocabulary import CodeTokens
from mm_cca.modeling.chunked_head import chunked_logps
from mm_cca.modeling.inputs import left_pad, positions
from mm_cca.modeling.logprobs import CodeLogProbs
from tests.support import naive
from tests.support.closeness import assert_close
from tests.support.largest_tensor import LargestTensor

GRID = (4, 4)
PROMPTS = ["red owl, noto style", "grinning face with big eyes, twemoji style", "a"]


@pytest.mark.parametrize("budget", [1, 50, 10**6])
@pytest.mark.parametrize("with_bias", [False, True])
def test_forward_and_gradients_equal_the_naive_formula(budget: int, with_bias: bool):
    torch.manual_seed(0)
    hidden = torch.randn(13, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    bias = torch.randn(20, requires_grad=True) if with_bias else None
    targets = torch.randint(20, (13,))
    upstream = torch.randn(13)
    inputs = [hidden, weight] + ([bias] if bias is not None else [])
    ours = chunked_logps(hidden, weight, bias, targets, budget=budget)
    expected = naive.logps(hidden, weight, bias, targets)
    assert_close(ours, expected, 1e-5)
    ours_grads = torch.autograd.grad(ours, inputs, upstream)
    expected_grads = torch.autograd.grad(expected, inputs, upstream)
    for gradient, reference in zip(ours_grads, expected_grads, strict=True):
        assert_close(gradient, reference, 1e-5)


def test_only_what_needs_a_gradient_gets_one():
    hidden = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(5, 4)
    chunked_logps(hidden, weight, None, torch.tensor([0, 1, 2])).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_bfloat16_weights_still_normalise_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8).bfloat16(), torch.randn(1000, 8).bfloat16()
    every = torch.arange(1000)
    sums = [chunked_logps(row.expand(1000, -1), weight, None, every).exp().sum() for row in hidden]
    assert_close(torch.stack(sums), torch.ones(6), 1e-4)


@pytest.mark.parametrize("whole_vocabulary", [False, True])
def test_equals_the_stock_models_logits(tiny_model: UnifiedModel, whole_vocabulary: bool):
    """Prompts of different lengths: padding on the left must not matter."""
    layout = tiny_model.layout(GRID)
    ids = tiny_model.prompt_ids(PROMPTS, GRID)
    assert len({len(row) for row in ids}) == len(ids)
    codes = torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(0))
    prompt_ids, prompt_mask = left_pad(ids, tiny_model.pad_id)
    policy = CodeLogProbs(tiny_model, layout, whole_vocabulary=whole_vocabulary)
    with torch.no_grad():
        scored = policy(prompt_ids, prompt_mask, codes)
        mapping = tiny_model.module.vocabulary_mapping
        image_ids = torch.tensor([mapping.img2bpe[c] for c in range(32)])
        expected = []
        for row, row_codes in zip(ids, codes, strict=True):
            span = layout.tokens.copy()
            span[layout.free_slots] = image_ids[row_codes].numpy()
            free = layout.free_slots.tolist()
            allowed = None if whole_vocabulary else image_ids
            expected.append(naive.span_logps(tiny_model.module, row, span.tolist(), free, allowed))
    assert_close(scored.per_code, torch.tensor(expected), 2e-5)
    assert_close(scored.logps, torch.tensor(expected).sum(dim=1), 2e-4)


def test_an_image_does_not_depend_on_its_batch(tiny_model: UnifiedModel):
    policy = CodeLogProbs(tiny_model, tiny_model.layout(GRID), whole_vocabulary=False)
    ids = tiny_model.prompt_ids(PROMPTS, GRID)
    codes = torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = policy(*left_pad(ids, tiny_model.pad_id), codes).logps
        alone = torch.cat(
            [
                policy(*left_pad([row], tiny_model.pad_id, multiple=1), row_codes[None]).logps
                for row, row_codes in zip(ids, codes, strict=True)
            ]
        )
    assert_close(together, alone, 1e-4)


@pytest.mark.parametrize("whole_vocabulary", [False, True])
def test_codes_whose_rows_are_not_in_order(
    tiny_model: UnifiedModel, monkeypatch: pytest.MonkeyPatch, whole_vocabulary: bool
):
    """A vocabulary may hold the image tokens in any order: code 0 need not be the first row."""
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    tokens = tiny_model._codes
    shuffled = tokens.ids[order]
    monkeypatch.setattr(tiny_model, "_codes", CodeTokens(shuffled, tokens.rows))
    layout = tiny_model.layout(GRID)
    (prompt,) = tiny_model.prompt_ids(PROMPTS[:1], GRID)
    codes = torch.randint(32, (1, 16), generator=torch.Generator().manual_seed(1))
    policy = CodeLogProbs(tiny_model, layout, whole_vocabulary=whole_vocabulary)
    span = layout.tokens.copy()
    span[layout.free_slots] = shuffled[codes[0]].numpy()
    allowed = None if whole_vocabulary else shuffled
    with torch.no_grad():
        ours = policy(*left_pad([prompt], tiny_model.pad_id), codes).per_code[0]
        expected = naive.span_logps(
            tiny_model.module, prompt, span.tolist(), layout.free_slots.tolist(), allowed
        )
    assert_close(ours, torch.tensor(expected), 2e-5)


def test_rows_of_a_large_head_need_memory_for_its_gradient_only():
    """32 rows of 50,000: the gradient of the slice is as large as the head, logits stay small.

    300 positions would make 15 million logits over the whole vocabulary; the head has 200,000.
    """
    head = torch.nn.Parameter(torch.randn(50_000, 4))
    hidden = torch.randn(300, 4, requires_grad=True)
    with LargestTensor() as forward:
        logps = chunked_logps(hidden, head[1000:1032], None, torch.randint(32, (300,)))
    with LargestTensor() as backward:
        logps.sum().backward()
    assert forward.largest == 300 * 32
    assert backward.largest == head.numel()
    outside = torch.cat([head.grad[:1000], head.grad[1032:]])
    assert (outside == 0).all()
    assert (head.grad[1000:1032] != 0).any()


def test_memory_does_not_grow_with_the_vocabulary():
    """200 positions, 50 image rows: no tensor's size depends on the vocabulary."""
    largest = {}
    for vocabulary in (1_000, 20_000):
        full = torch.randn(vocabulary, 4, requires_grad=True)
        hidden = torch.randn(200, 4, requires_grad=True)
        rows = full[100:150]
        with LargestTensor() as seen:
            logps = chunked_logps(hidden, rows, None, torch.randint(50, (200,)), budget=2_000)
            torch.autograd.grad(logps.sum(), [hidden, rows])
        largest[vocabulary] = seen.largest
    assert largest[1_000] == largest[20_000] <= 2_000


def test_the_whole_vocabulary_stays_within_the_budget():
    """400 positions of 5,000 rows would be 2 million logits; the budget is 20,000."""
    hidden = torch.randn(400, 4, requires_grad=True)
    weight = torch.randn(5_000, 4, requires_grad=True)
    with LargestTensor() as seen:
        logps = chunked_logps(hidden, weight, None, torch.randint(5_000, (400,)), budget=20_000)
        torch.autograd.grad(logps.sum(), [hidden, weight])
    assert seen.largest <= 20_000


def test_left_padding_and_positions():
    ids, mask = left_pad([[7, 8, 9], [5]], 0, multiple=4)
    assert ids.tolist() == [[0, 7, 8, 9], [0, 0, 0, 5]]
    assert positions(mask).tolist() == [[0, 0, 1, 2], [0, 0, 0, 0]]
