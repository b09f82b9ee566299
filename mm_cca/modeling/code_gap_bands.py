"""How sure the curves of ``mm-cca gaps`` are: bands by bootstrap over images.

Codes of one image are not independent, so whole images are drawn again.
Shapes: B images, N codes of an image, R rows of the grid, Q bins.
"""

import numpy as np
import torch

from mm_cca.modeling.code_gaps import CodeGaps, bins_of_relevance, named

RESAMPLES = 1000
LEVELS = (2.5, 97.5)
"""Percentiles: of a 95 % interval."""

Band = dict[str, list[list[float]]]
"""Name of a curve -> low and high of every point."""


def band_by_row(gaps: CodeGaps, columns: int, *, seed: int = 0) -> Band:
    """Of ``by_row``: [R] pairs for every curve."""
    times = _times_drawn(len(gaps.own), seed)
    bands = {}
    for name, values in named(gaps).items():
        rows = values.double().view(len(values), -1, columns).mean(dim=2).numpy()
        bands[name] = _percentiles(times @ rows / len(rows))
    return bands


def band_by_relevance(gaps: CodeGaps, num_bins: int, *, seed: int = 0) -> Band:
    """Of ``by_relevance``: [Q] pairs for ``own`` and ``wrong``, in the bins of all images."""
    times, num_codes = _times_drawn(len(gaps.own), seed), gaps.own.shape[1]
    bins = bins_of_relevance(gaps, num_bins)
    return {
        name: _percentiles(_means_of_bins(values, bins, num_codes, times))
        for name, values in (("own", gaps.own), ("wrong", gaps.wrong))
    }


def _means_of_bins(
    values: torch.Tensor, bins: list[np.ndarray], num_codes: int, times: np.ndarray
) -> np.ndarray:
    """[resamples, Q] means over the codes of a bin; of a bin without any image drawn, NaN."""
    flat, means = values.double().flatten().numpy(), []
    for codes in bins:
        images, count = codes // num_codes, len(values)
        sums = np.bincount(images, weights=flat[codes], minlength=count)
        counts = np.bincount(images, minlength=count)
        with np.errstate(invalid="ignore"):
            means.append((times @ sums) / (times @ counts))
    return np.stack(means, axis=1)


def _times_drawn(count: int, seed: int) -> np.ndarray:
    """[resamples, B] how often each image is drawn."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)


def _percentiles(means: np.ndarray) -> list[list[float]]:
    found: list[list[float]] = np.nanpercentile(means, LEVELS, axis=0).T.tolist()
    return found
