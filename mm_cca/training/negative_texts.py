"""The negative captions of a step's pairs, read from the plans when a batch is made of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mm_cca.negatives import EpochPlan


@dataclass(frozen=True)
class NegativeTexts:
    """Negative captions of B images, m each; m is 0 if none are planned.

    Attributes:
        epochs: [B] epoch of each.
        places: [B] place of each in the plan of its epoch.
        plans: of these epochs; empty if none are planned.
    """

    epochs: np.ndarray
    places: np.ndarray
    plans: Mapping[int, EpochPlan]

    @classmethod
    def none(cls, count: int) -> "NegativeTexts":
        """Of ``count`` images without negatives."""
        zeros = np.zeros(count, dtype=np.int64)
        return cls(zeros, zeros, {})

    def part(self, own: slice) -> "NegativeTexts":
        """Those of some of the images."""
        return NegativeTexts(self.epochs[own], self.places[own], self.plans)

    def read(self) -> np.ndarray:
        """[B, m] object array of captions."""
        m = next(iter(self.plans.values())).rows.shape[1] if self.plans else 0
        texts = np.empty((len(self.places), m), dtype=object)
        for epoch, plan in self.plans.items():
            own = self.epochs == epoch
            texts[own] = plan.negatives(self.places[own])
        return texts
