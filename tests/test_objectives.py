"""Objectives: values by hand, every branch, gradients, accumulation, faults of the published code.

The published code is thu-ml/CCA at 7d5a073. Its other faults are tested elsewhere:
- gradients of micro-batches that don't add up: test_losses.py, test_ranks.py
- no resuming and no seed: test_resume.py
- commands that don't run: test_readme.py
- a reference that is not frozen: test_reference.py
- a layout guessed from a file's name: test_contract.py
"""

import math

import pytest
import torch

from mm_cca.objectives import (
    cca,
    cca_code,
    ddo,
    distill,
    dpo,
    floored_gap,
    gft,
    length_aware_beta,
    nll,
    reference_kl,
    unlearn,
)
from tests.support import naive
from tests.support.closeness import assert_close


def _random(seed: int, n: int = 7, per_image: int = 1) -> list[torch.Tensor]:
    """Four tensors of log-probabilities: positive, negative, and the same of the reference."""
    generator = torch.Generator().manual_seed(seed)
    counts = (n, per_image * n, n, per_image * n)
    return [-50 * torch.rand(count, generator=generator) for count in counts]


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
    """Without dropped rows the published LlamaGen code loses its log-sigmoid; this one does not."""
    values = _random(1)
    as_positive = torch.zeros(7, dtype=torch.bool)
    as_positive[dropped] = True
    loss, _ = _loss(values, as_positive, 0.18, lambda_)
    expected = naive.cca(*(v.tolist() for v in values), as_positive.tolist(), 0.18, lambda_)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_lambda_zero_ignores_the_negatives():
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
    assert nll(torch.tensor([-64.0, -128.0]), 64).item() == pytest.approx(1.5)


def test_micro_batches_of_nll_add_up_too():
    logps = _random(5, n=8)[0]
    whole = nll(logps, 16)
    parts = [nll(part, 16) for part in logps.split(2)]
    assert_close(torch.stack(parts).mean(), whole, 1e-6)


def test_beta_is_rescaled_with_the_length():
    """0.02 at 576 codes is 0.18 at 64 and 0.0028125 at 4,096; None turns rescaling off."""
    assert length_aware_beta(0.02, 576, 64) == pytest.approx(0.18)
    assert length_aware_beta(0.02, 576, 4096) == pytest.approx(0.0028125)
    assert length_aware_beta(0.02, None, 4096) == 0.02


@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize("dropped", [[], [0, 3]])
def test_several_negatives_equal_the_naive_loops(per_image: int, dropped: list[int]):
    values = _random(6, per_image=per_image)
    as_positive = torch.zeros(7, dtype=torch.bool)
    as_positive[dropped] = True
    as_positive = as_positive.repeat(per_image)
    rows, same = [v.tolist() for v in values], as_positive.tolist()
    ours, _ = dpo(*values, counts_as_positive=as_positive, beta=0.18)
    assert ours.item() == pytest.approx(naive.dpo(*rows, same, 0.18), rel=1e-5)
    for lambda_ in (0.0, 0.5, 3.0):
        ours, _ = unlearn(*values, counts_as_positive=as_positive, lambda_=lambda_, num_codes=64)
        expected = naive.unlearn(*rows, same, lambda_, 64)
        assert ours.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    ours, _ = _loss(values, as_positive, 0.18, 3.0)
    each = [
        _loss(
            [
                values[0],
                values[1].view(per_image, 7)[m],
                values[2],
                values[3].view(per_image, 7)[m],
            ],
            as_positive[:7],
            0.18,
            3.0,
        )[0]
        for m in range(per_image)
    ]
    assert_close(ours, torch.stack(each).mean(), 1e-6)


def test_dpo_by_hand():
    """gap_pos = 1, gap_neg = -2, beta 0.5: -logsig(1.5) = log(1 + e^-1.5) = 0.201413."""
    values = [torch.tensor([v]) for v in (-9.0, -12.0, -10.0, -10.0)]
    loss, stats = dpo(*values, counts_as_positive=torch.tensor([False]), beta=0.5)
    assert loss.item() == pytest.approx(0.201413, abs=1e-6)
    assert stats["margin"].item() == 3


def test_dpo_depends_on_the_difference_only():
    """Both likelihoods may fall together, as in the paper's table 3; with cca they may not."""
    values, none = _random(7), torch.zeros(7, dtype=torch.bool)
    lower = [values[0] - 30, values[1] - 30, *values[2:]]
    before, _ = dpo(*values, counts_as_positive=none, beta=0.1)
    after, _ = dpo(*lower, counts_as_positive=none, beta=0.1)
    assert after.item() == pytest.approx(before.item(), rel=1e-5)
    assert _loss(lower, none, 0.1, 1.0)[0] != pytest.approx(_loss(values, none, 0.1, 1.0)[0])


def test_dpo_gives_no_gradient_to_rows_that_are_not_true_negatives():
    """In the published code their margin is dropout noise."""
    values = _random(8)
    as_positive = torch.tensor([True] + [False] * 6)
    positive, negative = values[0].requires_grad_(), values[1].requires_grad_()
    dpo(*values, counts_as_positive=as_positive, beta=0.1)[0].backward()
    assert positive.grad[0] == 0
    assert negative.grad[0] == 0
    assert (positive.grad[1:] < 0).all()
    assert_close(positive.grad, -negative.grad, 1e-8)


def test_unlearn_by_hand():
    """(-1 + 4 * -2) / 4 / 64 = -9 / 256."""
    values = [torch.tensor([v]) for v in (-9.0, -12.0, -10.0, -10.0)]
    loss, _ = unlearn(*values, counts_as_positive=torch.tensor([False]), lambda_=4.0, num_codes=64)
    assert loss.item() == pytest.approx(-9 / 256)


def test_unlearn_has_no_lower_bound_and_cca_has():
    """Without dropped rows the published code computes ``unlearn`` where it says ``cca``."""
    far = [torch.tensor([v]) for v in (0.0, -1e6, 0.0, 0.0)]
    none = torch.tensor([False])
    assert unlearn(*far, counts_as_positive=none, lambda_=1.0, num_codes=1)[0].item() == -1e6
    assert _loss(far, none, 0.02, 1.0)[0].item() >= 0


def test_nothing_dropped_is_the_limit_of_few_dropped():
    """In the published code loss and logging change when uncond_ratio is exactly 0."""
    values, none = _random(9, n=1000), torch.zeros(1000, dtype=torch.bool)
    one = none.clone()
    one[0] = True
    without, stats = _loss(values, none, 0.02, 1.0)
    assert without.item() == pytest.approx(_loss(values, one, 0.02, 1.0)[0].item(), rel=1e-2)
    assert stats["accuracy"].shape == (1000,)


def test_every_objective_of_a_recipe_exists_by_that_name():
    """In the published code one choice has another name than its implementation."""
    from mm_cca import objectives
    from mm_cca.config.schema import OBJECTIVES

    assert all(callable(getattr(objectives, name)) for name in OBJECTIVES)


def test_a_row_that_counts_as_positive_is_pushed_up_not_weighted_by_lambda():
    """In the published code ``neg_weight`` is true for rows that count as positive."""
    values = _random(10)
    same = torch.tensor([True, False, False, False, False, False, False])
    negative = values[1].requires_grad_()
    _loss(values, same, 0.02, 1.0)[0].backward()
    assert negative.grad[0] < 0 < negative.grad[1:].min()


def test_the_contrast_of_codes_is_a_mean_and_its_gaps_are_sums():
    losses = torch.tensor([[1.0, 3.0], [2.0, 6.0]], requires_grad=True)
    gaps = torch.tensor([[0.5, -1.5], [0.0, 0.0]])
    loss, stats = cca_code(losses, gaps, 2 * gaps)
    assert loss.item() == pytest.approx(3.0)
    assert torch.autograd.grad(loss, losses)[0].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert stats["positive_gap"].tolist() == [-1.0, 0.0]
    assert stats["code_negative_gap"].tolist() == [-2.0, 0.0]
    assert stats["kl"].tolist() == pytest.approx(
        [math.expm1(0.5) - 0.5 + math.expm1(-1.5) + 1.5, 0.0], abs=1e-6
    )


def test_gft_is_per_code():
    assert gft(torch.tensor([[1.0, 3.0], [2.0, 6.0]])).item() == pytest.approx(3.0)


def test_distill_is_per_code():
    assert distill(torch.tensor([32.0, 64.0]), 64).item() == pytest.approx(0.75)


def test_reference_kl_by_hand_and_in_the_mean():
    """log r = log 2 at one code: 2 - 1 - log 2. Drawn from the reference, its mean is the KL."""
    logps = torch.tensor([[0.0, math.log(2.0)]])
    assert reference_kl(logps, torch.zeros(1, 2)).item() == pytest.approx(1 - math.log(2), rel=1e-5)
    generator = torch.Generator().manual_seed(0)
    reference, model = (torch.randn(8, generator=generator).log_softmax(0) for _ in range(2))
    drawn = torch.multinomial(reference.exp(), 200_000, replacement=True, generator=generator)
    estimate = reference_kl(model[drawn][:, None], reference[drawn][:, None])
    expected = float((reference.exp() * (reference - model)).sum())
    assert (estimate >= -1e-6).all()
    assert estimate.mean().item() == pytest.approx(expected, rel=0.02)


def _codes(seed: int, num_codes: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """[7, N] log-probabilities per code of the model and of the reference."""
    generator = torch.Generator().manual_seed(seed)
    model, ref = (-6 * torch.rand(7, num_codes, generator=generator) for _ in range(2))
    return model, ref


def test_floored_gap_by_hand():
    """Gaps 1, -1, -5 with a floor of -2: 1 - 1 - 2 = -2, and no gradient at the third."""
    logps = torch.tensor([[-1.0, -3.0, -9.0]], requires_grad=True)
    found = floored_gap(logps, torch.tensor([[-2.0, -2.0, -4.0]]), -2.0)
    assert found.item() == -2.0
    assert torch.autograd.grad(found, logps)[0].tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize("floor", [-math.inf, -4.0, -1.0, 0.0])
def test_cca_with_a_floor_equals_the_naive_loops(floor: float):
    """Rows that count as positive have no floor: it bounds what is pushed down."""
    positive, ref_positive = (t.sum(1) for t in _codes(11))
    negative, ref_negative = _codes(12)
    negative.requires_grad_()
    same = torch.tensor([False, True, False, False, True, False, False])
    loss, stats = cca(
        positive,
        negative.sum(1),
        ref_positive,
        ref_negative.sum(1),
        counts_as_positive=same,
        beta=0.1,
        lambda_=3.0,
        floored_negative_gap=floored_gap(negative, ref_negative, floor),
    )
    gaps, below = [], torch.zeros(7, 9, dtype=torch.bool)
    for row in range(7):
        total = 0.0
        for n in range(9):
            gap = negative[row, n].item() - ref_negative[row, n].item()
            below[row, n] = gap < floor and not same[row]
            total += gap if same[row] else max(gap, floor)
        gaps.append(total)
    sums = [positive.tolist(), [0.0] * 7, ref_positive.tolist(), [0.0] * 7]
    expected = naive.cca(*sums, same.tolist(), 0.1, 3.0, gaps)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert stats["negative_gap"].tolist() == pytest.approx(
        (negative - ref_negative).sum(1).tolist(), abs=1e-4
    )
    (slope,) = torch.autograd.grad(loss, negative)
    weights = torch.tensor([-1.0 if s else 3.0 for s in same]) / 7 / 3 * 0.1
    signs = torch.tensor([-1.0 if s else 1.0 for s in same])
    of_row = weights * torch.sigmoid(signs * 0.1 * torch.tensor(gaps))
    assert_close(slope, of_row[:, None] * ~below, 1e-6)
    assert below.any() == (floor > -math.inf)


def test_a_floor_of_minus_infinity_is_none():
    positive, ref_positive = (t.sum(1) for t in _codes(13))
    negative, ref_negative = _codes(14)
    rows = (positive, negative.sum(1), ref_positive, ref_negative.sum(1))
    keys = {"counts_as_positive": torch.zeros(7, dtype=torch.bool), "beta": 0.1, "lambda_": 2.0}
    without, _ = cca(*rows, **keys)
    floored = floored_gap(negative, ref_negative, -math.inf)
    assert_close(cca(*rows, **keys, floored_negative_gap=floored)[0], without, 1e-6)


def test_ddo_by_hand():
    """The numbers of ``test_one_pair_by_hand``, with a drawn picture as the negative."""
    values = [torch.tensor([v]) for v in (-9.0, -12.0, -10.0, -10.0)]
    loss, stats = ddo(*values, dropped=torch.tensor([False]), beta=0.5, lambda_=4.0)
    assert loss.item() == pytest.approx(0.431781, abs=1e-6)
    assert (stats["positive_gap"].item(), stats["drawn_gap"].item()) == (1, -2)
    assert (stats["drawn_margin"].item(), stats["drawn_accuracy"].item()) == (3, 1)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("dropped", [[], [0, 3], list(range(7))])
def test_ddo_equals_the_naive_loop_and_its_gradient(lambda_: float, dropped: list[int]):
    values = _random(15)
    is_dropped = torch.zeros(7, dtype=torch.bool)
    is_dropped[dropped] = True
    positive, drawn = values[0].requires_grad_(), values[1].requires_grad_()
    loss, _ = ddo(*values, dropped=is_dropped, beta=0.1, lambda_=lambda_)
    expected = naive.ddo(*(v.tolist() for v in values), is_dropped.tolist(), 0.1, lambda_)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    gaps = (positive - values[2]).detach(), (drawn - values[3]).detach()
    share = 0.1 / 7 / max(lambda_, 1.0)
    assert_close(positive.grad, -share * torch.sigmoid(-0.1 * gaps[0]), 1e-7)
    assert_close(drawn.grad, lambda_ * share * torch.sigmoid(0.1 * gaps[1]) * ~is_dropped, 1e-7)


def test_the_optimum_of_ddo_is_the_data():
    """Three pictures in all: the expected gradient at free gaps log(data / reference) is zero."""
    generator = torch.Generator().manual_seed(16)
    data, ref = (torch.randn(3, generator=generator).log_softmax(0) for _ in range(2))
    model = data.clone().requires_grad_()
    total = torch.zeros(())
    for x in range(3):
        for y in range(3):
            pair = (model[[x]], model[[y]], ref[[x]], ref[[y]])
            loss, _ = ddo(*pair, dropped=torch.tensor([False]), beta=1.0, lambda_=1.0)
            total = total + data[x].exp() * ref[y].exp() * loss
    (slope,) = torch.autograd.grad(total, model)
    assert_close(slope, torch.zeros(3), 1e-6)


def test_micro_batches_of_ddo_add_up():
    values = _random(17, n=8)
    dropped = torch.tensor([False, False, True, False] * 2)
    keys = {"beta": 0.1, "lambda_": 2.0}
    whole, _ = ddo(*values, dropped=dropped, **keys)
    parts = [
        ddo(*(v[i : i + 2] for v in values), dropped=dropped[i : i + 2], **keys)[0]
        for i in range(0, 8, 2)
    ]
    assert_close(torch.stack(parts).mean(), whole, 1e-6)
