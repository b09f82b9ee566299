"""The plan of an epoch: which row's caption is an image's negative, or how its own is edited.

Texts are read and edited only when they are asked for, so that a plan of a million images takes
some bytes for each. Shapes: n images, m negatives each, b of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm_cca.negatives.captions import key_of
from mm_cca.negatives.edit import edit
from mm_cca.negatives.words import WordLists

EDITED = -1


@dataclass(frozen=True)
class EditDraws:
    """The draws that an epoch's edits are made of.

    Attributes:
        lists: attribute words.
        which: [n, m] at least 0 and below 1, picks the attribute.
        value: [n, m] at least 0 and below 1, picks its new value.
    """

    lists: WordLists
    which: np.ndarray
    value: np.ndarray

    def make(self, caption: str, cell: tuple[int, int], used_keys: set[int]) -> str:
        """The edit of a caption for an image and a column.

        ``used_keys`` are those, ``key_of``, of the image's negatives in earlier columns; they are
        repeated only if there is no other edit.
        """

        def is_used(text: str) -> bool:
            return bool(used_keys) and key_of(text) in used_keys

        which, value = float(self.which[cell]), float(self.value[cell])
        edited = edit(caption, self.lists, which=which, value=value, refused=is_used)
        # With fewer edits than negatives, a repeated negative is better than none.
        if edited is None:
            edited = edit(caption, self.lists, which=which, value=value, refused=lambda _: False)
        assert edited is not None, "captions without an attribute are not planned as edits"
        return edited

    def at(self, rows: np.ndarray, count: int) -> "EditDraws":
        """These of ``count`` images, whose places are ``rows``."""
        which, value = np.zeros((2, count, self.which.shape[1]))
        which[rows], value[rows] = self.which, self.value
        return EditDraws(self.lists, which, value)


@dataclass(frozen=True)
class EpochPlan:
    """The negative captions of one epoch: n images, m negatives each.

    Attributes:
        captions: [n] the images' own captions.
        rows: [n, m] int64 place in ``captions`` of the negative caption; ``EDITED`` if it is an
            edit of the image's own.
        kinds: [n, m] int8 index into ``KINDS``, the kind that was used in the end.
        similarity: [n, m] float32 cosine of caption and negative; nan where not computed (edits,
            and plans that need no embedding).
        replaced: how many planned negatives were replaced, by reason: ``identical`` (to another
            negative of the same image), ``similar``, ``contained``, ``impossible`` (the kind can't
            be built for that caption). ``repeated`` counts negatives that were not replaced: with
            fewer candidates or edits than ``num_negatives``, an image has the same one twice.
        edits: None if no negative is an edit.
    """

    captions: Sequence[str]
    rows: np.ndarray
    kinds: np.ndarray
    similarity: np.ndarray
    replaced: dict[str, int]
    edits: EditDraws | None = None

    def negatives(self, places: np.ndarray | None = None) -> np.ndarray:
        """[b] places of images, None for all -> [b, m] object array of their negative captions."""
        chosen = range(len(self.rows)) if places is None else places.tolist()
        texts = np.empty((len(chosen), self.rows.shape[1]), dtype=object)
        for i, place in enumerate(chosen):
            texts[i] = self._of(place)
        return texts

    def _of(self, place: int) -> list[str]:
        texts: list[str] = []
        for column, row in enumerate(self.rows[place].tolist()):
            if row != EDITED:
                texts.append(self.captions[row])
                continue
            assert self.edits is not None
            used_keys = {key_of(text) for text in texts}
            texts.append(self.edits.make(self.captions[place], (place, column), used_keys))
        return texts
