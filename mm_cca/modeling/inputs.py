"""Inputs of a decoder: padded prompts, positions, and embedded image spans.

Shapes: B rows, P tokens of the longest row, L tokens, S slots of the span, N codes, D hidden size.
"""

from typing import NamedTuple

import torch

from mm_cca.adapters.base import ImageLayout, UnifiedModel


class PaddedTokens(NamedTuple):
    """[B, P] token ids, padded on the left, and their [B, P] bool mask."""

    ids: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device) -> "PaddedTokens":
        """The same on another device."""
        return PaddedTokens(self.ids.to(device), self.mask.to(device))


def left_pad(ids: list[list[int]], pad_id: int, multiple: int = 8) -> PaddedTokens:
    """Token lists -> [B, P] ids and [B, P] bool mask, padded on the left.

    P is the longest length rounded up to a ``multiple``, so that few different shapes occur.
    """
    longest = -(-max(len(row) for row in ids) // multiple) * multiple
    padded = [[pad_id] * (longest - len(row)) + row for row in ids]
    mask = [[False] * (longest - len(row)) + [True] * len(row) for row in ids]
    return PaddedTokens(torch.tensor(padded), torch.tensor(mask))


def positions(mask: torch.Tensor) -> torch.Tensor:
    """[B, L] mask -> [B, L] position of every token, counted from the first after the padding."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def embed_span(model: UnifiedModel, codes: torch.Tensor, layout: ImageLayout) -> torch.Tensor:
    """[B, N] codes -> [B, S, D] input embeddings of the image span, with its forced tokens."""
    tokens = torch.as_tensor(layout.tokens, device=codes.device)
    embedded = model.embed_text(tokens.clamp(min=0)).expand(len(codes), -1, -1)
    free = torch.as_tensor(layout.free_slots, device=codes.device)
    return embedded.index_copy(1, free, model.embed_codes(codes).to(embedded.dtype))
