"""Kernel distance over all pairs, and what every prompt contributes to it.

The mean over pairs is unbiased as it is (a U-statistic), so its difference between two arms needs
no correction; images of the same prompt are no pair, because they are not independent. Leaving out
one prompt at a time gives a pseudo-value per prompt: their mean is the distance, their spread its
error (jackknife). Shapes: n images of P prompts, m reference images, F feature size.
"""

import numpy as np
import torch


def kernel_pseudo_values(
    features: torch.Tensor,
    reference: torch.Tensor,
    groups: np.ndarray,
    *,
    chunk: int = 1024,
) -> np.ndarray:
    """[P] numbers whose mean is the kernel distance, less the reference's own term.

    That term is the same for every arm, so it cancels in differences; ``own_kernel`` has it.

    Args:
        features: [n, F] of the images.
        reference: [m, F].
        groups: [n] number of each image's prompt, 0 to P - 1; P is 3 or more.
        chunk: images compared at a time.
    """
    x = features.double()
    prompts = torch.from_numpy(groups)
    num_prompts = int(prompts.max()) + 1
    pairs = torch.zeros(num_prompts, dtype=torch.float64)  # sums with images of other prompts
    across = torch.zeros(num_prompts, dtype=torch.float64)  # sums with the reference
    for part, mine in zip(x.split(chunk), prompts.split(chunk), strict=True):
        within = _cubic(part, x).masked_fill_(mine[:, None] == prompts, 0)
        pairs.index_add_(0, mine, within.sum(dim=1))
        across.index_add_(0, mine, _cubic(part, reference.double()).sum(dim=1))
    counts = torch.bincount(prompts, minlength=num_prompts).double()
    return _pseudo_values(pairs.numpy(), across.numpy() / len(reference), counts.numpy())


def _pseudo_values(pairs: np.ndarray, across: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """From the [P] sums of every prompt and its number of images."""
    p, n = len(counts), counts.sum()
    num_pairs = n**2 - (counts**2).sum()
    whole = pairs.sum() / num_pairs - 2 * across.sum() / n
    pairs_left = (pairs.sum() - 2 * pairs) / (num_pairs - 2 * counts * (n - counts))
    without = pairs_left - 2 * (across.sum() - across) / (n - counts)
    values = p * whole - (p - 1) * without
    # With equally many images per prompt their mean is the distance already.
    return values - values.mean() + whole


def own_kernel(reference: torch.Tensor, *, chunk: int = 1024) -> float:
    """Mean kernel of all pairs of different reference images, [m, F]."""
    x, total = reference.double(), 0.0
    for part in x.split(chunk):
        total += float(_cubic(part, x).sum())
    total -= float(((x.square().sum(dim=1) / x.shape[1] + 1) ** 3).sum())
    return total / (len(x) * (len(x) - 1))


def _cubic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[n, m] of (a b / F + 1)^3, as in the kernel inception distance."""
    return (a @ b.T / a.shape[1] + 1) ** 3
