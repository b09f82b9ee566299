"""How many images are sampled at a time, and work in a thread.

Shapes: B images, M rows, N codes, K image codes.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from mm_cca.adapters.base import Grid, UnifiedModel
from mm_cca.config.schema_eval import SampleConfig
from mm_cca.config.schema_train import AUTO
from mm_cca.modeling.inputs import positions
from mm_cca.modeling.kv_cache import is_plain

Item = TypeVar("Item")
Result = TypeVar("Result")

COMPILED_FROM = 5000
"""Steps of an arm from which compiling is worth it. For the 3 million parameters of emu3-emoji on
one core it takes 27 s and as long again in C++'s compiler, and saves 4 to 8 ms a step."""

_MOST = 256
_PROMPT = 256
"""Tokens of a prompt that ``auto`` allows for."""
_SHARE = 0.8
"""Of the free memory; the rest is for what is not counted."""


def batch_size_of(
    config: SampleConfig, model: UnifiedModel, grid: Grid, *, is_guided: bool = False
) -> int:
    """``sample.batch_size``, chosen from the free memory of a GPU if it is ``auto``."""
    if config.batch_size != AUTO:
        return int(config.batch_size)
    device = next(model.module.parameters()).device
    if device.type != "cuda" or not is_plain(model.new_cache(1)):
        return config.batch_size_without_auto
    free, _ = torch.cuda.mem_get_info(device)
    tokens = _PROMPT + len(model.layout(grid).tokens)
    # Logits and their exponentials, weights and sums as integers, a sort: 40 bytes a code.
    of_row = tokens * _bytes_per_token(model) + 40 * model.codebook_size
    fits = int(_SHARE * free / (of_row * (2 if is_guided else 1)))
    return max(1, min(_MOST, fits))


@torch.no_grad()
def _bytes_per_token(model: UnifiedModel) -> int:
    """Of the key-value cache, for one row."""
    cache = model.new_cache(1)
    device = next(model.module.parameters()).device
    ids = torch.full((1, 1), model.pad_id, device=device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    model.hidden_states(model.embed_text(ids), mask, positions(mask), cache)
    layers: list[Any] = cache.layers
    return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in layers)


def compiles(config: SampleConfig, num_images: int, batch_size: int, num_codes: int) -> bool:
    """``sample.compile``, or if it is null, whether there are enough steps for it."""
    if config.compile is not None:
        return config.compile
    return -(-num_images // batch_size) * num_codes >= COMPILED_FROM


def behind(items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """``work`` on every item, in order, in a thread that runs while the next item is made."""
    waiting: Future[Result] | None = None
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            for item in items:
                submitted = thread.submit(work, item)
                if waiting is not None:
                    yield waiting.result()
                waiting = submitted
        except Exception:
            if waiting is not None:
                yield waiting.result()  # what is finished is not lost
            raise
        if waiting is not None:
            yield waiting.result()
