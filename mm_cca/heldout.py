"""The held-out loss: nats per code of images that no training step saw, un-augmented."""

import numpy as np
import torch
from accelerate import Accelerator

from mm_cca.batches import Pairs
from mm_cca.collate import Collator
from mm_cca.schema import Recipe
from mm_cca.tokens import TokenCache


@torch.no_grad()
def heldout_nll(
    accelerator: Accelerator,
    policy: torch.nn.Module,
    collate: Collator,
    cache: TokenCache,
    recipe: Recipe,
) -> float:
    """Mean negative log-likelihood in nats per code over the whole split, same on every rank."""
    policy.eval()
    collate = collate.of(cache)
    size = 2 * recipe.train.micro_batch_size
    total = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    starts = range(0, len(cache), size)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    # Every rank does as many forward passes, or those with sharded weights wait for ever.
    for first in range(0, len(starts), ranks):
        counts = first + rank < len(starts)
        start = starts[first + rank] if counts else 0
        rows = np.arange(start, min(start + size, len(cache)))
        none = np.zeros(len(rows), dtype=bool)
        batch = collate(Pairs(rows, rows, np.zeros_like(rows), none), with_negatives=False)
        logps = policy(batch.prompt_ids, batch.prompt_mask, batch.codes)
        if counts:
            total[0] -= logps.double().sum()
            total[1] += batch.codes.numel()
    summed = accelerator.reduce(total, reduction="sum")
    return float(summed[0] / summed[1])
