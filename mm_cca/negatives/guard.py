"""Which captions are not true negatives: the same as the image's own, too similar, or part of it.

Shapes: p pairs of labels, D distinct captions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import AnyStr

import numpy as np

from mm_cca.negatives.captions import spaced_words
from mm_cca.negatives.packed import PackedTexts
from mm_cca.negatives.vectors import Vectors

FINE, IDENTICAL, SIMILAR, CONTAINED = range(4)
"""Verdicts; each but FINE is its index in ``REASONS`` plus one."""


def contains(left: AnyStr, right: AnyStr) -> bool:
    """Whether one of two ``spaced_words``, or their UTF-8, contains the other as a run of whole
    words."""
    return bool(left and right) and (left in right or right in left)


@dataclass(frozen=True)
class Guard:
    """Decides for pairs of distinct captions whether one is a true negative of the other.

    Attributes:
        words: [D] ``spaced_words`` of each caption.
        vectors: [D] embeddings; None if no similarity is needed.
        max_similarity: captions above this cosine are too similar to be negatives; None: no limit.
    """

    words: PackedTexts
    vectors: Vectors | None
    max_similarity: float | None

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """[p] float32 cosines; nan without vectors."""
        if self.vectors is None:
            return np.full(len(left), np.nan, np.float32)
        return self.vectors.cosines(left, right)

    def contained(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """[p] bool."""
        raw = self.words.raw
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        contained = (contains(raw(i), raw(j)) for i, j in pairs)
        return np.fromiter(contained, dtype=bool, count=len(left))

    def verdicts(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """[p] int8: why each pair is not a true negative, or FINE."""
        verdicts = np.full(len(left), FINE, np.int8)
        if self.max_similarity is not None:
            verdicts[self.similarity(left, right) > self.max_similarity] = SIMILAR
        verdicts[self.contained(left, right)] = CONTAINED
        verdicts[left == right] = IDENTICAL
        return verdicts

    def all_fine(self, label: int) -> np.ndarray:
        """All labels that are true negatives of ``label``, ascending."""
        fine = np.ones(len(self.words), dtype=bool)
        fine[label] = False
        if self.vectors is not None and self.max_similarity is not None:
            fine &= self.vectors.against_all(np.array([label]))[0] <= self.max_similarity
        labels = np.flatnonzero(fine)
        return labels[~self.contained(np.full(len(labels), label), labels)]


def make_guard(
    texts: Iterable[str], vectors: Vectors | None, max_similarity: float | None
) -> Guard:
    """The guard of [D] normalised captions."""
    return Guard(PackedTexts.of(map(spaced_words, texts)), vectors, max_similarity)
