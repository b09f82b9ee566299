"""Synthetic captions, and the matrix of all their cosines."""

import numpy as np

from mm_cca.negatives import EpochPlan
from mm_cca.negatives.vectors import Vectors
from mm_cca.training.negative_texts import NegativeTexts


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct captions of six words each, with Zipf-distributed words."""
    stream = np.random.default_rng(seed)
    drawn = stream.zipf(1.4, (3 * count, 6)) % 400
    texts = dict.fromkeys(" ".join(f"w{i}" for i in row) for row in drawn.tolist())
    return sorted(list(texts)[:count])


def full(vectors: Vectors) -> np.ndarray:
    """[D, D] cosines of all pairs."""
    return vectors.against_all(np.arange(len(vectors))).astype(np.float64)


def negatives_of(texts: list[list[str]]) -> NegativeTexts:
    """These negative captions of every image, as they are planned."""
    rows = np.arange(len(texts) * len(texts[0])).reshape(len(texts), -1)
    every = [text for of_image in texts for text in of_image]
    plan = EpochPlan(every, rows, np.zeros(rows.shape, np.int8), np.zeros(rows.shape), {})
    places = np.arange(len(texts))
    return NegativeTexts(np.zeros_like(places), places, {0: plan})
