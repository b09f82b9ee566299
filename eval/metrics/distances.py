"""Distances between sets of image features, by torchmetrics and torch-fidelity.

Only the main rank computes them, so nothing may be gathered from the others (sync_on_compute).
They are FID and KID only on Inception features; on a scorer's features they are called Frechet and
kernel distance. Shapes: n and m images, F feature size.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

KERNEL_SUBSETS = 50
KERNEL_SUBSET_SIZE = 1000
INCEPTION_SPLITS = 10
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set, which is all that a Frechet distance needs.

    Attributes:
        mu: [F] float64 mean.
        sigma: [F, F] float64 covariance, divided by n - 1.
        n: images.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int


class _Features(nn.Module):
    """Takes the place of torchmetrics' extractor, as features are already extracted."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def gaussian_of(features: torch.Tensor) -> Gaussian:
    """Mean and covariance of [n, F] features in float64."""
    statistics = fid_features_to_statistics(features.double())
    return Gaussian(statistics["mu"], statistics["sigma"], len(features))


def frechet_distance(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Frechet distance of [n, F] and [m, F]. Needs at least two rows each."""
    metric = FrechetInceptionDistance(feature=_Features(real.shape[1]), sync_on_compute=False)
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def frechet_to(generated: torch.Tensor, real: Gaussian) -> float:
    """Frechet distance of [n, F] features to a set given by mean and covariance."""
    own = gaussian_of(generated)
    return float(
        fid_statistics_to_metric(
            {"mu": own.mu, "sigma": own.sigma}, {"mu": real.mu, "sigma": real.sigma}, False
        )[KEY_METRIC_FID]
    )


def kernel_subset_size(num_generated: int, num_real: int) -> int:
    """Rows in each subset: 1,000 as published, or half of a smaller set."""
    return min(KERNEL_SUBSET_SIZE, num_generated // 2, num_real // 2)


def kernel_distance(generated: torch.Tensor, real: torch.Tensor, *, seed: int) -> float:
    """Mean kernel distance (cubic kernel) over 50 subsets of at most 1,000 rows."""
    size = kernel_subset_size(len(generated), len(real))
    with warnings.catch_warnings():
        # It warns that it keeps all features in memory, where they already are.
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(
            feature=_Features(real.shape[1]),
            subset_size=size,
            subsets=KERNEL_SUBSETS,
            sync_on_compute=False,
        )
    metric.update(real, real=True)
    metric.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return float(mean)


def inception_score(logits: torch.Tensor, *, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of the Inception score over ten shuffled splits.

    Args:
        logits: [n, 1008] ``logits_unbiased`` of the TensorFlow Inception.
        seed: of the shuffling.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        metric = InceptionScore(
            feature=_Features(logits.shape[1]), splits=INCEPTION_SPLITS, sync_on_compute=False
        )
    metric.update(logits.double())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def cmmd(generated: torch.Tensor, real: torch.Tensor, *, chunk: int = 1024) -> float:
    """CMMD (Jayasumana et al., 2024) of [n, F] and [m, F] features, normalised here; 0 if equal."""
    ours, theirs = (normalize(x.double(), dim=-1) for x in (generated, real))
    between = _mean_kernel(ours, theirs, chunk)
    return CMMD_SCALE * (
        _mean_kernel(ours, ours, chunk) + _mean_kernel(theirs, theirs, chunk) - 2 * between
    )


def _mean_kernel(a: torch.Tensor, b: torch.Tensor, chunk: int) -> float:
    """Mean over all pairs of exp(-|x - y|^2 / 2 sigma^2); rows have length 1."""
    total = 0.0
    for part in a.split(chunk):
        squared = (2 - 2 * part @ b.T).clamp_min(0)
        total += float(torch.exp(-squared / (2 * CMMD_SIGMA**2)).sum())
    return total / (len(a) * len(b))
