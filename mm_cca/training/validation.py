"""The held-out loss: nats per code of images that no training step saw, un-augmented."""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator

from mm_cca.config.schema import Recipe
from mm_cca.data.token_cache import open_cache
from mm_cca.runs.folder import RunFolder
from mm_cca.training.collate import Collator
from mm_cca.training.schedule import Pairs
from mm_cca.training.setup import TrainingSetup


@torch.no_grad()
def heldout_nll(
    accelerator: Accelerator,
    policy: torch.nn.Module,
    collate: Collator,
    num_rows: int,
    recipe: Recipe,
) -> float:
    """Mean negative log-likelihood in nats per code over a whole split, same on every rank.

    Args:
        accelerator: of the run.
        policy: a ``CodeLogProbs``, perhaps wrapped.
        collate: of the split, without texts and blanks.
        num_rows: of the split.
        recipe: for the size of a batch.
    """
    policy.eval()
    size = 2 * recipe.train.micro_batch_size
    total = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    starts = range(0, num_rows, size)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    # Every rank does as many forward passes, or those with sharded weights wait for ever.
    for first in range(0, len(starts), ranks):
        counts = first + rank < len(starts)
        start = starts[first + rank] if counts else 0
        rows = np.arange(start, min(start + size, num_rows))
        none = np.zeros(len(rows), dtype=bool)
        no_others = np.empty((len(rows), 0), dtype=object)
        batch = collate(Pairs(start, rows, no_others, np.zeros_like(rows), none))
        logps = policy(*batch.prompts, batch.codes).logps
        if counts:
            total[0] -= logps.double().sum()
            total[1] += batch.codes.numel()
    summed = accelerator.reduce(total, reduction="sum")
    return float(summed[0] / summed[1])


def heldout_evaluation(
    recipe: Recipe, run: RunFolder, loop: TrainingSetup
) -> Callable[[], float | None]:
    if not (recipe.data.heldout_split and recipe.train.eval_every):
        return lambda: None
    cache = open_cache(run.tokens / recipe.data.heldout_split, recipe.data.variants)
    collate = Collator(loop.model, cache, recipe.data.image_size, loop.accelerator.device)
    return lambda: heldout_nll(loop.accelerator, loop.policy, collate, len(cache), recipe)
