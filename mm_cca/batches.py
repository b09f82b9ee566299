"""Which rows make up a step: a pure function of (seed, step), the same for any ranks or resume.

Shapes: B pairs, m other prompts per image, n rows of the data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mm_cca.errors import UserError
from mm_cca.negatives import EpochPlan, Planner


@dataclass(frozen=True)
class Pairs:
    """The pairs of one optimizer step, or of a part of it.

    Attributes:
        start: place of the first pair in the order of training, counted from step 0.
        rows: [B] data row of each image (and of its own caption).
        negatives: [B, m] object array of the other prompts; m is 0 where none are planned.
        variants: [B] which augmented variant of the image.
        dropped: [B] where all prompts are replaced by the unconditional form.
    """

    start: int
    rows: np.ndarray
    negatives: np.ndarray
    variants: np.ndarray
    dropped: np.ndarray

    def part(self, first: int, last: int) -> "Pairs":
        """Pairs ``first`` up to, but not, ``last``."""
        arrays = (self.rows, self.negatives, self.variants, self.dropped)
        return Pairs(self.start + first, *(array[first:last] for array in arrays))


class Schedule:
    """Steps of ``batch_size`` pairs through the data, a new order and plan in every epoch."""

    def __init__(
        self,
        captions: list[str],
        *,
        batch_size: int,
        num_variants: int,
        uncond_ratio: float,
        planner: Planner | None,
        seed: int,
        on_plan: Callable[[int, EpochPlan], None] | None = None,
    ) -> None:
        """``planner`` None plans no negatives.

        Args:
            on_plan: told every epoch and its plan when it is made.

        Raises:
            UserError: a batch larger than the data.
        """
        if batch_size > len(captions):
            raise UserError(
                f"train.batch_size is {batch_size}, but there are only {len(captions)} usable "
                f"images; allowed: 1 to {len(captions)}."
            )
        self.batch_size = batch_size
        self._captions = captions
        self._num_variants = num_variants
        self._uncond_ratio = uncond_ratio
        self._planner = planner
        self._seed = seed
        self._on_plan = on_plan
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> Pairs:
        n = len(self._captions)
        stream = np.random.default_rng([self._seed, epoch, 0x6F72])
        order = stream.permutation(n)
        variants = stream.integers(0, self._num_variants, n)
        dropped = stream.random(n) < self._uncond_ratio
        if self._planner is None:
            planned = np.empty((n, 0), dtype=object)
        else:
            plan = self._planner.epoch(epoch)
            planned = plan.negatives
            if self._on_plan is not None:
                self._on_plan(epoch, plan)
        return Pairs(epoch * n, order, planned[order], variants[order], dropped[order])

    def step(self, step: int) -> Pairs:
        """The pairs of step 0, 1, 2, ...; a step may reach over the end of an epoch."""
        start = step * self.batch_size
        places = np.arange(start, start + self.batch_size)
        epochs, offsets = np.divmod(places, len(self._captions))
        parts = []
        for epoch in np.unique(epochs).tolist():
            here = offsets[epochs == epoch]
            parts.append(self._epoch(epoch).part(int(here[0]), int(here[-1]) + 1))
        return Pairs(
            start,
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("rows", "negatives", "variants", "dropped")
            ),
        )
