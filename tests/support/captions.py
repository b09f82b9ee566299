"""Captions to embed, and all their cosines at once."""

import numpy as np

from mm_cca.negatives.vectors import Vectors


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct captions of a few words each, common ones more often."""
    stream = np.random.default_rng(seed)
    drawn = stream.zipf(1.4, (3 * count, 6)) % 400
    texts = dict.fromkeys(" ".join(f"w{i}" for i in row) for row in drawn.tolist())
    return sorted(list(texts)[:count])


def full(vectors: Vectors) -> np.ndarray:
    return vectors.against_all(np.arange(len(vectors))).astype(np.float64)
