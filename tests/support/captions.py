"""Synthetic captions, and the matrix of all their cosines."""

import numpy as np

from mm_cca.negatives.vectors import Vectors


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct captions of six words each, with Zipf-distributed words."""
    stream = np.random.default_rng(seed)
    drawn = stream.zipf(1.4, (3 * count, 6)) % 400
    texts = dict.fromkeys(" ".join(f"w{i}" for i in row) for row in drawn.tolist())
    return sorted(list(texts)[:count])


def full(vectors: Vectors) -> np.ndarray:
    """[D, D] cosines of all pairs."""
    return vectors.against_all(np.arange(len(vectors))).astype(np.float64)
