"""Rows of tokens of different lengths as one tensor.

Shapes: B rows, P tokens of the longest row, L tokens.
"""

import torch


def left_pad(
    ids: list[list[int]], pad_id: int, multiple: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token lists -> [B, P] ids and [B, P] bool mask, padded on the left.

    P is the longest length rounded up to a ``multiple``, so that few shapes occur.
    """
    longest = -(-max(len(row) for row in ids) // multiple) * multiple
    padded = [[pad_id] * (longest - len(row)) + row for row in ids]
    mask = [[False] * (longest - len(row)) + [True] * len(row) for row in ids]
    return torch.tensor(padded), torch.tensor(mask)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """[B, L] mask -> [B, L] position of every token counted from the row's first real one."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
