"""Gaps and divergences by code: against a naive reference, by hand, and at their limits."""

import pytest
import torch

from mm_cca.adapters.base import ImageHead
from mm_cca.modeling import code_gaps
from mm_cca.modeling.code_gap_bands import band_by_relevance, band_by_row
from mm_cca.modeling.code_gaps import CodeGaps, CodeKls
from mm_cca.modeling.guidance import BaseStates
from tests.support.closeness import assert_close

B, N, D, K = 2, 6, 5, 7


def _zeros(**given: torch.Tensor) -> CodeGaps:
    shape = next(iter(given.values())).shape
    empty = torch.zeros(shape)
    values = {name: given.get(name, empty) for name in ("own", "wrong", "relevance")}
    return CodeGaps(**values, kls=CodeKls(empty, empty, empty, empty))


def test_divergences_equal_the_sum_over_the_codebook():
    torch.manual_seed(0)
    states, cond, uncond = (torch.randn(B, N, D) for _ in range(3))
    ours, theirs, bias = torch.randn(K, D), torch.randn(K, D), torch.randn(K)
    head = ImageHead(ours, bias, torch.arange(K))
    base = BaseStates(cond, uncond, theirs, None)
    found = code_gaps.code_kls(states, head, base, scale=2.5, budget=3 * K)
    for b in range(B):
        for n in range(N):
            own = torch.log_softmax(ours @ states[b, n] + bias, 0).double()
            p = torch.log_softmax(theirs @ cond[b, n], 0).double()
            u = torch.log_softmax(theirs @ uncond[b, n], 0).double()
            g = torch.log_softmax(u + 2.5 * (p - u), 0)
            kls = [sum(a.exp() * (a - b)) for a, b in ((p, u), (g, p), (own, p), (g, own))]
            values = [v[b, n] for v in vars(found).values()]
            assert_close(torch.stack(values).double(), torch.stack(kls))


def test_bands_hold_the_means_and_vanish_where_images_agree():
    torch.manual_seed(1)
    per_row = torch.arange(3.0).repeat_interleave(2)  # alike in all images: nothing to be unsure of
    gaps = _zeros(own=per_row.repeat(8, 1), wrong=torch.randn(8, N), relevance=torch.randn(8, N))
    rows, band = code_gaps.by_row(gaps, 2), band_by_row(gaps, 2)
    assert band["own_gap"] == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    for mean, (low, high) in zip(rows["wrong_gap"], band["wrong_gap"], strict=True):
        assert low < mean < high
    bins, found = code_gaps.by_relevance(gaps, 4), band_by_relevance(gaps, 4)
    for mean, (low, high) in zip(bins["wrong"], found["wrong"], strict=True):
        assert low < mean < high
    assert found == band_by_relevance(gaps, 4)


def test_the_band_of_a_mean_is_as_wide_as_its_error():
    values = torch.linspace(-1, 1, 64)
    gaps = _zeros(own=values[:, None].expand(64, N).contiguous())
    (((low, high),),) = (band_by_row(gaps, N)["own_gap"],)
    error = float(values.std(correction=0)) / 8
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


def test_a_model_that_is_its_base_has_no_gap_and_the_kl_of_guidance():
    torch.manual_seed(0)
    cond, uncond, weight = torch.randn(B, N, D), torch.randn(B, N, D), torch.randn(K, D)
    base = BaseStates(cond, uncond, weight, None)
    found = code_gaps.code_kls(cond, ImageHead(weight, None, torch.arange(K)), base, scale=3.0)
    assert float(found.model.abs().max()) == 0
    assert torch.equal(found.guidance, found.guidance_to_model)
    assert float(found.prompt.min()) > 0


def test_quarters_follow_each_images_own_relevance():
    relevance = torch.tensor([[0.0, 3.0, 1.0, 2.0], [9.0, 6.0, 7.0, 8.0]])
    wrong = torch.tensor([[-1.0, -4.0, -2.0, -3.0], [-40.0, -10.0, -20.0, -30.0]])
    found = code_gaps.wrong_gap_by_quarter(_zeros(relevance=relevance, wrong=wrong))
    assert found == [-22.0, -16.5, -11.0, -5.5]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [([-1.0, -2.0, -3.0, -4.0], 1.0), ([-4.0, -3.0, -2.0, -1.0], -1.0), ([-5.0] * 4, 0.0)],
)
def test_correlation(wrong: list[float], expected: float):
    gaps = _zeros(relevance=torch.tensor([[1.0, 2.0, 3.0, 4.0]]), wrong=torch.tensor([wrong]))
    assert code_gaps.correlation(gaps) == pytest.approx(expected)


def test_bins_hold_equally_many_codes_of_growing_relevance():
    relevance = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    found = code_gaps.by_relevance(_zeros(relevance=relevance, wrong=-relevance), 2)
    assert found["relevance"] == [1.5, 3.5]
    assert found["wrong"] == [-1.5, -3.5]
    assert found["own"] == [0.0, 0.0]


def test_rows_of_the_grid_and_sums_over_codes():
    own = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0, 8.0]])
    assert code_gaps.by_row(_zeros(own=own), 3)["own_gap"] == pytest.approx([2.0, 16 / 3])
    assert code_gaps.per_image(_zeros(own=own))["own_gap"] == pytest.approx(22.0)


def test_parts_are_joined_in_order():
    first, second = _zeros(own=torch.ones(1, 2)), _zeros(own=torch.full((2, 2), 2.0))
    assert code_gaps.joined([first, second]).own[:, 0].tolist() == [1.0, 2.0, 2.0]
