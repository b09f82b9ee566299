"""Codes to images."""

import torch

from mm_cca.adapters.base import Grid, UnifiedModel


def decode_one_by_one(model: UnifiedModel, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[B, N] codes -> [B, 3, H, W] uint8 on the CPU.

    The last bits of an image must not depend on its batch, and of many large images the decoder's
    activations would not fit beside the model.
    """
    return torch.cat([model.decode(row, grid).cpu() for row in codes.split(1)])
