"""CCA and nll: values by hand, every branch, gradients, accumulation."""

import math

import pytest
import torch

from mm_cca.objectives import cca, length_aware_beta, nll
from tests import naive
from tests.helpers import assert_close


def _random(seed: int, n: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-50 * torch.rand(n, generator=generator) for _ in range(4)]


def _loss(values: list[torch.Tensor], as_positive: torch.Tensor, beta: float, lambda_: float):
    return cca(*values, counts_as_positive=as_positive, beta=beta, lambda_=lambda_)


def test_one_pair_by_hand():
    """gap_pos = -9 - -10 = 1, gap_neg = -12 - -10 = -2, beta 0.5, lambda 4.

    positive: -logsig(0.5) = log(1 + e^-0.5) = 0.474077
    negative: -4 logsig(-0.5 * -2) = 4 log(1 + e^-1) = 4 * 0.313262 = 1.253047
    loss: (0.474077 + 1.253047) / 4 = 0.431781
    """
    values = [torch.tensor([v]) for v in (-9.0, -12.0, -10.0, -10.0)]
    loss, stats = _loss(values, torch.tensor([False]), 0.5, 4.0)
    assert loss.item() == pytest.approx(0.431781, abs=1e-6)
    assert stats["positive_gap"].item() == 1
    assert stats["negative_gap"].item() == -2
    assert stats["accuracy"].item() == 1


def test_a_row_that_counts_as_positive_by_hand():
    """Both gaps 1, beta 0.5: twice -logsig(0.5) = 2 * 0.474077, weight 1, still divided by 4."""
    values = [torch.tensor([v]) for v in (-9.0, -9.0, -10.0, -10.0)]
    loss, _ = _loss(values, torch.tensor([True]), 0.5, 4.0)
    assert loss.item() == pytest.approx(2 * 0.474077 / 4, abs=1e-6)


def test_at_the_start_every_term_is_log_two():
    zeros = [torch.full((4,), -100.0)] * 4
    loss, _ = _loss(zeros, torch.zeros(4, dtype=torch.bool), 0.02, 1000.0)
    assert loss.item() == pytest.approx(1001 / 1000 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("dropped", [[], [0, 3], list(range(7))])
def test_equals_the_naive_loop(lambda_: float, dropped: list[int]):
    """Without dropped rows the published LlamaGen code lost its log-sigmoid; ours does not."""
    values = _random(1)
    as_positive = torch.zeros(7, dtype=torch.bool)
    as_positive[dropped] = True
    loss, _ = _loss(values, as_positive, 0.18, lambda_)
    expected = naive.cca(*(v.tolist() for v in values), as_positive.tolist(), 0.18, lambda_)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_lambda_zero_leaves_the_wrong_prompts_out():
    values = _random(2)
    none = torch.zeros(7, dtype=torch.bool)
    first, _ = _loss(values, none, 0.1, 0.0)
    values[1] = values[1] + 5
    second, _ = _loss(values, none, 0.1, 0.0)
    assert first.item() == second.item()


def test_gradient_by_hand():
    """d/d logp of -logsig(b g) is -b sigmoid(-b g); of -w logsig(-b g) it is w b sigmoid(b g)."""
    values = _random(3)
    as_positive = torch.tensor([True, False, False, True, False, False, False])
    positive, negative = values[0].requires_grad_(), values[1].requires_grad_()
    beta, lambda_ = 0.18, 30.0
    loss, _ = _loss(values, as_positive, beta, lambda_)
    loss.backward()
    gap_pos = (positive - values[2]).detach()
    gap_neg = (negative - values[3]).detach()
    by_positive = -beta * torch.sigmoid(-beta * gap_pos) / 7 / lambda_
    pushed_up = -beta * torch.sigmoid(-beta * gap_neg) / 7 / lambda_
    pushed_down = lambda_ * beta * torch.sigmoid(beta * gap_neg) / 7 / lambda_
    assert_close(positive.grad, by_positive, 1e-7)
    assert_close(negative.grad, torch.where(as_positive, pushed_up, pushed_down), 1e-7)


def test_micro_batches_add_up_to_the_large_batch():
    values = _random(4, n=8)
    as_positive = torch.tensor([False, True] * 4)
    whole, _ = _loss(values, as_positive, 0.1, 10.0)
    for size in (1, 2, 4):
        parts = [
            _loss([v[i : i + size] for v in values], as_positive[i : i + size], 0.1, 10.0)[0]
            for i in range(0, 8, size)
        ]
        assert_close(torch.stack(parts).mean(), whole, 1e-6)


def test_huge_gaps_stay_finite():
    values = [torch.tensor([v]) for v in (-1e5, 0.0, 0.0, -1e5)]
    loss, _ = _loss(values, torch.tensor([False]), 1.0, 1000.0)
    assert math.isfinite(loss.item())


def test_nll_is_per_code():
    loss, stats = nll(torch.tensor([-64.0, -128.0]), 64)
    assert loss.item() == pytest.approx(1.5)
    assert stats == {}


def test_micro_batches_of_nll_add_up_too():
    logps = _random(5, n=8)[0]
    whole, _ = nll(logps, 16)
    parts = [nll(part, 16)[0] for part in logps.split(2)]
    assert_close(torch.stack(parts).mean(), whole, 1e-6)


def test_beta_is_rescaled_with_the_length():
    """0.02 at 576 codes is 0.18 at 64 and 0.0028125 at 4,096; None turns rescaling off."""
    assert length_aware_beta(0.02, 576, 64) == pytest.approx(0.18)
    assert length_aware_beta(0.02, 576, 4096) == pytest.approx(0.0028125)
    assert length_aware_beta(0.02, None, 4096) == 0.02
