"""Caption normalisation, hashing, words, and the distinct captions of a data set."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from mm_cca.errors import UserError
from mm_cca.negatives.packed import PackedTexts

WORD = re.compile(r"\w+(?:[-'’]\w+)*")
"""``medium-light`` and ``o'clock`` are one word each."""


def normalise(caption: str) -> str:
    """The caption with case folded and white space collapsed; equal results count as equal."""
    return " ".join(caption.casefold().split())


def spaced_words(caption: str) -> str:
    """The words with a space before and after each, so that ``in`` finds runs of whole words.

    Empty for a caption without words (emoji, punctuation).
    """
    words = WORD.findall(normalise(caption))
    return f" {' '.join(words)} " if words else ""


def key_of(caption: str) -> int:
    """A hash below 2**64 of the normalised caption, the same in every process."""
    text = normalise(caption).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Distinct:
    """n rows grouped by their D distinct captions.

    Attributes:
        texts: [D] normalised captions, sorted, so that labels do not depend on the order of rows.
        labels: [n] int64 index into ``texts``.
        order: [n] rows sorted by label, then by row.
        ends: [D] where each label ends in ``order``.
        sizes: [D] rows of each label.
    """

    texts: PackedTexts
    labels: np.ndarray
    order: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray

    @property
    def first_rows(self) -> np.ndarray:
        """[D] the first row of each label."""
        return self.order[self.ends - self.sizes]


def distinct(captions: Sequence[str]) -> Distinct:
    """Group [n] captions that are equal after ``normalise``.

    Raises:
        UserError: fewer than two distinct captions.
    """
    texts, labels = PackedTexts.of(map(normalise, captions)).sorted_distinct()
    if len(texts) < 2:
        raise UserError(
            f"all {len(captions)} captions are the same ({captions[0]!r}); CCA needs negative "
            "captions, so at least two distinct captions. Check data.caption_column."
            if len(captions)
            else "there are no captions to pair. Check data.path and data.train_split."
        )
    sizes = np.bincount(labels)
    return Distinct(texts, labels, np.argsort(labels, kind="stable"), np.cumsum(sizes), sizes)
