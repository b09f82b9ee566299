"""Which rows make up a step: a pure function of (seed, step), the same for any ranks or resume."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mm_cca import negatives
from mm_cca.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """The pairs of one optimizer step. All arrays are [B].

    Attributes:
        rows: data row of each image (and of its own caption).
        negatives: data row whose caption is the negative prompt.
        variants: which augmented variant of the image.
        dropped: where both prompts are replaced by the unconditional form.
    """

    rows: np.ndarray
    negatives: np.ndarray
    variants: np.ndarray
    dropped: np.ndarray

    def part(self, chosen: slice) -> "Pairs":
        return Pairs(
            self.rows[chosen], self.negatives[chosen], self.variants[chosen], self.dropped[chosen]
        )


class Schedule:
    """Steps of ``batch_size`` pairs through the data, a new order and plan in every epoch."""

    def __init__(
        self,
        captions: list[str],
        *,
        batch_size: int,
        num_variants: int,
        uncond_ratio: float,
        kind: str | None,
        seed: int,
    ) -> None:
        """``kind`` None plans no negatives (objective nll). Raises UserError, see ``plan``."""
        if batch_size > len(captions):
            raise UserError(
                f"train.batch_size is {batch_size}, but there are only {len(captions)} usable "
                f"images; allowed: 1 to {len(captions)}."
            )
        self._captions = captions
        self._batch_size = batch_size
        self._num_variants = num_variants
        self._uncond_ratio = uncond_ratio
        self._kind = kind
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._epoch(0)  # so that data without a possible plan is refused before training

    def _make_epoch(self, epoch: int) -> Pairs:
        n = len(self._captions)
        stream = np.random.default_rng([self._seed, epoch, 0x6F72])
        order = stream.permutation(n)
        variants = stream.integers(0, self._num_variants, n)
        dropped = stream.random(n) < self._uncond_ratio
        if self._kind is None:
            planned = np.arange(n)
        else:
            planned = negatives.plan(self._captions, kind=self._kind, seed=self._seed, epoch=epoch)
        return Pairs(order, planned[order], variants[order], dropped[order])

    def step(self, step: int) -> Pairs:
        """The pairs of step 0, 1, 2, ...; a step may reach over the end of an epoch."""
        start = step * self._batch_size
        places = np.arange(start, start + self._batch_size)
        epochs, offsets = np.divmod(places, len(self._captions))
        parts = []
        for epoch in np.unique(epochs).tolist():
            here = offsets[epochs == epoch]
            parts.append(self._epoch(epoch).part(slice(int(here[0]), int(here[-1]) + 1)))
        return Pairs(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("rows", "negatives", "variants", "dropped")
            )
        )
