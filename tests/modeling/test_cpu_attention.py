"""Attention of training on a CPU: bit by bit that of PyTorch, and only where it is meant."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mm_cca.modeling import cpu_attention
from mm_cca.modeling.cpu_attention import SHORT, causal_attention, training_attention
from tests.support.closeness import CPU, assert_close

CAUSAL: Any = SimpleNamespace(is_causal=True)


def _inputs(dtype: torch.dtype, length: int = 21) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(3, length, 4, 8).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)
    ]


def _naive(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[B, H, L, d] -> [B, L, H, d], token by token."""
    rows = []
    for place in range(query.shape[2]):
        seen = key[:, :, : place + 1]
        scores = (query[:, :, place, None] * seen).sum(-1) / query.shape[-1] ** 0.5
        rows.append((scores.softmax(-1)[..., None] * value[:, :, : place + 1]).sum(2))
    return torch.stack(rows, dim=1)


def test_it_equals_the_naive_formula():
    inputs = _inputs(torch.float32)
    assert_close(causal_attention(CAUSAL, *inputs, None)[0], _naive(*inputs), 1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_equals_pytorchs_matrix_products_to_the_last_bit(
    dtype: torch.dtype, autocast: bool, threads: int, scaling: float | None
):
    before, inputs = torch.get_num_threads(), _inputs(dtype)
    torch.set_num_threads(threads)
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), sdpa_kernel(SDPBackend.MATH):
        for attention in (causal_attention, sdpa_attention_forward):
            seen, _ = attention(CAUSAL, *inputs, None, scaling=scaling)
            slope = torch.linspace(-1, 1, seen.numel()).view_as(seen).to(seen.dtype)
            found.append((seen, *torch.autograd.grad(seen, inputs, slope)))
    torch.set_num_threads(before)
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_what_is_not_plain_causal_attention_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        cpu_attention, "sdpa_attention_forward", lambda *args, **more: calls.append(args)
    )
    query, key, value = _inputs(torch.float32)
    mask = torch.ones(3, 1, 21, 21, dtype=torch.bool)
    causal_attention(CAUSAL, query, key, value, mask)
    causal_attention(CAUSAL, query, key, value, None, dropout=0.1)
    causal_attention(CAUSAL, query, key, value, None, is_causal=False)
    causal_attention(CAUSAL, query, key[:, :2], value[:, :2], None)
    causal_attention(CAUSAL, query[:, :, -1:], key, value, None)
    encoder: Any = SimpleNamespace(is_causal=False)
    causal_attention(encoder, query, key, value, None)
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("num_codes", "half", "ours"),
    [(SHORT, True, True), (SHORT + 1, True, False), (4, False, False)],
)
def test_only_short_images_in_half_precision(num_codes: int, half: bool, ours: bool):
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert before is not causal_attention
    with training_attention(CPU, num_codes, half=half):
        assert (ALL_ATTENTION_FUNCTIONS["sdpa"] is causal_attention) == ours
        with pytest.raises(ZeroDivisionError), training_attention(CPU, num_codes, half=half):
            _ = 1 / 0
        assert (ALL_ATTENTION_FUNCTIONS["sdpa"] is causal_attention) == ours
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with training_attention(torch.device("cuda"), 4, half=True):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_the_choice_holds_inside_the_context():
    """In it, other calls of PyTorch's attention take matrix products too; after it, none must."""
    query, key, value = (x.detach() for x in _inputs(torch.bfloat16))
    with training_attention(CPU, 4, half=True):
        inside = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.equal(
            inside, F.scaled_dot_product_attention(query, key, value, is_causal=True)
        )
