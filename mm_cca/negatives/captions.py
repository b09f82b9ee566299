"""Captions as what they say: which rows say the same, and which words they are made of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from mm_cca.errors import UserError

WORD = re.compile(r"\w+(?:[-'’]\w+)*")
"""``medium-light`` and ``o'clock`` are one word each."""


def normalise(caption: str) -> str:
    """Captions that differ only in case or white space say the same."""
    return " ".join(caption.casefold().split())


def spaced_words(caption: str) -> str:
    """The words with a space before and after each, so that ``in`` finds runs of whole words.

    Empty for a caption without words (drawings, punctuation).
    """
    words = WORD.findall(normalise(caption))
    return f" {' '.join(words)} " if words else ""


def key_of(caption: str) -> int:
    """A number below 2**64 that is the same for captions that say the same, in every process."""
    text = normalise(caption).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Distinct:
    """n rows that say D different things.

    Attributes:
        texts: [D] what is said, normalised and sorted: no order of rows changes the numbers.
        labels: [n] int64 index into ``texts``.
        order: [n] rows sorted by label, then by row.
        ends: [D] where each label ends in ``order``.
        sizes: [D] rows of each label.
    """

    texts: list[str]
    labels: np.ndarray
    order: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray

    @property
    def first_rows(self) -> np.ndarray:
        """[D] the first row of each label."""
        return self.order[self.ends - self.sizes]


def distinct(captions: Sequence[str]) -> Distinct:
    """Group [n] captions by what they say.

    Raises:
        UserError: fewer than two distinct captions.
    """
    says = [normalise(caption) for caption in captions]
    # No numpy array of strings: it would give every caption the room of the longest.
    texts = sorted(set(says))
    number = {text: i for i, text in enumerate(texts)}
    labels = np.fromiter((number[text] for text in says), dtype=np.int64, count=len(says))
    if len(texts) < 2:
        raise UserError(
            f"all {len(captions)} captions say the same ({captions[0]!r}): CCA learns from wrong "
            "prompts and needs at least two distinct captions. Check data.caption_column."
            if len(captions)
            else "there are no captions to pair. Check data.path and data.train_split."
        )
    sizes = np.bincount(labels)
    return Distinct(texts, labels, np.argsort(labels, kind="stable"), np.cumsum(sizes), sizes)
