"""Bootstrap intervals over prompts."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from mm_cca.config.schema import Recipe


def mean_interval(values: np.ndarray, recipe: Recipe) -> dict[str, float]:
    """Mean of [n] values and its 95 % percentile interval."""
    numbers = values.astype(np.float64)
    return _interval(numbers, lambda x, axis: x.mean(axis=axis), recipe, vectorized=True)


def statistic_interval(
    num_prompts: int, statistic: Callable[[np.ndarray], float], recipe: Recipe, resamples: int
) -> dict[str, float]:
    """A number that is no mean, computed anew from resampled prompt indices [n]."""
    return _interval(np.arange(num_prompts), statistic, recipe, vectorized=False, count=resamples)


def _interval(
    sample: np.ndarray,
    statistic: Callable[..., Any],
    recipe: Recipe,
    *,
    vectorized: bool,
    count: int | None = None,
) -> dict[str, float]:
    value = float(statistic(sample, axis=-1) if vectorized else statistic(sample))
    if vectorized and np.ptp(sample) == 0:
        return {"value": value, "low": value, "high": value}
    interval = bootstrap(
        (sample,),
        statistic,
        n_resamples=count or recipe.eval.bootstrap_samples,
        vectorized=vectorized,
        batch=100 if vectorized else None,
        method="percentile",
        rng=np.random.default_rng(recipe.sample.seed),
    ).confidence_interval
    return {"value": value, "low": float(interval.low), "high": float(interval.high)}
