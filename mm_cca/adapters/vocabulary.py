"""Image codes that live in the text vocabulary, as Emu3, Chameleon and Liquid have them.

Shapes: K image codes, R rows of the head, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mm_cca.adapters.base import ImageHead
from mm_cca.errors import UserError

NO_IMAGE_TOKENS = (
    "the checkpoint's vocabulary holds no image tokens (vocabulary_map in its config.json): it "
    "can't draw, or the file is not its family's."
)


def refuse_without_vocabulary_map(vocabulary_map: Any) -> None:
    """Raises UserError for anything but a map of tokens to ids.

    Stock classes fail at null without saying so, and sort ids that are texts as texts.
    """
    if not vocabulary_map:
        raise UserError(NO_IMAGE_TOKENS)
    if not isinstance(vocabulary_map, dict):
        found = type(vocabulary_map).__name__
        raise UserError(
            f"vocabulary_map in config.json is of type {found}, not a map of tokens to ids: "
            "download the file again."
        )
    wrong = next((t for t, place in vocabulary_map.items() if type(place) is not int), None)
    if wrong is not None:
        raise UserError(
            f"vocabulary_map in config.json gives {wrong!r} the id {vocabulary_map[wrong]!r}; it "
            "must be a whole number: download the file again."
        )


@dataclass(frozen=True)
class CodeTokens:
    """The vocabulary id of every image code.

    Attributes:
        ids: [K] int64, the id of each code. The order may be any (Chameleon's is a permutation).
        rows: the ids as one block; training looks at these rows of the head only.
    """

    ids: torch.Tensor
    rows: slice

    @classmethod
    def of(cls, img2bpe: dict[int, int]) -> "CodeTokens":
        """From a map of code to id. Raises UserError if there are none or they form no block."""
        if not img2bpe:
            raise UserError(NO_IMAGE_TOKENS)
        ids = torch.tensor([img2bpe[code] for code in sorted(img2bpe)])
        first, last = int(ids.min()), int(ids.max())
        if last - first + 1 != len(ids):
            raise UserError(
                f"the {len(ids)} image tokens of this vocabulary are not contiguous "
                f"(ids {first}..{last}): the checkpoint's vocabulary_map is not its family's."
            )
        return cls(ids, slice(first, last + 1))

    def __len__(self) -> int:
        return len(self.ids)

    def refuse_outside(self, rows: int) -> None:
        """Raises UserError if an id is none of a vocabulary of ``rows`` tokens."""
        first, last = int(self.ids.min()), int(self.ids.max())
        if first < 0 or last >= rows:
            raise UserError(
                f"the image tokens of this checkpoint have the ids {first}..{last}, but its "
                f"vocabulary has {rows} tokens: vocabulary_map in config.json, or the tokenizer, "
                "is not its family's."
            )

    def refuse_other_codebook(self, num_embeddings: int) -> None:
        """Raises UserError if the image tokenizer does not have one code for each of these ids."""
        if len(self.ids) != num_embeddings:
            raise UserError(
                f"this checkpoint has image tokens for {len(self.ids)} codes, but its image "
                f"tokenizer has {num_embeddings}: vocabulary_map in config.json is not its "
                "family's, or the image tokenizer is another model's."
            )

    def of_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """[...] codes -> [...] vocabulary ids."""
        return self.ids.to(codes.device)[codes]

    def head(self, lm_head: nn.Linear, *, whole_vocabulary: bool) -> ImageHead:
        """The block of rows of ``lm_head`` [V, D], or all its rows."""
        rows = slice(None) if whole_vocabulary else self.rows
        offset = 0 if whole_vocabulary else self.rows.start
        bias = None if lm_head.bias is None else lm_head.bias[rows]
        return ImageHead(lm_head.weight[rows], bias, self.ids - offset)
