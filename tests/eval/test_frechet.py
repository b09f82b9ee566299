"""Frechet distances of resamples and at infinitely many images, and intervals of differences."""

import numpy as np
import pytest
import torch

from mm_cca.eval.metrics.bootstrap import basic_interval, halves_of, resampled_prompts
from mm_cca.eval.metrics.distances import Gaussian, frechet_distance, frechet_to, gaussian_of
from mm_cca.eval.metrics.frechet import (
    FEWEST_RESAMPLES,
    FrechetSample,
    FrechetTarget,
    affordable_resamples,
    frechet_at_infinity,
)
from tests.support.closeness import features, report_difference


@pytest.mark.parametrize(("rows", "size"), [(30, 6), (9, 12)])
def test_distances_of_resamples_against_repeated_rows(rows: int, size: int):
    """Also with fewer images than dimensions, and several images per prompt."""
    images, real = features(0, rows, size, shift=0.4), 1.5 * features(1, 60, size)
    groups = np.arange(rows) // 2
    counts = resampled_prompts(groups.max() + 1, resamples=5, seed=3)
    target = FrechetTarget.of(gaussian_of(real))
    found = FrechetSample(images, groups, target).distances(counts)
    for row, distance in zip(counts, found, strict=True):
        chosen = np.repeat(np.arange(rows), row[groups].astype(int))
        expected = frechet_distance(images[torch.from_numpy(chosen)], real)
        report_difference("Frechet of a resample", distance, expected)
        assert distance == pytest.approx(expected, rel=1e-4)
    everyone = np.ones((1, len(counts[0])))
    found = FrechetSample(images, groups, target).distances(everyone)
    assert found[0] == pytest.approx(frechet_to(images, gaussian_of(real)), rel=1e-4)


def test_distance_by_hand():
    """0 and 2, against mean 3 and variance 9: (1 - 3)^2 + 2 + 9 - 2 sqrt(18)."""
    target = FrechetTarget.of(Gaussian(np.array([3.0]), np.array([[9.0]]), 10))
    sample = FrechetSample(torch.tensor([[0.0], [2.0]]), np.arange(2), target)
    assert sample.distances(np.ones((1, 2)))[0] == pytest.approx(15 - 2 * 18**0.5)
    # The second twice: 0, 2, 2 have mean 4/3 and variance 4/3.
    twice = (4 / 3 - 3) ** 2 + 4 / 3 + 9 - 2 * 12**0.5
    assert sample.distances(np.array([[1.0, 2.0]]))[0] == pytest.approx(twice)


def test_an_arm_against_itself_differs_by_nothing():
    target = FrechetTarget.of(gaussian_of(features(1, 40)))
    counts = resampled_prompts(20, resamples=50, seed=0)
    sample = FrechetSample(features(0, 20), np.arange(20), target)
    difference = sample.distances(counts) - sample.distances(counts)
    assert basic_interval(0.0, difference, confidence=0.95) == {"value": 0, "low": 0, "high": 0}


def test_resamples_are_of_whole_prompts_and_seeded():
    counts = resampled_prompts(12, resamples=400, seed=0)
    assert counts.shape == (400, 12)
    assert (counts.sum(axis=1) == 12).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(12), abs=0.2)
    assert np.array_equal(counts, resampled_prompts(12, resamples=400, seed=0))
    assert not np.array_equal(counts, resampled_prompts(12, resamples=400, seed=1))


def test_basic_interval_by_hand():
    """Resamples 0 to 100, quantiles 5 and 95, about a value of 30."""
    found = basic_interval(30.0, np.arange(101.0), confidence=0.9)
    assert found == pytest.approx({"value": 30, "low": -35, "high": 55})
    wide = basic_interval(30.0, np.arange(101.0), confidence=0.9, widening=2)
    assert wide == pytest.approx({"value": 30, "low": -80, "high": 100})


def test_halves_share_no_prompt():
    first, second = halves_of(11, seed=0)
    assert sorted([*first, *second]) == list(range(11))
    assert (len(first), len(second)) == (5, 6)
    assert np.array_equal(first, halves_of(11, seed=0)[0])
    assert not np.array_equal(first, halves_of(11, seed=1)[0])


def test_large_sets_get_fewer_resamples():
    assert affordable_resamples(1000, 500, 96) == 1000
    assert affordable_resamples(1000, 8000, 96) == 1000
    assert affordable_resamples(1000, 8000, 1280) == FEWEST_RESAMPLES
    assert affordable_resamples(100, 8000, 1280) == 100


SIZE, ROWS, SHIFT = 24, 120, 0.25


def equal_arms(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, FrechetTarget]:
    """A shifted arm and a less diverse one, both at the same true distance."""
    spectrum = np.linspace(1.5, 0.5, SIZE)
    shrunk = 1 - (SIZE * SHIFT**2 / spectrum.sum()) ** 0.5
    shifted = rng.normal(size=(ROWS, SIZE)) * spectrum**0.5 + SHIFT
    narrow = shrunk * rng.normal(size=(ROWS, SIZE)) * spectrum**0.5
    target = FrechetTarget.of(Gaussian(np.zeros(SIZE), np.diag(spectrum), 10**6))
    return torch.from_numpy(narrow), torch.from_numpy(shifted), target


def test_a_less_diverse_arm_of_equal_distance_is_not_ahead():
    """Percentiles call it ahead in most cases, the basic interval hardly ever."""
    rng, trials = np.random.default_rng(0), 80
    ahead = {"percentile": 0, "basic": 0}
    behind = 0
    for trial in range(trials):
        narrow, shifted, target = equal_arms(rng)
        samples = [FrechetSample(x, np.arange(ROWS), target) for x in (narrow, shifted)]
        counts = resampled_prompts(ROWS, resamples=200, seed=trial)
        ours, theirs = (sample.distances(counts) for sample in samples)
        one = np.ones((1, ROWS))
        value = float((samples[0].distances(one) - samples[1].distances(one))[0])
        ahead["percentile"] += np.quantile(ours - theirs, 0.975) < 0
        found = basic_interval(value, ours - theirs, confidence=0.95)
        ahead["basic"] += found["high"] < 0
        behind += found["low"] > 0
    print(f"of {trials}: {ahead}, basic behind {behind}")
    assert ahead["percentile"] > 0.5 * trials
    assert ahead["basic"] <= 0.06 * trials
    assert behind <= 0.06 * trials


def test_a_distance_at_infinity_has_hardly_any_bias():
    rng, truth = np.random.default_rng(0), SIZE * SHIFT**2
    raw, extrapolated = [], []
    for _ in range(30):
        narrow, shifted, target = equal_arms(rng)
        for images in (narrow, shifted):
            sample = FrechetSample(images, np.arange(ROWS), target)
            raw.append(sample.distances(np.ones((1, ROWS)))[0])
            extrapolated.append(frechet_at_infinity(images, np.arange(ROWS), target, seed=0))
    print(f"truth {truth}: raw {np.mean(raw):.2f}, at infinity {np.mean(extrapolated):.2f}")
    assert np.mean(raw) > truth + 0.9
    assert np.mean(extrapolated) == pytest.approx(truth, abs=0.3)


def test_a_few_prompts_are_not_extrapolated():
    images, real = features(0, 7), features(1, 30)
    target = FrechetTarget.of(gaussian_of(real))
    found = frechet_at_infinity(images, np.arange(7), target, seed=0)
    assert found == pytest.approx(frechet_distance(images, real), rel=1e-4)
    more = features(0, 20)
    assert frechet_at_infinity(more, np.arange(20), target, seed=0) < frechet_distance(more, real)
