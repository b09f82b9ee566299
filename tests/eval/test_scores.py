"""Inception, HF towers, CMMD, density and coverage, each against an independent reference."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from mm_cca.eval.metrics.distances import (
    cmmd,
    frechet_distance,
    frechet_to,
    gaussian_of,
    kernel_distance,
    kernel_subset_size,
)
from mm_cca.eval.metrics.prdc import density_coverage
from tests.support.closeness import features, report_difference


def naive_cmmd(a: torch.Tensor, b: torch.Tensor) -> float:
    def unit(x: torch.Tensor) -> list[list[float]]:
        return [[float(v) / math.sqrt(sum(float(w) ** 2 for w in row)) for v in row] for row in x]

    def mean(x: list[list[float]], y: list[list[float]]) -> float:
        pairs = [
            math.exp(-sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) / 200)
            for u in x
            for v in y
        ]
        return sum(pairs) / len(pairs)

    x, y = unit(a), unit(b)
    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_cmmd_against_a_loop(chunk: int):
    a, b = features(0, 9), features(1, 12, shift=0.7)
    found, expected = cmmd(a, b, chunk=chunk), naive_cmmd(a, b)
    report_difference("CMMD", found, expected)
    assert expected > 0.1
    assert found == pytest.approx(expected, abs=1e-9)
    assert cmmd(3 * a, b) == pytest.approx(expected, abs=1e-6), "only directions count"


def test_cmmd_by_hand():
    """Two opposite points: distance 2, so 1000 (1 + 1 - 2 exp(-4/200))."""
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    assert cmmd(a, b) == pytest.approx(2000 * (1 - math.exp(-0.02)), rel=1e-12)


def naive_density_coverage(a: np.ndarray, b: np.ndarray, k: int) -> tuple[float, float]:
    inside, covered = 0, 0
    for i, centre in enumerate(b):
        others = sorted(math.dist(centre, x) for j, x in enumerate(b) if j != i)
        hits = sum(math.dist(centre, x) < others[k - 1] for x in a)
        inside += hits
        covered += hits > 0
    return inside / (k * len(a)), covered / len(b)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_density_and_coverage_against_a_loop(k: int):
    a, b = features(0, 13, 2, shift=1.5), features(1, 17, 2)
    found = density_coverage(a, b, neighbours=k, chunk=4)
    expected = naive_density_coverage(a.double().numpy(), b.double().numpy(), k)
    report_difference("density, coverage", found, expected)
    assert 0 < expected[1] < 1
    assert found == pytest.approx(expected)


def test_density_and_coverage_by_hand():
    """On a line: balls around 0, 1 and 10 reach to 1, 1 and 9; 0.5 lies in two, 20 in none."""
    real = torch.tensor([[0.0], [1.0], [10.0]])
    generated = torch.tensor([[0.5], [20.0]])
    density, coverage = density_coverage(generated, real, neighbours=1)
    assert density == 2 / (1 * 2)
    assert coverage == 2 / 3


@pytest.mark.parametrize(("shift", "rows"), [(0.0, 40), (1.0, 40), (0.3, 5)])
def test_a_file_of_statistics_gives_the_same_distance(shift: float, rows: int):
    ours, theirs = features(0, rows, shift=shift), 1.5 * features(1, 30)
    x, y = ours.double().numpy(), theirs.double().numpy()
    root = sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    traces = np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root)
    formula = ((x.mean(0) - y.mean(0)) ** 2).sum() + traces
    found = frechet_to(ours, gaussian_of(theirs)), frechet_distance(ours, theirs)
    report_difference("Frechet by statistics, by features", found, formula)
    assert found == pytest.approx((formula, formula), rel=1e-4)


def test_precision_and_recall_of_many_images_are_the_same(monkeypatch: pytest.MonkeyPatch):
    """Above a number the pairs are taken in parts."""
    import mm_cca.eval.metrics.prdc as module

    a, b = features(0, 40, shift=0.8), features(1, 50)
    whole = module.precision_recall(a, b)
    monkeypatch.setattr(module, "PAIRS_IN_MEMORY", 10)
    assert module.precision_recall(a, b) == whole
    assert 0 < whole[0] < 1


@pytest.mark.parametrize("rows", [4, 9, 50])
def test_kernel_distance_of_few_images(rows: int):
    """torchmetrics would raise for fewer than its 1,000; the subsets become half as large."""
    a, b = features(0, rows), features(1, rows)
    assert kernel_subset_size(rows, rows) == rows // 2
    assert math.isfinite(kernel_distance(a, b, seed=0))
    # Subsets of the unbiased estimate scatter around what the formula says of all rows.
    far = [kernel_distance(features(2, rows, shift=s), b, seed=0) for s in (0.0, 5.0)]
    assert far[1] > far[0] + 1
    assert kernel_subset_size(5000, 2500) == 1000
