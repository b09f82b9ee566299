"""Density and coverage (Naeem et al., 2020, https://arxiv.org/abs/2002.09797).

Neither torchmetrics 1.9 nor torch-fidelity 0.4 has them. Unlike precision and recall they are not
fooled by a single outlier among the real images. Shapes: n generated and m real images, F features.
"""

import torch

NEIGHBOURS = 5
"""The authors' choice."""


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
