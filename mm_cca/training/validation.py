"""The held-out loss: nats per code of images outside the training split, without augmentation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from accelerate import Accelerator

from mm_cca.config.schema import Recipe
from mm_cca.data.token_cache import open_cache
from mm_cca.runs.folder import RunFolder
from mm_cca.training.collate import Collator
from mm_cca.training.model_files import save_model
from mm_cca.training.negative_texts import NegativeTexts
from mm_cca.training.schedule import Pairs
from mm_cca.training.setup import TrainingSetup


@torch.no_grad()
def heldout_nll(
    accelerator: Accelerator,
    policy: torch.nn.Module,
    collate: Collator,
    recipe: Recipe,
) -> float:
    """Mean negative log-likelihood in nats per code over a whole split, same on every rank.

    Args:
        accelerator: of the run.
        policy: a ``CodeLogProbs``, perhaps wrapped.
        collate: of the split, without texts and unconditional prompts.
        recipe: for the size of a batch.
    """
    policy.eval()
    size = 2 * recipe.train.micro_batch_size
    # Summed in float64, but not on the device: Apple's has none.
    total = torch.zeros(2, dtype=torch.float64)
    parts = [
        of_size[start : start + size]
        for of_size in collate.rows_by_size()
        for start in range(0, len(of_size), size)
    ]
    ranks, rank = accelerator.num_processes, accelerator.process_index
    # All ranks do the same number of forward passes: with sharded weights they wait for each other.
    for first in range(0, len(parts), ranks):
        counts = first + rank < len(parts)
        rows = parts[first + rank if counts else 0]
        none = np.zeros(len(rows), dtype=bool)
        no_negatives = NegativeTexts.none(len(rows))
        batch = collate(Pairs(0, rows, no_negatives, np.zeros_like(rows), none))
        logps = policy(batch.prompts.ids, batch.prompts.mask, batch.codes, grid=batch.grid).logps
        if counts:
            total[0] -= logps.cpu().double().sum()
            total[1] += batch.codes.numel()
    summed = total if ranks == 1 else accelerator.reduce(total.to(accelerator.device), "sum")
    return float(summed[0] / summed[1])


@dataclass
class Validation:
    """The held-out loss every ``train.eval_every`` steps, and the weights where it was lowest.

    Attributes:
        evaluate: the held-out loss of the weights in the model; None if the recipe has no
            validation.
        setup: of the run.
        best_folder: gets the weights with the lowest loss if ``train.keep`` is "best".
        best: the lowest loss so far, in nats per code.
    """

    evaluate: Callable[[], float] | None
    setup: TrainingSetup
    best_folder: Path
    best: float | None = None

    @classmethod
    def of(cls, recipe: Recipe, run: RunFolder, setup: TrainingSetup, folder: Path) -> Self:
        """The validation of a recipe; ``folder`` is that of the training."""
        if not (recipe.data.heldout_split and recipe.train.eval_every):
            return cls(None, setup, folder / "best")
        cache = open_cache(run.tokens / recipe.data.heldout_split, recipe.data.variants)
        accelerator = setup.accelerator
        collate = Collator(
            setup.model,
            cache,
            recipe.data.image_size,
            accelerator.device,
            template=recipe.data.caption_template,
        )
        return cls(
            lambda: heldout_nll(accelerator, setup.policy, collate, recipe),
            setup,
            folder / "best",
        )

    def after(self, num_steps: int, *, is_last: bool) -> dict[str, float | None]:
        """``heldout_nll`` if due after this many steps, else nothing; saves the best weights."""
        config = self.setup.train
        if not config.eval_every or not (is_last or num_steps % config.eval_every == 0):
            return {}
        if self.evaluate is None:
            return {"heldout_nll": None}
        with self.setup.model_weights():
            loss = self.evaluate()
        if config.keep == "best" and (self.best is None or loss < self.best):
            self.best = loss
            save_model(self.setup, self.best_folder)
        return {"heldout_nll": loss}
