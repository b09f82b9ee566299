"""Which captions are no wrong prompt for an image: they say the same, or part of the same.

Shapes: p pairs of labels, D distinct captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm_cca.negatives.captions import spaced_words
from mm_cca.negatives.vectors import Vectors

FINE, IDENTICAL, SIMILAR, CONTAINED = range(4)
"""Verdicts; all but FINE are one more than their place in ``REASONS``."""


def contains(left: str, right: str) -> bool:
    """Whether one caption, by its ``spaced_words``, holds the other as a run of whole words."""
    return bool(left and right) and (left in right or right in left)


@dataclass(frozen=True)
class Guard:
    """Looks at pairs of distinct captions.

    Attributes:
        words: [D] ``spaced_words`` of each.
        vectors: of each; None where no similarity is asked for.
        max_similarity: above it a caption counts as saying the same; None: not looked at.
    """

    words: list[str]
    vectors: Vectors | None
    max_similarity: float | None

    def similarity(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """[p] float32 cosines; nan without vectors."""
        if self.vectors is None:
            return np.full(len(left), np.nan, np.float32)
        return self.vectors.cosines(left, right)

    def contained(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """[p] bool."""
        words = self.words
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        found = (contains(words[i], words[j]) for i, j in pairs)
        return np.fromiter(found, dtype=bool, count=len(left))

    def verdicts(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """[p] int8: the first reason found against each pair, or FINE."""
        found = np.full(len(left), FINE, np.int8)
        if self.max_similarity is not None:
            found[self.similarity(left, right) > self.max_similarity] = SIMILAR
        found[self.contained(left, right)] = CONTAINED
        found[left == right] = IDENTICAL
        return found

    def all_fine(self, label: int) -> np.ndarray:
        """Every label that is a wrong prompt for ``label``, ascending."""
        fine = np.ones(len(self.words), dtype=bool)
        fine[label] = False
        if self.vectors is not None and self.max_similarity is not None:
            fine &= self.vectors.against_all(np.array([label]))[0] <= self.max_similarity
        others = np.flatnonzero(fine)
        return others[~self.contained(np.full(len(others), label), others)]


def make_guard(
    texts: Sequence[str], vectors: Vectors | None, max_similarity: float | None
) -> Guard:
    """For [D] normalised captions."""
    return Guard([spaced_words(text) for text in texts], vectors, max_similarity)
