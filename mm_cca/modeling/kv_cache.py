"""Key-value caches of the sampler: prompts computed once and copied to rows, attention over what is
filled.

Shapes: U distinct prompts, M rows, H heads, C capacity in tokens, L filled tokens, D head size.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import Cache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer


class FilledLayer(DynamicLayer):
    """Keys and values in buffers of fixed size, of which attention sees only the filled part.

    transformers' StaticLayer has attention read all of the buffer at every step, and its
    DynamicLayer copies all keys at every step. ``filled`` is an int, or a symbol while a step is
    compiled for any length.
    """

    is_compileable = True

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.filled = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros(rows, heads, self.capacity, size)
        self.values = value_states.new_zeros(rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        end = self.filled + key_states.shape[2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_max_length(self) -> int:
        return self.capacity


def is_plain(cache: Cache) -> bool:
    """Whether all layers are transformers' StaticLayer and nothing else (sliding, quantised)."""
    return type(cache) is StaticCache and all(type(layer) is StaticLayer for layer in cache.layers)


def with_filled_layers(cache: Cache) -> Cache:
    """An empty plain cache with layers that attend to what is filled; any other is unchanged."""
    if is_plain(cache):
        cache.layers = [FilledLayer(layer.get_max_length()) for layer in cache.layers]
    return cache


def set_filled(cache: Cache, filled: int) -> None:
    """Say how much of filled layers is filled; other layers know it themselves."""
    for layer in cache.layers:
        if isinstance(layer, FilledLayer):
            layer.filled = filled


def copy_rows(source: Cache, target: Cache, rows: torch.Tensor) -> None:
    """Fill an empty cache of M rows with the prompts of one of U rows.

    Args:
        source: plain or filled layers, exactly filled.
        target: empty, plain or filled layers.
        rows: [M] int64, the row of ``source`` of each row of ``target``.
    """
    layers: Iterable[tuple[Any, Any]] = zip(source.layers, target.layers, strict=True)
    for full, empty in layers:
        empty.update(full.keys[rows], full.values[rows])
