"""Precision, recall, density and coverage: four views of how two sets of features overlap.

Precision and recall come from torch-fidelity. Density and coverage (Naeem et al., 2020,
https://arxiv.org/abs/2002.09797) are in neither torchmetrics 1.9 nor torch-fidelity 0.4; a single
outlier among the real images does not fool them. Shapes: n generated and m real images, F features.
"""

import torch
from torch_fidelity.metric_prc import prc_features_to_metric

PAIRS_IN_MEMORY = 10_000
"""Above so many images the distances of all pairs are not kept at once."""
PRECISION_NEIGHBOURS = 3
NEIGHBOURS = 5
"""Of density and coverage; the authors' choice."""


def precision_recall(generated: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., 2019), three neighbours."""
    result = prc_features_to_metric(
        generated,
        real,
        prc_neighborhood=PRECISION_NEIGHBOURS,
        prc_batch_size=10000,
        save_cpu_ram=max(len(generated), len(real)) > PAIRS_IN_MEMORY,
        verbose=False,
    )
    return float(result["precision"]), float(result["recall"])


def density_coverage(
    generated: torch.Tensor, real: torch.Tensor, *, neighbours: int = NEIGHBOURS, chunk: int = 1024
) -> tuple[float, float]:
    """Density: how crowded the real neighbourhoods are with generated images, 1 for equal sets on
    average and possibly more. Coverage: the share of real neighbourhoods that hold one at all.

    A real image's neighbourhood is the open ball that reaches to its k-th nearest other real image.

    Args:
        generated: [n, F].
        real: [m, F]; m must exceed ``neighbours``.
        neighbours: k.
        chunk: real images compared at a time.
    """
    inside = torch.zeros((), dtype=torch.int64)
    covered = torch.zeros((), dtype=torch.int64)
    own, others = real.double(), generated.double()
    for part in own.split(chunk):
        # The nearest is the image itself, at no distance.
        radius = torch.cdist(part, own).kthvalue(neighbours + 1).values
        within = torch.cdist(part, others) < radius[:, None]
        inside += within.sum()
        covered += within.any(dim=1).sum()
    density = float(inside) / (neighbours * len(others))
    return density, float(covered) / len(own)
