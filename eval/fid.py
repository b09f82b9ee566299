"""Distances between sets of image features, by torchmetrics and torch-fidelity.

Only the main rank computes them, so nothing may be gathered from the others (sync_on_compute).
They are FID and KID only on Inception features; on a scorer's features they are called Frechet and
kernel distance. Shapes: n and m images, F feature size.
"""

import warnings

import torch
from torch import nn
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


class _Features(nn.Module):
    """Stands where torchmetrics expects an extractor: the features are there already."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_distance(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Frechet distance of [n, F] and [m, F]. Needs at least two rows each."""
    metric = FrechetInceptionDistance(feature=_Features(real.shape[1]), sync_on_compute=False)
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kernel_distance(generated: torch.Tensor, real: torch.Tensor, *, seed: int) -> float:
    """Mean kernel distance (cubic kernel) over 50 subsets of at most 1,000 rows."""
    size = min(1000, len(generated) // 2, len(real) // 2)
    with warnings.catch_warnings():
        # That it keeps all features is what the caller did already.
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(
            feature=_Features(real.shape[1]), subset_size=size, subsets=50, sync_on_compute=False
        )
    metric.update(real, real=True)
    metric.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return float(mean)


def precision_recall(generated: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., 2019), three neighbours."""
    result = prc_features_to_metric(
        generated, real, prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False
    )
    return float(result["precision"]), float(result["recall"])
