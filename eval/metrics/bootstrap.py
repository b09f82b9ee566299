"""Resampling of whole prompts, and basic bootstrap intervals of biased statistics.

A Frechet distance of n images is too large by about a constant over n, and resampling adds the same
bias once more. Percentiles of the resampled distances are therefore off by twice the bias, which is
smaller in a less diverse arm; the basic interval reflects them about the distance itself, and the
bias cancels. Shapes: B resamples, P prompts.
"""

import numpy as np

from mm_cca.eval.summary_types import Interval


def intervals_text(resamples: int) -> str:
    """What is done about intervals, for the protocol."""
    return (
        "95 %, over prompts (images of one prompt count as one): t for means, Wilson for shares, "
        "jackknife for kernel distances, basic bootstrap of Frechet distances with at most "
        f"{resamples} resamples, against the same reference images. Differences: paired; the "
        "intervals of one sentence hold together at 95 % (Bonferroni over its scores)."
    )


def resampled_prompts(num_prompts: int, *, resamples: int, seed: int) -> np.ndarray:
    """[B, P] float64: how often each prompt is in each resample of as many prompts.

    Equal arguments give equal resamples, so that arms are compared on the same prompts.
    """
    even = np.full(num_prompts, 1 / num_prompts)
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_prompts, even, size=resamples).astype(np.float64)


def basic_interval(
    value: float, resampled: np.ndarray, *, confidence: float, widening: float = 1.0
) -> Interval:
    """A statistic and its basic bootstrap interval.

    Args:
        value: of the prompts themselves. It is biased, so it may lie outside of its interval.
        resampled: [B] values of the resamples.
        confidence: share of such intervals that hold the true value.
        widening: factor of the interval's width, about its middle.
    """
    tails = ((1 + confidence) / 2, (1 - confidence) / 2)
    low, high = (float(2 * value - q) for q in np.quantile(resampled, tails))
    middle, half = (low + high) / 2, widening * (high - low) / 2
    return {"value": float(value), "low": middle - half, "high": middle + half}


def halves_of(num_prompts: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the prompts of either half, ascending; the same for every arm and judge.

    Args:
        num_prompts: 2 or more; of an odd number the second half has one more.
        seed: of the split.
    """
    order = np.random.default_rng(seed).permutation(num_prompts)
    middle = num_prompts // 2
    return np.sort(order[:middle]), np.sort(order[middle:])
