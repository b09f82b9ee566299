"""Buffers that stay at one place in memory from batch to batch, as CUDA graphs need them.

Shapes: M rows, C tokens that the cache has room for.
"""

import torch
from transformers import Cache

from mm_cca.adapters.base import UnifiedModel
from mm_cca.modeling.sampling_step import StepTensors


class FixedBuffers:
    """The cache, the mask and the tensors of the steps of one shape at a time."""

    def __init__(self) -> None:
        self._shape = (0, 0)
        self._cache: Cache | None = None
        self._kept: tuple[torch.Tensor, ...] = ()

    def cache(self, model: UnifiedModel, rows: int, room: int) -> Cache:
        """An empty cache of ``rows`` rows for ``room`` tokens: the last one if it fits."""
        if self._cache is None or self._shape != (rows, room):
            self._cache, self._kept = None, ()  # freed before there is a second one
            self._cache, self._shape = model.new_cache(room), (rows, room)
        else:
            self._cache.reset()
        return self._cache

    def place(self, tensors: StepTensors, mask: torch.Tensor) -> tuple[StepTensors, torch.Tensor]:
        """The same values where the graph looks for them."""
        values = (*tensors, mask)
        if [t.shape for t in self._kept] != [t.shape for t in values]:
            self._kept = tuple(t.clone() for t in values)
            for tensor in self._kept:
                torch._dynamo.mark_static_address(tensor)
        for kept, value in zip(self._kept, values, strict=True):
            kept.copy_(value)
        return StepTensors(*self._kept[:-1]), self._kept[-1]
