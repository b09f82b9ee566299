"""Warnings of training: each at the right values, once, and not for a dip that recovers."""

import numpy as np
import pytest

from mm_cca.training.health import Constants, Health, warnings_of

CODES = Constants(num_codes=64, beta=0.18)


def test_a_healthy_run_is_silent():
    assert warnings_of({"positive_gap": -20.0, "negative_gap": -60.0}, CODES) == {}
    assert warnings_of({"positive_gap": None, "negative_gap": None}, CODES) == {}
    assert warnings_of({"loss": 3.0}, CODES) == {}


def test_both_likelihoods_falling():
    found = warnings_of({"positive_gap": -65.0, "negative_gap": -66.0}, CODES)
    assert list(found) == ["collapse"]
    assert "-1.02 nats per code: the likelihood of the training images" in found["collapse"]
    assert "Raise loss.beta, or lower loss.lambda_" in found["collapse"]


def test_saturated_negatives():
    found = warnings_of({"positive_gap": 0.0, "negative_gap": -77.0}, CODES)
    assert list(found) == ["saturated"]
    assert "is -14:" in found["saturated"]


def test_without_cca_nothing_saturates():
    """For dpo only the margin counts: a collapse gives no other warning."""
    numbers = {"positive_gap": -200.0, "negative_gap": -202.0}
    assert list(warnings_of(numbers, Constants(64, None))) == ["collapse"]


def test_with_a_floor_the_floored_gap_saturates():
    numbers = {"positive_gap": 0.0, "negative_gap": -500.0, "floored_gap": -60.0}
    assert warnings_of(numbers, CODES) == {}
    found = warnings_of(numbers | {"floored_gap": -77.0}, CODES)
    assert "beta * floored_gap is -14:" in found["saturated"]


def test_saturated_drawn_pictures():
    of_ddo = Constants(num_codes=64, beta=None, drawn_beta=0.18)
    assert warnings_of({"positive_gap": 0.0, "drawn_gap": -60.0}, of_ddo) == {}
    found = warnings_of({"positive_gap": 0.0, "drawn_gap": -77.0}, of_ddo)
    assert list(found) == ["drawn"]
    assert "beta * drawn_gap is -14:" in found["drawn"]


def test_unlearn_is_watched():
    numbers = {"positive_gap": 0.0, "negative_gap": -70.0}
    assert warnings_of(numbers, Constants(64, None)) == {}
    assert list(warnings_of(numbers, Constants(64, None, unbounded=True))) == ["unbounded"]


def trace(values: np.ndarray, seed: int = 0, noise: float = 6.0) -> list[dict[str, float]]:
    """Metrics of a training whose positive gap follows ``values`` (nats per code), with noise."""
    shaken = 64 * values + np.random.default_rng(seed).normal(0, noise, len(values))
    return [{"positive_gap": value} for value in shaken.tolist()]


def warned_at(steps: list[dict[str, float]], warmup_steps: int = 10) -> list[int]:
    health = Health(Constants(64, None), warmup_steps=warmup_steps)
    return [number for number, step in enumerate(steps) if health.see(step)]


STEPS = np.arange(300.0)
FIRST_DIP = -2.4 * (STEPS / 28) * np.exp(1 - STEPS / 28) - 0.6 * (1 - np.exp(-STEPS / 60))
"""As measured with cca at a small beta: -2.2 over steps 20 to 39, then slowly back to -0.6."""


@pytest.mark.parametrize("seed", range(20))
def test_a_first_dip_that_recovers_is_healthy(seed: int):
    assert FIRST_DIP[20:40].mean() < -2
    assert warned_at(trace(FIRST_DIP, seed)) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_collapse_is_told_within_its_first_hundred_steps(seed: int):
    falling = -0.03 * STEPS  # without end, as with dpo
    low = -2.5 * (1 - np.exp(-STEPS / 15))  # and stays there
    late = np.where(STEPS < 150, -0.1, -0.1 - 0.04 * (STEPS - 150))
    for values, crossed in ((falling, 33), (low, 8), (late, 172)):
        (step,) = warned_at(trace(values, seed))
        assert crossed < step < crossed + 100


@pytest.mark.parametrize("seed", range(20))
def test_noise_around_a_healthy_value_is_silent(seed: int):
    assert warned_at(trace(np.full(300, -0.9), seed, noise=20.0)) == []


def test_the_warmup_does_not_count():
    steps = trace(np.full(300, -3.0))
    (early,) = warned_at(steps, warmup_steps=0)
    (late,) = warned_at(steps, warmup_steps=100)
    assert early >= 3 * 20 - 2
    assert late == pytest.approx(early + 100, abs=60)


def test_each_sentence_once():
    health = Health(CODES, window=4)
    steps = [{"positive_gap": -100.0, "negative_gap": 0.0}] * 30
    said = [sentence for step in steps for sentence in health.see(step)]
    (sentence,) = said
    assert "-1.56 nats per code" in sentence


def test_steps_without_the_signal_are_left_out():
    """Steps whose captions were all dropped have no positive gap."""
    health = Health(CODES, window=4)
    steps = [{"positive_gap": g, "negative_gap": 0.0} for g in (-100.0, -100.0, None, None) * 6]
    assert sum(len(health.see(step)) for step in steps) == 1
