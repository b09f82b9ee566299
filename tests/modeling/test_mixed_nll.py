"""Guidance-free training: values, gradients, limits, its optimum, and memory."""

import math

import pytest
import torch

from mm_cca.modeling.guidance import BaseStates, guide
from mm_cca.modeling.mixed_nll import mixed_nll
from tests.support.closeness import assert_close
from tests.support.largest_tensor import LargestTensor

B, N, D, K = 3, 5, 4, 11
CODES = torch.randint(K, (B, N), generator=torch.Generator().manual_seed(1))


def _parts(with_bias: bool) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = [normal(B, N, D), normal(K, D), normal(B, N, D), normal(K, D)]
    biases = (normal(K), normal(K)) if with_bias else (None, None)
    return tensors, *biases


def _naive(states, weight, bias, uncond, ref_weight, ref_bias, scale):
    model = states @ weight.T + (0 if bias is None else bias)
    base = uncond @ ref_weight.T + (0 if ref_bias is None else ref_bias)
    rows = []
    for image in range(B):
        for n in range(N):
            mixed = [
                m / scale + u * (1 - 1 / scale)
                for m, u in zip(model[image, n], base[image, n], strict=True)
            ]
            total = sum(torch.exp(value) for value in mixed)
            rows.append(torch.log(total) - mixed[CODES[image, n]])
    return torch.stack(rows).view(B, N)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("budget", [1, 3 * K, 10_000])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_value_and_gradient_equal_the_naive_ones(with_bias: bool, budget: int, scale: float):
    (states, weight, uncond, ref_weight), bias, ref_bias = _parts(with_bias)
    learned = [t.requires_grad_() for t in (states, weight, bias) if t is not None]
    base = BaseStates(torch.zeros_like(uncond), uncond, ref_weight, ref_bias)
    ours = mixed_nll(states, weight, bias, base, CODES, scale=scale, budget=budget)
    expected = _naive(states, weight, bias, uncond, ref_weight, ref_bias, scale)
    assert_close(ours, expected, 1e-5)
    upstream = torch.randn(B, N, generator=torch.Generator().manual_seed(2))
    ours_grads = torch.autograd.grad(ours, learned, upstream)
    expected_grads = torch.autograd.grad(expected, learned, upstream)
    for actual, wanted in zip(ours_grads, expected_grads, strict=True):
        assert_close(actual, wanted, 1e-4)


def test_by_hand():
    """Scale 2: the mean of the logits (log 9, 0) and (0, 0) is (log 3, 0)."""
    identity = torch.eye(2)
    states = torch.tensor([[[math.log(9.0), 0.0]]])
    zeros = torch.zeros(1, 1, 2)
    base = BaseStates(zeros, zeros, identity)
    loss = mixed_nll(states, identity, None, base, torch.tensor([[0]]), scale=2.0)
    assert loss.item() == pytest.approx(math.log(4 / 3), abs=1e-6)


def test_scale_one_is_the_plain_likelihood():
    (states, weight, uncond, ref_weight), _, _ = _parts(False)
    ours = mixed_nll(states, weight, None, BaseStates(uncond, uncond, ref_weight), CODES, scale=1)
    plain = -(states @ weight.T).log_softmax(-1).gather(-1, CODES[..., None])[..., 0]
    assert_close(ours, plain, 1e-5)


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_the_optimum_is_guidance(scale: float):
    """Where the model is the guided data distribution, the mixture is the data itself."""
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(6, K, generator=generator).log_softmax(-1)
    uncond = torch.randn(6, K, generator=generator).log_softmax(-1)
    model = guide(data, uncond, scale).requires_grad_()
    base = BaseStates(None, uncond[None], torch.eye(K))
    expected = torch.zeros(())
    for code in range(K):
        loss = mixed_nll(
            model[None], torch.eye(K), None, base, torch.full((1, 6), code), scale=scale
        )
        expected = expected + (data.exp()[:, code] * loss[0]).sum()
    (slope,) = torch.autograd.grad(expected, model)
    assert_close(slope, torch.zeros_like(slope), 1e-5)


def test_no_tensor_is_larger_than_the_budget():
    hidden = torch.randn(10, 20, 4, requires_grad=True)
    weight, states = torch.randn(500, 4), torch.randn(10, 20, 4)
    codes = torch.randint(500, (10, 20))
    with LargestTensor() as seen:
        base = BaseStates(states, states, weight)
        mixed_nll(hidden, weight, None, base, codes, scale=2.0, budget=5_000).sum().backward()
    assert seen.largest <= 5_000
