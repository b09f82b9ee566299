"""CMMD: maximum mean discrepancy of image embeddings (Jayasumana et al., CVPR 2024).

The definition of https://github.com/google-research/google-research/tree/master/cmmd and of the
package clip-mmd, which is pinned to cuda: L2-normalised embeddings, Gaussian kernel of width 10,
means over all pairs (an image with itself too), times 1000. Published figures use
CLIP ViT-L/14 at 336 pixels; on another tower only figures of that tower compare.

Shapes: n and m images, F feature size.
"""

import torch
from torch.nn.functional import normalize

SIGMA = 10.0
SCALE = 1000.0


def cmmd(generated: torch.Tensor, real: torch.Tensor, *, chunk: int = 1024) -> float:
    """CMMD of [n, F] and [m, F] embeddings, not normalised yet; 0 for equal sets."""
    ours, theirs = (normalize(x.double(), dim=-1) for x in (generated, real))
    between = _mean_kernel(ours, theirs, chunk)
    return SCALE * (
        _mean_kernel(ours, ours, chunk) + _mean_kernel(theirs, theirs, chunk) - 2 * between
    )


def _mean_kernel(a: torch.Tensor, b: torch.Tensor, chunk: int) -> float:
    """Mean over all pairs of exp(-|x - y|^2 / 2 sigma^2); rows have length 1."""
    total = 0.0
    for part in a.split(chunk):
        squared = (2 - 2 * part @ b.T).clamp_min(0)
        total += float(torch.exp(-squared / (2 * SIGMA**2)).sum())
    return total / (len(a) * len(b))
