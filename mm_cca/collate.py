"""From the pairs of a step to the tensors of a forward pass.

Shapes: B pairs, P prompt tokens, N codes per image; M = 2B rows with negatives, else B.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm_cca import negatives
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.batches import Pairs
from mm_cca.logprobs import left_pad
from mm_cca.tokens import TokenCache


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: first all own prompts, then (for CCA) all other prompts.

    Attributes:
        prompt_ids: [M, P], left-padded.
        prompt_mask: [M, P] bool.
        codes: [M, N].
        dropped: [B] bool, both prompts are the unconditional form.
        counts_as_positive: [B] bool, the negative half's prompt is no wrong one.
    """

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    codes: torch.Tensor
    dropped: torch.Tensor
    counts_as_positive: torch.Tensor


class Collator:
    """Looks up codes and captions and tokenises prompts in the family's own template."""

    def __init__(
        self,
        model: UnifiedModel,
        cache: TokenCache,
        image_size: Sequence[int],
        device: torch.device,
    ) -> None:
        self._model = model
        self._cache = cache
        self._image_size = image_size
        self._grid = grid_of(model, image_size)
        self._device = device

    def of(self, cache: TokenCache) -> "Collator":
        """The same for another cache."""
        return Collator(self._model, cache, self._image_size, self._device)

    def __call__(self, pairs: Pairs, *, with_negatives: bool) -> MicroBatch:
        """The micro-batch of these pairs, on the device."""
        captions = self._cache.captions
        own = [captions[i] for i in pairs.rows.tolist()]
        other = [captions[i] for i in pairs.negatives.tolist()]
        same = np.array(
            [
                negatives.normalise(a) == negatives.normalise(b)
                for a, b in zip(own, other, strict=True)
            ]
        )
        ids = self._model.prompt_ids(own, self._grid)
        blanks = {
            i: self._model.unconditional_ids(ids[i], self._grid)
            for i in np.flatnonzero(pairs.dropped).tolist()
        }
        if with_negatives:
            others = self._model.prompt_ids(other, self._grid)
            others = [blanks.get(i, row) for i, row in enumerate(others)]
        else:
            others = []
        ids = [blanks.get(i, row) for i, row in enumerate(ids)] + others
        prompt_ids, prompt_mask = left_pad(ids, self._model.pad_id)
        codes = self._cache.codes(torch.from_numpy(pairs.rows), torch.from_numpy(pairs.variants))
        if with_negatives:
            codes = codes.repeat(2, 1)
        return MicroBatch(
            prompt_ids=prompt_ids.to(self._device),
            prompt_mask=prompt_mask.to(self._device),
            codes=codes.to(self._device),
            dropped=torch.from_numpy(pairs.dropped).to(self._device),
            counts_as_positive=torch.from_numpy(pairs.dropped | same).to(self._device),
        )
