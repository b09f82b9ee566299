"""Bootstrap intervals over prompts: 95 %, by percentiles."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from mm_cca.eval.summary_types import Interval


def mean_interval(values: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """Mean of [n] values and its interval.

    Args:
        values: one per prompt.
        resamples: of the bootstrap.
        seed: of the resampling; equal seeds resample the same prompts.
    """
    numbers = values.astype(np.float64)
    value = float(numbers.mean())
    if np.ptp(numbers) == 0:
        return {"value": value, "low": value, "high": value}
    low, high = _percentiles(
        numbers,
        lambda x, axis: x.mean(axis=axis),
        resamples=resamples,
        seed=seed,
        vectorized=True,
        batch=100,
    )
    return {"value": value, "low": low, "high": high}


def statistic_interval(
    num_prompts: int, statistic: Callable[[np.ndarray], float], *, resamples: int, seed: int
) -> Interval:
    """A number that is no mean, and its interval.

    Args:
        num_prompts: n.
        statistic: [n] indices of prompts, some more than once -> the number.
        resamples: of the bootstrap.
        seed: of the resampling.
    """
    everyone = np.arange(num_prompts)
    low, high = _percentiles(everyone, statistic, resamples=resamples, seed=seed, vectorized=False)
    return {"value": float(statistic(everyone)), "low": low, "high": high}


def _percentiles(
    sample: np.ndarray,
    statistic: Callable[..., Any],
    *,
    resamples: int,
    seed: int,
    vectorized: bool,
    batch: int | None = None,
) -> tuple[float, float]:
    interval = bootstrap(
        (sample,),
        statistic,
        n_resamples=resamples,
        vectorized=vectorized,
        batch=batch,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
