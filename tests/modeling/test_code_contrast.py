"""The contrast code by code: values, gradients, limits, its optimum, and memory."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from mm_cca.modeling.code_contrast import code_contrast, code_contrast_loss
from mm_cca.modeling.guidance import BaseStates, guide
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


CODES = torch.randint(K, (B, N), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("budget", [1, 3 * K, 10_000])
@pytest.mark.parametrize(("beta", "lambda_"), [(0.7, 1.0), (2.0, 0.3)])
def test_value_and_gradient_equal_the_naive_ones(
    with_bias: bool, budget: int, beta: float, lambda_: float
):
    (states, weight, cond, uncond, ref_weight), bias, ref_bias = _parts(with_bias)
    learned = [t.requires_grad_() for t in (states, weight, bias) if t is not None]
    base = BaseStates(cond, uncond, ref_weight, ref_bias)
    constants = {"beta": beta, "lambda_": lambda_}
    ours = code_contrast(states, weight, bias, base, CODES, **constants, budget=budget)
    loss, positive, negative = naive.code_contrast(
        states, weight, bias, cond, uncond, ref_weight, ref_bias, CODES, **constants
    )
    assert_close(ours.loss, loss, 1e-5)
    assert_close(ours.positive_gap, positive.detach(), 1e-5)
    assert_close(ours.negative_gap, negative.detach(), 1e-5)
    upstream = torch.randn(B, N, generator=torch.Generator().manual_seed(2))
    ours_grads = torch.autograd.grad(ours.loss, learned, upstream)
    expected_grads = torch.autograd.grad(loss, learned, upstream)
    for actual, expected in zip(ours_grads, expected_grads, strict=True):
        assert_close(actual, expected, 1e-4)


def test_by_hand():
    """One position, two codes, heads that are the logits: p = (3/4, 1/4), base (1/2, 1/2)."""
    states = torch.tensor([[[math.log(3.0), 0.0]]])
    identity = torch.eye(2)
    base = BaseStates(torch.zeros(1, 1, 2), torch.tensor([[[0.0, math.log(4.0)]]]), identity)
    found = code_contrast(states, identity, None, base, torch.tensor([[0]]), beta=1.0, lambda_=0.5)
    # gap = (log 3/2, log 1/2), u = (1/5, 4/5); -log s(g) = log(1 + exp(-g))
    expected = math.log(1 + 2 / 3) + 0.5 * (0.2 * math.log(1 + 1.5) + 0.8 * math.log(1 + 0.5))
    assert found.loss.item() == pytest.approx(expected, abs=1e-6)
    assert found.positive_gap.item() == pytest.approx(math.log(1.5), abs=1e-6)
    assert found.negative_gap.item() == pytest.approx(
        0.2 * math.log(1.5) + 0.8 * math.log(0.5), abs=1e-6
    )


def test_at_the_start_every_gap_is_zero():
    """The model is the base and shares its head: log 2 from each half."""
    (states, weight, _, uncond, _), _, _ = _parts(False)
    found = code_contrast(
        states, weight, None, BaseStates(states, uncond), CODES, beta=0.5, lambda_=3.0
    )
    assert_close(found.loss, torch.full((B, N), 4 * math.log(2)), 1e-5)
    assert_close(found.positive_gap, torch.zeros(B, N), 1e-6)


def test_as_beta_vanishes_the_slope_is_that_of_likelihood_against_the_negatives():
    """-log s(beta g) is log 2 - beta g / 2: raise own codes, lower what u expects."""
    (states, weight, cond, uncond, ref_weight), _, _ = _parts(False)
    states.requires_grad_()
    base = BaseStates(cond, uncond, ref_weight)
    beta = 1e-4
    ours = code_contrast(states, weight, None, base, CODES, beta=beta, lambda_=1.0).loss.sum()
    (slope,) = torch.autograd.grad(ours, states)
    logps = (states @ weight.T).log_softmax(-1)
    expects = (uncond @ ref_weight.T).softmax(-1)
    plain = (expects * logps).sum() - logps.gather(-1, CODES[..., None]).sum()
    (expected,) = torch.autograd.grad(plain, states)
    assert_close(slope / beta, expected / 2, 2e-3)


def test_one_certain_negative_is_the_pairwise_contrast():
    """u with all its mass on one code: a single negative, as in the paper's loss."""
    (states, weight, cond, _, _), _, _ = _parts(False)
    sure = torch.zeros(B, N, K)
    sure[..., 7] = 60.0
    # A head that is the identity on K + D columns: D for the caption's states, K for u's.
    head = torch.cat([weight, torch.eye(K)], dim=1)
    wide = [torch.cat([t, torch.zeros(B, N, K)], dim=-1) for t in (states, cond)]
    unconditional = torch.cat([torch.zeros(B, N, D), sure], dim=-1)
    base = BaseStates(wide[1], unconditional)
    found = code_contrast(wide[0], head, None, base, CODES, beta=0.8, lambda_=2.0).loss
    gap = (states @ weight.T).log_softmax(-1) - (cond @ weight.T).log_softmax(-1)
    own = gap.gather(-1, CODES[..., None])[..., 0]
    assert_close(found, -logsigmoid(0.8 * own) - 2.0 * logsigmoid(-0.8 * gap[..., 7]), 1e-4)


@pytest.mark.parametrize("num_codes", [16, 64, 256])
@pytest.mark.parametrize("scale", [1.5, 2.5, 4.0])
def test_the_optimum_is_guidance_whatever_the_number_of_codes(scale: float, num_codes: int):
    """With codes from the base itself the expected gradient at the guided logits is zero.

    The expectation is exact: every code of the codebook once, weighted by its probability. The
    guided logits are taken before normalisation, whose constant a softmax does not leave free.
    """
    generator = torch.Generator().manual_seed(3)
    cond = torch.randn(num_codes, K, generator=generator).log_softmax(-1)
    uncond = torch.randn(num_codes, K, generator=generator).log_softmax(-1)
    slope = torch.zeros(num_codes, K)
    for code in range(K):
        _, gradient = code_contrast_loss(
            guide(cond, uncond, scale),
            cond,
            uncond.exp(),
            torch.full((num_codes,), code),
            beta=1 / (scale - 1),
            lambda_=1.0,
        )
        slope += cond.exp()[:, code, None] * gradient
    assert_close(slope, torch.zeros_like(slope), 1e-6)


def test_no_tensor_is_larger_than_the_budget():
    """200 positions of 500 codes would be 100,000 logits; 5,000 are allowed."""
    hidden = torch.randn(10, 20, 4, requires_grad=True)
    weight = torch.randn(500, 4)
    base = BaseStates(torch.randn(10, 20, 4), torch.randn(10, 20, 4), weight)
    codes = torch.randint(500, (10, 20))
    with LargestTensor() as seen:
        found = code_contrast(
            hidden, weight, None, base, codes, beta=0.7, lambda_=1.0, budget=5_000
        )
        found.loss.sum().backward()
    assert seen.largest <= 5_000
