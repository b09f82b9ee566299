"""Intervals in closed form, over prompts: t for means, Wilson for shares.

Images of one prompt are alike, so a prompt counts once: every function takes one number per prompt,
the mean of its images. Shapes: n prompts.
"""

import math

import numpy as np
from scipy.special import stdtrit

from mm_cca.eval.summary_types import Interval

CONFIDENCE = 0.95
FEW_PROMPTS = 30
"""Below so many prompts an interval leans on its assumptions, and a caution says so."""


def quantile_of(n: int, confidence: float) -> float:
    """How many standard errors of a mean of n numbers the interval reaches to either side."""
    return float(stdtrit(max(n - 1, 1), (1 + confidence) / 2))


def mean_interval(
    values: np.ndarray, *, confidence: float = CONFIDENCE, widening: float = 1.0
) -> Interval:
    """Mean of [n] numbers and its t interval; exact where all are equal.

    Args:
        values: one per prompt. A single one has no spread to tell an interval from: low and high
            are the value.
        confidence: share of such intervals that hold the true mean.
        widening: factor of the standard error.
    """
    numbers = values.astype(np.float64)
    value, n = float(numbers.mean()), len(numbers)
    if np.ptp(numbers) == 0:
        return {"value": value, "low": value, "high": value}
    error = widening * float(numbers.std(ddof=1)) / math.sqrt(n)
    half = quantile_of(n, confidence) * error
    return {"value": value, "low": value - half, "high": value + half}


def share_interval(shares: np.ndarray, *, confidence: float = CONFIDENCE) -> Interval:
    """Mean of [n] shares and its Wilson interval, which never leaves 0 to 1.

    With several images per prompt, n is replaced by the number of independent answers that would
    have the same standard error (Korn and Graubard, 1998).

    Args:
        shares: one per prompt, from 0 to 1.
        confidence: share of such intervals that hold the true share.
    """
    numbers = shares.astype(np.float64)
    p, n = float(numbers.mean()), float(len(numbers))
    z = quantile_of(len(numbers), confidence)
    if np.ptp(numbers) > 0 and np.any((numbers > 0) & (numbers < 1)):
        n = p * (1 - p) / (float(numbers.var(ddof=1)) / n)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return {
        "value": p,
        "low": min(p, max(0.0, centre - half)),
        "high": max(p, min(1.0, centre + half)),
    }


def share_difference_interval(
    differences: np.ndarray, *, confidence: float = CONFIDENCE, widening: float = 1.0
) -> Interval:
    """Mean of [n] paired differences of shares and its interval.

    With one image per prompt (all differences -1, 0 or 1) the Wald interval of Bonett and Price
    (2012), which adds one prompt to either kind of change: arms that never differ on 20 prompts are
    not known to be equal. Otherwise the t interval.

    Args:
        differences: one per prompt, from -1 to 1.
        confidence: share of such intervals that hold the true difference.
        widening: factor of the standard error.
    """
    numbers = differences.astype(np.float64)
    if not np.isin(numbers, (-1, 0, 1)).all():
        return mean_interval(numbers, confidence=confidence, widening=widening)
    n = len(numbers)
    gained, lost = (((numbers == sign).sum() + 1) / (n + 2) for sign in (1, -1))
    error = widening * math.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    half = quantile_of(n, confidence) * error
    centre, value = float(gained - lost), float(numbers.mean())
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return {"value": value, "low": min(value, low), "high": max(value, high)}
