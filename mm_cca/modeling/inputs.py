"""Inputs of a decoder: padded prompts, positions, and embedded image spans.

Shapes: B rows, P tokens of the longest row, L tokens, S slots of the span, N codes, D hidden size.
"""

from typing import NamedTuple

import torch

from mm_cca.adapters.base import ImageLayout, UnifiedModel


class PaddedTokens(NamedTuple):
    """[B, P] token ids, padded on one side, and their [B, P] bool mask."""

    ids: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device) -> "PaddedTokens":
        """The same on another device."""
        return PaddedTokens(self.ids.to(device), self.mask.to(device))


def left_pad(ids: list[list[int]], pad_id: int, multiple: int = 8) -> PaddedTokens:
    """Token lists -> [B, P] ids and [B, P] bool mask, padded on the left, for sampling.

    P is the longest length rounded up to a ``multiple``, so that few different shapes occur.
    """
    longest = _length_of(ids, multiple)
    padded = [[pad_id] * (longest - len(row)) + row for row in ids]
    mask = [[False] * (longest - len(row)) + [True] * len(row) for row in ids]
    return PaddedTokens(torch.tensor(padded), torch.tensor(mask))


def right_pad(ids: list[list[int]], pad_id: int, multiple: int = 8) -> PaddedTokens:
    """As ``left_pad``, but padded on the right, for training."""
    longest = _length_of(ids, multiple)
    padded = [row + [pad_id] * (longest - len(row)) for row in ids]
    mask = [[True] * len(row) + [False] * (longest - len(row)) for row in ids]
    return PaddedTokens(torch.tensor(padded), torch.tensor(mask))


def _length_of(ids: list[list[int]], multiple: int) -> int:
    return -(-max(len(row) for row in ids) // multiple) * multiple


def padding_last(mask: torch.Tensor) -> torch.Tensor:
    """[B, L] bool mask -> [B, L] int64 places: the tokens of a row in order, then its padding.

    Rows gathered by them need no mask: a token sees only what comes before it, so nothing of the
    row sees the padding after it.
    """
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)


def every_position(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, L, ...] rows without padding before their end -> [B, L] mask and [B, L] positions.

    The mask is True everywhere, which transformers' decoders turn into no mask at all: attention is
    then causal and nothing else, and the fast kernels apply (``adapters/base.py``).
    """
    shape = like.shape[:2]
    places = torch.arange(shape[1], device=like.device).expand(shape)
    return torch.ones(shape, dtype=torch.bool, device=like.device), places


def positions(mask: torch.Tensor) -> torch.Tensor:
    """[B, L] mask -> [B, L] position of every token, counted from the first after the padding."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def embed_rows(
    model: UnifiedModel, prompt_ids: torch.Tensor, codes: torch.Tensor, layout: ImageLayout
) -> torch.Tensor:
    """[B, P] prompts and [B, N] codes -> [B, P + S, D] input embeddings, with the forced tokens.

    All text is looked up at once: every look-up has a gradient as large as the whole table.
    """
    span = torch.as_tensor(layout.tokens, device=codes.device).clamp(min=0)
    text = model.embed_text(torch.cat([prompt_ids, span.expand(len(codes), -1)], dim=1))
    free = torch.as_tensor(layout.free_slots, device=codes.device) + prompt_ids.shape[1]
    return text.index_copy(1, free, model.embed_codes(codes).to(text.dtype))
