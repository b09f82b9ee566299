"""The kernel distance over all pairs, what each prompt adds to it, and features that are none."""

import numpy as np
import pytest
import torch

from mm_cca.errors import UserError
from mm_cca.eval.metrics.finite import refuse_not_finite
from mm_cca.eval.metrics.intervals import mean_interval
from mm_cca.eval.metrics.kernel import kernel_pseudo_values, own_kernel
from tests.support.closeness import features


def naive_distance(images: np.ndarray, real: np.ndarray, groups: np.ndarray) -> float:
    """Pairs of prompts, less twice the pairs with the reference, and pairs of the reference."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(np.dot(x, y)) / len(x) + 1) ** 3

    within = [
        kernel(x, y)
        for x, p in zip(images, groups, strict=True)
        for y, q in zip(images, groups, strict=True)
        if p != q
    ]
    across = [kernel(x, y) for x in images for y in real]
    own = [kernel(x, y) for i, x in enumerate(real) for j, y in enumerate(real) if i != j]
    return float(np.mean(within) - 2 * np.mean(across) + np.mean(own))


@pytest.mark.parametrize("groups", [list(range(8)), [0, 0, 1, 2, 3, 4, 4, 4]])
@pytest.mark.parametrize("chunk", [3, 1024])
def test_pseudo_values_against_leaving_prompts_out(groups: list[int], chunk: int):
    numbers = np.array(groups)
    images, real = features(0, 8, shift=0.5), features(1, 7)
    x, y = images.double().numpy(), real.double().numpy()
    own = own_kernel(real, chunk=chunk)
    found = kernel_pseudo_values(images, real, numbers, chunk=chunk)
    whole = naive_distance(x, y, numbers)
    assert found.mean() + own == pytest.approx(whole)
    p = numbers.max() + 1
    expected = np.array(
        [
            p * whole - (p - 1) * naive_distance(x[numbers != q], y, numbers[numbers != q])
            for q in range(p)
        ]
    )
    assert found - found.mean() == pytest.approx(expected - expected.mean())
    assert found.std() > 0.1


def test_distance_by_hand():
    """Images 1 and -1, 0 of a third; reference 1 and 3: kernels (xy + 1)^3."""
    images, real = torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([[1.0], [3.0]])
    found = kernel_pseudo_values(images, real, np.arange(3))
    within = (0 + 1 + 1) / 3
    across = (8 + 64 + 0 - 8 + 1 + 1) / 6
    assert found.mean() == pytest.approx(within - 2 * across)
    assert own_kernel(real) == 64


@pytest.mark.parametrize("per_prompt", [1, 3])
def test_false_differences_are_as_rare_as_they_should_be(per_prompt: int):
    """Arms of the same distribution; pictures of one prompt are alike, also between arms."""
    rng, trials, found = np.random.default_rng(0), 300, 0
    groups = np.repeat(np.arange(40), per_prompt)
    for _ in range(trials):
        real = torch.from_numpy(rng.normal(size=(60, 5)))
        prompts = rng.normal(size=(40, 5))[groups]
        ours, theirs = (
            torch.from_numpy(0.6 * prompts + 0.8 * rng.normal(size=prompts.shape) + 0.4)
            for _ in range(2)
        )
        values = [kernel_pseudo_values(x, real, groups) for x in (ours, theirs)]
        interval = mean_interval(values[0] - values[1])
        found += not interval["low"] <= 0 <= interval["high"]
    print(f"false differences: {found / trials:.3f}")
    assert 0.01 < found / trials < 0.085


def test_a_farther_arm_is_found():
    real, near, far = features(0, 200), features(1, 80, shift=0.2), features(2, 80, shift=0.7)
    values = [kernel_pseudo_values(x, real, np.arange(80)) for x in (far, near)]
    assert mean_interval(values[0] - values[1])["low"] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused(bad: float):
    wrong = features(0, 9)
    wrong[4, 2] = wrong[7, 0] = bad
    with pytest.raises(UserError, match=r"arm cca, split train: 2 of 9 rows .* first is row 4"):
        refuse_not_finite(wrong, "arm cca, split train")
    refuse_not_finite(features(0, 9), "arm cca, split train")
