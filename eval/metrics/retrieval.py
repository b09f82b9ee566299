"""Alignment and retrieval from features of images and captions."""

import numpy as np
import torch
from torch import nn


def cosines(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """[n, F] and [n, F] -> [n] cosine of each image with its own caption."""
    return nn.functional.cosine_similarity(images, texts)


def retrieval_ranks(
    images: torch.Tensor, captions: torch.Tensor, own: torch.Tensor, chunk: int = 1024
) -> torch.Tensor:
    """How many captions fit each image better than its own; one that fits as well counts half.

    Args:
        images: [n, F].
        captions: [m, F], all distinct.
        own: [n] index of each image's caption in ``captions``.
        chunk: images compared at a time.

    Returns:
        [n] float64; 0 means its own caption comes first.
    """
    texts = nn.functional.normalize(captions, dim=-1)
    ranks = []
    for part, own_index in zip(images.split(chunk), own.split(chunk), strict=True):
        scores = nn.functional.normalize(part, dim=-1) @ texts.T
        own_score = scores.gather(1, own_index[:, None])
        better = (scores > own_score).sum(dim=1)
        equal = (scores == own_score).sum(dim=1) - 1  # less itself
        ranks.append(better + equal.double() / 2)
    return torch.cat(ranks)


def among_best(ranks: np.ndarray, k: int) -> np.ndarray:
    """[n] ranks -> 1.0 where the own caption is among the best k, 0.5 where it ties for the last
    of these places with one other."""
    return np.clip(k - ranks, 0.0, 1.0)
