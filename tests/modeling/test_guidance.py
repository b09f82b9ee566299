"""Guidance distillation: values and gradients against a naive reference, and memory."""

import pytest
import torch

from mm_cca.modeling.guidance import BaseStates, guided_kl
from tests.support import naive
from tests.support.closeness import assert_close
from tests.support.largest_tensor import LargestTensor

B, N, D, K = 3, 5, 4, 11


def _parts(with_bias: bool) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = [normal(B, N, D), normal(K, D), normal(B, N, D), normal(B, N, D), normal(K, D)]
    biases = (normal(K), normal(K)) if with_bias else (None, None)
    return tensors, *biases


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("budget", [1, 3 * K, 10_000])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_value_and_gradient_equal_the_naive_ones(with_bias: bool, budget: int, scale: float):
    (states, weight, cond, uncond, ref_weight), bias, ref_bias = _parts(with_bias)
    learned = [t.requires_grad_() for t in (states, weight, bias) if t is not None]
    base = BaseStates(cond, uncond, ref_weight, ref_bias)
    ours = guided_kl(states, weight, bias, base, scale=scale, budget=budget)
    expected = naive.guided_kl(states, weight, bias, cond, uncond, ref_weight, ref_bias, scale)
    assert_close(ours, expected, 1e-4)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    ours_grads = torch.autograd.grad(ours, learned, upstream)
    expected_grads = torch.autograd.grad(expected, learned, upstream)
    for gradient, reference in zip(ours_grads, expected_grads, strict=True):
        assert_close(gradient, reference, 1e-4)


def test_kl_to_the_unchanged_base_is_zero():
    """At scale 1 the guided base is the base; the head is shared, as with a LoRA."""
    (states, weight, _, uncond, _), _, _ = _parts(False)
    kl = guided_kl(states, weight, None, BaseStates(states, uncond), scale=1.0)
    assert_close(kl, torch.zeros(B), 1e-5)


def test_a_dropped_condition_is_not_guided():
    """With the unconditional prompt in both passes, every scale gives the base."""
    (states, weight, cond, _, _), _, _ = _parts(False)
    kls = [guided_kl(states, weight, None, BaseStates(cond, cond), scale=s) for s in (1.0, 5.0)]
    assert_close(kls[0], kls[1], 1e-4)


def test_no_tensor_is_larger_than_the_budget():
    """200 positions of 500 codes would be 100,000 logits; the budget is 5,000."""
    hidden = torch.randn(10, 20, 4, requires_grad=True)
    weight = torch.randn(500, 4)
    base = BaseStates(torch.randn(10, 20, 4), torch.randn(10, 20, 4), weight)
    with LargestTensor() as seen:
        guided_kl(hidden, weight, None, base, scale=3.0, budget=5_000).sum().backward()
    assert seen.largest <= 5_000
