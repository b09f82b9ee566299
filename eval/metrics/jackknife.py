"""Intervals of numbers of a whole set of images, by leaving out one group of prompts at a time.

A bootstrap puts images in twice, and an image next to itself has no neighbourhood: precision and
recall can't be resampled with replacement. Leaving out twentieths of the prompts in turn can be
done for any statistic that is smooth over prompts. Shapes: n generated and m real images of P
prompts, G groups, F features.
"""

import math

import numpy as np
import torch

from mm_cca.eval.metrics.frechet import FrechetSample, FrechetTarget
from mm_cca.eval.metrics.intervals import CONFIDENCE, quantile_of
from mm_cca.eval.metrics.prdc import PRECISION_NEIGHBOURS
from mm_cca.eval.summary_types import Interval

GROUPS = 20
"""Twentieths of the prompts; of fewer prompts each is a group of its own."""
FEWEST_PROMPTS = 8
"""Of fewer prompts no interval can be told."""
NEAREST = 32
"""Neighbours looked at first: without one group, nearly always enough of them are left."""


def groups_of_prompts(num_prompts: int, *, seed: int) -> np.ndarray:
    """[P] the group of every prompt, as equal in size as can be; the same for all arms."""
    groups = np.arange(num_prompts) % GROUPS
    return np.random.default_rng(seed).permutation(groups)


def jackknife_interval(
    value: float,
    left_out: np.ndarray,
    *,
    least: float = 0.0,
    most: float = math.inf,
    confidence: float = CONFIDENCE,
) -> Interval:
    """A statistic, or the difference of two on the same prompts, and its t interval.

    Args:
        value: of all prompts.
        left_out: [G] values with one group left out.
        least: the smallest value it can have.
        most: the largest value it can have.
        confidence: share of such intervals that hold the true value.
    """
    count = len(left_out)
    squares = float(((left_out - left_out.mean()) ** 2).sum())
    half = quantile_of(count, confidence) * math.sqrt((count - 1) / count * squares)
    return {"value": value, "low": max(least, value - half), "high": min(most, value + half)}


def frechet_without(
    features: torch.Tensor, groups: np.ndarray, target: FrechetTarget, left_out: np.ndarray
) -> np.ndarray:
    """[G] Frechet distances, each without the images of one group of prompts.

    Args:
        features: [n, F] of the images.
        groups: [n] number of each image's prompt, 0 to P - 1.
        target: what they are compared with.
        left_out: [P] the group of every prompt.
    """
    kept = np.arange(left_out.max() + 1)[:, None] != left_out[None]
    return FrechetSample(features, groups, target).distances(kept.astype(np.float64))


def mean_without(values: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """[G] means of [P] values, each without one group; [P] ``left_out`` is the group of each."""
    sizes, sums = np.bincount(left_out), np.bincount(left_out, weights=values)
    return (values.sum() - sums) / (len(values) - sizes)


def recall_without(
    generated: torch.Tensor, real: torch.Tensor, left_out: np.ndarray, *, chunk: int = 1024
) -> np.ndarray:
    """[G] improved recalls (as ``precision_recall``), each without one group of generated images.

    Args:
        generated: [n, F]; of any G - 1 groups there must be more than three.
        real: [m, F].
        left_out: [n] the group of every generated image.
        chunk: images compared at a time.
    """
    group = torch.from_numpy(left_out)
    count = int(group.max()) + 1
    radii = torch.cat([_radii(part, generated, group, count) for part in generated.split(chunk)], 1)
    for number, radius in enumerate(radii):
        radius[group == number] = -1.0  # no ball
    inside = torch.zeros(count, dtype=torch.int64)
    for part in real.split(chunk):
        distances = torch.cdist(part, generated)
        inside += torch.stack([(distances <= radius).any(dim=1).sum() for radius in radii])
    return (inside.double() / len(real)).numpy()


def _radii(
    part: torch.Tensor, generated: torch.Tensor, group: torch.Tensor, count: int
) -> torch.Tensor:
    """[G, c] distance of each image to its third nearest other one, without each group.

    An image is its own nearest, so it is the fourth smallest distance. For images of the group
    that is left out itself the number means nothing.
    """
    wanted = PRECISION_NEIGHBOURS + 1
    distances = torch.cdist(part, generated)
    near = distances.topk(min(NEAREST, len(generated)), largest=False)
    radii = []
    for number in range(count):
        kept = group[near.indices] != number
        fourth = kept & (kept.cumsum(dim=1) == wanted)
        if fourth.any(dim=1).all():
            radii.append(near.values[fourth])
        else:
            without = distances.masked_fill(group == number, torch.inf)
            radii.append(without.kthvalue(wanted).values)
    return torch.stack(radii)
