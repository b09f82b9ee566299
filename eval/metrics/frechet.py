"""Frechet distances of many resamples of prompts, and of infinitely many images.

With the symmetric root R of the reference's covariance and y = x R, the distance of images x is
|mean x - mean ref|^2 + tr C_x + tr C_ref - 2 tr sqrt(C_y): one covariance and the eigenvalues of a
symmetric matrix per resample, min(images, F) wide. Time and memory grow with
B * images * F * min(images, F) and B * min(images, F)^3. Shapes: n images of P prompts, F feature
size, B resamples.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mm_cca.eval.metrics.distances import Gaussian

PER_DIMENSION = 10
"""Below so many images per dimension a Frechet distance is mostly bias, and a caution says so."""
SIZES, REPEATS = 15, 4
"""Of the fit against 1/n: 15 sizes as in the paper, from half of the prompts to all of them, each
this often, or once above ``LARGE`` dimensions."""
LARGE = 512
FEWEST_TO_EXTRAPOLATE = 8
"""Of fewer prompts the distance is given as it is."""
LEAST_SHARE = 0.5
WORK = 2e12
"""Multiplications that the resamples of one difference may take, about a minute of one core."""
FEWEST_RESAMPLES = 200


@dataclass(frozen=True)
class FrechetTarget:
    """A reference set, prepared for many distances.

    Attributes:
        mu: [F] its mean.
        root: [F, F] symmetric root of its covariance.
        trace: of its covariance.
    """

    mu: np.ndarray
    root: np.ndarray
    trace: float

    @classmethod
    def of(cls, reference: Gaussian) -> "FrechetTarget":
        values, vectors = np.linalg.eigh(reference.sigma)
        root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
        return cls(reference.mu, root, float(np.trace(reference.sigma)))


class FrechetSample:
    """The images of one arm, prepared for many distances to one target."""

    def __init__(self, features: torch.Tensor, groups: np.ndarray, target: FrechetTarget) -> None:
        """
        Args:
            features: [n, F] of the images.
            groups: [n] number of each image's prompt, 0 to P - 1.
            target: what they are compared with.
        """
        self._x = features.double().numpy() - target.mu
        self._groups = groups
        self._target = target

    @cached_property
    def _y(self) -> np.ndarray:
        return self._x @ self._target.root

    @cached_property
    def _squares(self) -> np.ndarray:
        """[n] squared distance of every image to the reference's mean."""
        return np.einsum("nf,nf->n", self._x, self._x)

    def distances(self, counts: np.ndarray) -> np.ndarray:
        """[B] distances.

        Args:
            counts: [B, P] how often each prompt is in each resample, at least two images in all.
        """
        return np.array([self._distance(row[self._groups]) for row in counts])

    def _distance(self, weights: np.ndarray) -> float:
        """|m|^2 + tr C_x = (sum of squares - |m|^2) n / (n - 1) + |m|^2, with m from the target."""
        chosen = np.flatnonzero(weights)
        weights = weights[chosen]
        n = weights.sum()
        mean = weights @ self._x[chosen] / n
        gap = float(mean @ mean)
        trace = (float(weights @ self._squares[chosen]) - n * gap) / (n - 1)
        y = self._y[chosen]
        y = np.sqrt(weights / (n - 1))[:, None] * (y - weights @ y / n)
        gram = y @ y.T if len(y) < y.shape[1] else y.T @ y
        roots = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
        return gap + trace + self._target.trace - 2 * float(roots)


def affordable_resamples(wanted: int, num_images: int, size: int) -> int:
    """At most ``wanted`` resamples, fewer where a difference of two arms would take too long.

    1,000 are affordable for 8,000 images in 256 dimensions, or 500 in 1,280; 8,000 in 512 get 375.
    Counted, not timed, so that every machine gives the same interval.

    Args:
        wanted: resamples asked for.
        num_images: of one arm.
        size: F.
    """
    rows = 0.63 * num_images  # so many are in a resample
    width = min(rows, size)
    cost = 2 * (rows * size * width + 10 * width**3)
    return min(wanted, max(FEWEST_RESAMPLES, int(WORK / cost)))


def frechet_at_infinity(
    features: torch.Tensor, groups: np.ndarray, target: FrechetTarget, *, seed: int
) -> float:
    """The distance that infinitely many images would have (Chong and Forsyth, 2020).

    A straight line through the distances of random subsets of prompts against 1/n, read at 1/n = 0.
    Only the bias of the generated images is removed, not that of the reference. It may be negative.

    Args:
        features: [n, F] of the images.
        groups: [n] number of each image's prompt, 0 to P - 1.
        target: what they are compared with.
        seed: of the subsets.
    """
    sample, num_prompts = FrechetSample(features, groups, target), int(groups.max()) + 1
    if num_prompts < FEWEST_TO_EXTRAPOLATE:
        return float(sample.distances(np.ones((1, num_prompts)))[0])
    rng = np.random.default_rng(seed)
    per_prompt = np.bincount(groups, minlength=num_prompts)
    sizes = np.linspace(LEAST_SHARE * num_prompts, num_prompts, SIZES).round().astype(int)
    rows = []
    for size in sizes.repeat(REPEATS if features.shape[1] <= LARGE else 1):
        row = np.zeros(num_prompts)
        row[rng.permutation(num_prompts)[:size]] = 1
        rows.append(row)
    counts = np.stack(rows)
    slope_and_value = np.polyfit(1 / (counts @ per_prompt), sample.distances(counts), 1)
    return float(slope_and_value[1])
