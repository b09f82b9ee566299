"""Intervals in closed form: by hand, and how often they hold the truth where the truth is known."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from mm_cca.eval.metrics.intervals import (
    mean_interval,
    quantile_of,
    share_difference_interval,
    share_interval,
)
from mm_cca.eval.scores import per_prompt
from mm_cca.eval.summary_types import Interval

Rng = np.random.Generator


def coverage(draw: Callable[[Rng], Interval], truth: float, trials: int = 1000) -> float:
    """Share of intervals that hold the truth."""
    rng = np.random.default_rng(0)
    found = [draw(rng) for _ in range(trials)]
    return float(np.mean([each["low"] <= truth <= each["high"] for each in found]))


def test_t_interval_by_hand():
    """1, 2, 3, 4: deviation sqrt(5/3), error half of it; t with 3 degrees of freedom is 3.1824."""
    found = mean_interval(np.array([1, 2, 3, 4]))
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert found == pytest.approx({"value": 2.5, "low": 2.5 - half, "high": 2.5 + half}, rel=1e-6)
    wide = mean_interval(np.array([1, 2, 3, 4]), widening=2)
    assert wide["high"] - 2.5 == pytest.approx(2 * half)


def test_a_mean_without_spread_is_exact():
    assert mean_interval(np.full(7, 0.1)) == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    assert mean_interval(np.array([3.0])) == {"value": 3.0, "low": 3.0, "high": 3.0}


@pytest.mark.parametrize("n", [5, 12])
def test_t_intervals_of_few_prompts_hold_the_mean(n: int):
    found = coverage(lambda rng: mean_interval(rng.normal(2, 3, n)), 2)
    assert 0.93 < found < 0.97
    # What was done before: percentiles of resampled means.
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        values = rng.normal(2, 3, n)
        means = values[rng.integers(0, n, (300, n))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        held += low <= 2 <= high
    assert held / 300 < found


def test_several_images_of_one_prompt_are_no_new_prompts():
    """Ten prompts with five images each, alike within a prompt."""
    groups = np.repeat(np.arange(10), 5)

    def images(rng: Rng) -> np.ndarray:
        return rng.normal(size=10)[groups] + 0.3 * rng.normal(size=50)

    clustered = coverage(lambda rng: mean_interval(per_prompt(images(rng), groups)), 0)
    each = coverage(lambda rng: mean_interval(images(rng)), 0)
    assert 0.93 < clustered < 0.97
    assert each < 0.75


@pytest.mark.parametrize("right", [0, 1, 8, 10])
def test_wilson_ends_solve_their_equation(right: int):
    """Either end p is z errors of a share p from the share that was found."""
    shares, z = (np.arange(10) < right).astype(float), quantile_of(10, 0.95)
    found = share_interval(shares)
    assert found["value"] == right / 10
    assert 0 <= found["low"] <= right / 10 <= found["high"] <= 1
    for end in (found["low"], found["high"]):
        assert abs(end - right / 10) == pytest.approx(z * math.sqrt(end * (1 - end) / 10), abs=1e-9)
    assert found["high"] > found["low"], "ten of ten is no certainty"


@pytest.mark.parametrize(("n", "p"), [(10, 0.1), (10, 0.5), (40, 0.95)])
def test_shares_of_few_prompts_are_held(n: int, p: float):
    found = coverage(lambda rng: share_interval((rng.random(n) < p).astype(float)), p)
    assert found > 0.94


def test_shares_with_several_images_per_prompt_are_held():
    """Prompts differ in how easy they are; images of one are independent given that."""

    def means(rng: Rng) -> np.ndarray:
        return (rng.random((25, 4)) < rng.beta(1, 1, (25, 1))).mean(axis=1)

    assert 0.93 < coverage(lambda rng: share_interval(means(rng)), 0.5) < 0.98
    alike = np.repeat([0.0, 1.0], 20)
    assert share_interval(np.append(alike, [0.5, 0.5])) == pytest.approx(
        share_interval(alike), abs=0.02
    )


def test_difference_of_shares_by_hand():
    """Two gained, none lost of six: (3 - 1) / 8 about .25, error sqrt((4 - 2^2 / 8) / 8 / 8)."""
    found = share_difference_interval(np.array([1, 1, 0, 0, 0, 0]))
    half = quantile_of(6, 0.95) * math.sqrt((3 / 8 + 1 / 8 - (2 / 8) ** 2) / 8)
    assert found["value"] == pytest.approx(1 / 3)
    assert (found["low"], found["high"]) == pytest.approx((0.25 - half, 0.25 + half))


def test_no_difference_on_a_few_prompts_is_not_known_to_be_none():
    found = [share_difference_interval(np.zeros(n)) for n in (8, 800)]
    assert [each["value"] for each in found] == [0, 0]
    assert found[0]["high"] > 0.3
    assert 0 < found[1]["high"] < 0.01
    halves = share_difference_interval(np.full(8, 0.5))
    assert halves == {"value": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.parametrize(("n", "p"), [(20, 0.5), (20, 0.9), (200, 0.2)])
def test_false_differences_of_shares(n: int, p: float):
    def difference(rng: Rng) -> Interval:
        ours, theirs = (rng.random(n) < p for _ in range(2))
        return share_difference_interval(ours.astype(float) - theirs)

    assert coverage(difference, 0) > 0.935
