"""Plain text under the model: what fine-tuning for images does to the language side.

Shapes: B texts, T tokens (left-padded), D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset

from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.schema import TEXT_FILES
from mm_cca.errors import UserError
from mm_cca.head import chunked_logps
from mm_cca.padding import left_pad, positions

MAX_TOKENS = 512
"""Longer texts are cut: enough to see a change, and no more than a prompt costs."""


def text_nll(model: UnifiedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, T] ids and bool mask -> [B] mean nats per token of each text but its first, float32."""
    states = model.text_states(ids, mask, positions(mask))[:, :-1]
    head = model.text_head()
    flat = chunked_logps(states.flatten(0, 1), head.weight, head.bias, ids[:, 1:].flatten())
    counts = mask[:, :-1] & mask[:, 1:]
    logps = flat.view_as(counts).masked_fill(~counts, 0.0)
    return -logps.sum(dim=1) / counts.sum(dim=1).clamp(min=1)


def text_batch(model: UnifiedModel, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts -> [B, T] ids and bool mask, in the family's form of plain text."""
    room = min(MAX_TOKENS, model.max_tokens)
    return left_pad([row[:room] for row in model.text_ids(texts)], model.pad_id)


def read_texts(path: str, key: str) -> list[str]:
    """Texts of a .txt file (one a line), or of the column ``text`` of a .jsonl or Parquet file.

    Args:
        path: the file.
        key: of the recipe, for the message.

    Raises:
        UserError: not such a file, or no text in it.
    """
    kind = TEXT_FILES.get(Path(path).suffix)
    if kind is None or not Path(path).is_file():
        raise UserError(f"{key} is {path!r}; allowed: a file that ends in {', '.join(TEXT_FILES)}.")
    try:
        table = load_dataset(kind, data_files=path, split="train")
    except Exception as error:  # datasets wraps whatever its readers raise
        raise UserError(f"{key} {path!r} can't be read: {error}") from error
    if "text" not in table.column_names:
        raise UserError(f"{key} {path!r} has no column 'text', only {table.column_names}.")
    texts = [text for text in table["text"] if isinstance(text, str) and text.strip()]
    if not texts:
        raise UserError(f"{key} {path!r} holds no text.")
    return texts


class TextStream:
    """Texts in a seeded order, anew in every epoch; a pure function of (seed, place)."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        self._texts = texts
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._make_order)

    def at(self, places: range) -> Iterator[str]:
        """The texts at places 0, 1, 2, ... of the stream."""
        for place in places:
            epoch, offset = divmod(place, len(self._texts))
            yield self._texts[int(self._order(epoch)[offset])]

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch, 0x7478]).permutation(len(self._texts))
