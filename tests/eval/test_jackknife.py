"""Intervals by leaving out groups of prompts, against naive recomputation."""

import numpy as np
import pytest
import torch

from mm_cca.eval.metrics import jackknife
from mm_cca.eval.metrics.distances import Gaussian
from mm_cca.eval.metrics.frechet import FrechetSample, FrechetTarget
from mm_cca.eval.metrics.jackknife import (
    GROUPS,
    frechet_without,
    groups_of_prompts,
    jackknife_interval,
    mean_without,
    recall_without,
)
from mm_cca.eval.metrics.prdc import precision_recall


def features(count: int, seed: int, size: int = 4) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_mean_without_a_group():
    found = mean_without(np.array([1.0, 2.0, 3.0, 6.0]), np.array([0, 1, 0, 1]))
    assert found.tolist() == [4.0, 2.0]
    negative = jackknife_interval(-2.0, np.array([-1.0, -2.0, -3.0]), least=-np.inf)
    assert negative["low"] + negative["high"] == pytest.approx(-4.0)


@pytest.mark.parametrize(("chunk", "nearest"), [(1024, 32), (7, 32), (7, 5)])
def test_recall_without_a_group_is_that_of_the_others(
    chunk: int, nearest: int, monkeypatch: pytest.MonkeyPatch
):
    """Of five neighbours, too few are left for some images."""
    monkeypatch.setattr(jackknife, "NEAREST", nearest)
    generated, real = features(40, 0), features(30, 1)
    left_out = np.arange(40) % 5
    found = recall_without(generated, real, left_out, chunk=chunk)
    expected = [precision_recall(generated[left_out != g], real)[1] for g in range(5)]
    assert found == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_frechet_distance_without_a_group_is_that_of_the_others():
    generated, real = features(40, 0), features(30, 1).double().numpy()
    groups, left_out = np.arange(40) // 2, np.arange(20) % 5
    target = FrechetTarget.of(Gaussian(real.mean(0), np.cov(real, rowvar=False), len(real)))
    found = frechet_without(generated, groups, target, left_out)
    for number in range(5):
        chosen = left_out[groups] != number
        own = np.unique(groups[chosen], return_inverse=True)[1]
        alone = FrechetSample(generated[chosen], own, target).distances(np.ones((1, 16)))
        assert found[number] == pytest.approx(alone[0])


def test_of_a_mean_it_is_the_interval_of_a_mean():
    """Left-out means of single prompts have the standard error of the mean."""
    values = np.random.default_rng(0).normal(5, size=20)
    left_out = np.array([np.delete(values, n).mean() for n in range(20)])
    found = jackknife_interval(float(values.mean()), left_out)
    half = 2.093024 * values.std(ddof=1) / np.sqrt(20)  # t of 19 degrees of freedom
    assert found["high"] - found["value"] == pytest.approx(half, rel=1e-5)
    assert found["value"] - found["low"] == pytest.approx(half, rel=1e-5)


def test_an_interval_ends_where_the_statistic_does():
    found = jackknife_interval(0.9, np.array([0.5, 0.9, 1.0]), most=1.0)
    assert (found["low"], found["high"]) == (0.0, 1.0)


def test_intervals_hold_the_expected_statistic_as_often_as_they_say():
    """Over 150 arms of 200 images; the statistic's own bias at that number is no part of it."""
    real = features(400, 0).double().numpy()
    target = FrechetTarget.of(Gaussian(real.mean(0), np.cov(real, rowvar=False), len(real)))
    left_out, prompts = groups_of_prompts(200, seed=0), np.arange(200)
    found = []
    for seed in range(1, 151):
        arm = 0.8 * features(200, seed) + 0.3
        distance = FrechetSample(arm, prompts, target).distances(np.ones((1, 200)))[0]
        recall = precision_recall(arm, torch.from_numpy(real).float())[1]
        without = recall_without(arm, torch.from_numpy(real).float(), left_out)
        found.append(
            (
                jackknife_interval(distance, frechet_without(arm, prompts, target, left_out)),
                jackknife_interval(recall, without, most=1.0),
            )
        )
    for intervals in zip(*found, strict=True):
        expected = np.mean([one["value"] for one in intervals])
        share = np.mean([one["low"] <= expected <= one["high"] for one in intervals])
        assert 0.9 <= share <= 0.99


def test_groups_are_of_one_size_and_the_same_for_one_seed():
    groups = groups_of_prompts(1010, seed=3)
    assert set(np.bincount(groups)) == {50, 51}
    assert np.array_equal(groups, groups_of_prompts(1010, seed=3))
    assert not np.array_equal(groups, groups_of_prompts(1010, seed=4))
    assert sorted(groups_of_prompts(6, seed=0)) == list(range(6))
    assert groups.max() == GROUPS - 1
