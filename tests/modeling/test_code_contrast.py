"""The contrast code by code: values, gradients, limits, its optimum, and memory."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from mm_cca.modeling.code_contrast import code_contrast, code_contrast_loss, relevance_shares
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
@pytest.mark.parametrize(
    ("beta", "lambda_", "full_at"), [(0.7, 1.0, None), (2.0, 0.3, None), (0.7, 1.3, 1.0)]
)
def test_value_and_gradient_equal_the_naive_ones(
    with_bias: bool, budget: int, beta: float, lambda_: float, full_at: float | None
):
    (states, weight, cond, uncond, ref_weight), bias, ref_bias = _parts(with_bias)
    learned = [t.requires_grad_() for t in (states, weight, bias) if t is not None]
    base = BaseStates(cond, uncond, ref_weight, ref_bias)
    constants = {"beta": beta, "lambda_": lambda_}
    ours = code_contrast(
        states, weight, bias, base, CODES, **constants, scale_by_relevance=full_at, budget=budget
    )
    inputs = (states, weight, bias, cond, uncond, ref_weight, ref_bias, CODES)
    loss, positive, negative = naive.code_contrast(*inputs, **constants, full_at=full_at)
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
            hidden,
            weight,
            None,
            base,
            codes,
            beta=0.7,
            lambda_=1.0,
            scale_by_relevance=1.0,
            budget=5_000,
        )
        found.loss.sum().backward()
    assert seen.largest <= 5_000


def test_shares_by_hand():
    """Base (1/2, 1/2) with the caption; without it (1/5, 4/5) at one code, the same at three.

    KL = log(5/4) = .2231 at one of four codes: the mean is .0568 with .001 of rounding added.
    """
    skewed = [0.0, math.log(4.0)]
    uncond = torch.tensor([[skewed, [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    base = BaseStates(torch.zeros(1, 4, 2), uncond, torch.eye(2))
    found = relevance_shares(base, 8.0, budget=4)
    mean = math.log(5 / 4) / 4 + 1e-3
    expected = [(math.log(5 / 4) + 1e-3) / (8 * mean)] + [1e-3 / (8 * mean)] * 3
    assert found[0].tolist() == pytest.approx(expected, rel=1e-4)
    assert relevance_shares(base, 1.0, budget=4)[0, 0] == 1


@pytest.mark.parametrize("num_codes", [16, 64, 256])
def test_the_same_relevance_everywhere_is_the_plain_contrast(num_codes: int):
    """Also none at all (a dropped condition), and whatever the number of codes."""
    generator = torch.Generator().manual_seed(5)
    state, cond, uncond = (torch.randn(K, generator=generator) for _ in range(3))
    codes = torch.randint(K, (1, num_codes), generator=generator)
    for without in (uncond, cond):
        states = [t.expand(1, num_codes, K) for t in (state, cond, without)]
        base = BaseStates(states[1], states[2], torch.eye(K))
        inputs = (states[0], torch.eye(K), None, base, codes)
        plain = code_contrast(*inputs, beta=0.7, lambda_=1.0)
        scaled = code_contrast(*inputs, beta=0.7, lambda_=1.0, scale_by_relevance=1.0)
        assert_close(scaled.loss, plain.loss, 1e-5)


def test_as_the_constant_vanishes_every_code_has_the_whole_scale():
    (states, weight, cond, uncond, ref_weight), _, _ = _parts(False)
    inputs = (states, weight, None, BaseStates(cond, uncond, ref_weight), CODES)
    plain = code_contrast(*inputs, beta=0.7, lambda_=1.0)
    scaled = code_contrast(*inputs, beta=0.7, lambda_=1.0, scale_by_relevance=1e-6)
    assert scaled.loss.tolist() == plain.loss.tolist()
    assert plain.scale_shares is None


def test_shares_do_not_depend_on_the_other_images():
    (_, _, cond, uncond, ref_weight), _, _ = _parts(False)
    together = relevance_shares(BaseStates(cond, uncond, ref_weight), 1.0, budget=100)
    for image in range(B):
        part = slice(image, image + 1)
        alone = relevance_shares(BaseStates(cond[part], uncond[part], ref_weight), 1.0, budget=100)
        assert_close(alone, together[part], 1e-6)


def test_the_optimum_of_a_share_is_guidance_of_its_own_scale():
    """Share w: no expected gradient at guidance of 1 + w (scale - 1); see the test above."""
    generator = torch.Generator().manual_seed(6)
    shares = torch.tensor([1.0, 0.6, 0.25, 0.01])
    cond = torch.randn(len(shares), K, generator=generator).log_softmax(-1)
    uncond = torch.randn(len(shares), K, generator=generator).log_softmax(-1)
    scales = 1 + shares * (3.0 - 1)
    guided = uncond + scales[:, None] * (cond - uncond)

    def slope_at(logps: torch.Tensor) -> torch.Tensor:
        slope = torch.zeros_like(logps)
        for code in range(K):
            codes = torch.full((len(shares),), code)
            constants = {"beta": 0.5, "lambda_": 1.0, "shares": shares}
            _, gradient = code_contrast_loss(logps, cond, uncond.exp(), codes, **constants)
            slope += cond.exp()[:, code, None] * gradient
        return slope

    assert_close(slope_at(guided), torch.zeros_like(guided), 1e-5)
    assert slope_at(uncond + 3.0 * (cond - uncond))[1:].abs().amax(dim=1).min() > 1e-2


def test_the_pull_at_the_start_does_not_depend_on_the_share():
    logps = torch.randn(2, K, generator=torch.Generator().manual_seed(7)).log_softmax(-1)
    uniform = torch.full((2, K), 1 / K)
    shares = torch.tensor([1.0, 1e-3])
    _, slope = code_contrast_loss(
        logps, logps, uniform, torch.tensor([3, 3]), beta=0.5, lambda_=1.0, shares=shares
    )
    assert slope[0].tolist() == slope[1].tolist()
