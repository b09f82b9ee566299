"""Plain texts: reads them from a file, and orders them for training."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from datasets import load_dataset

from mm_cca.config.schema import TEXT_FILES
from mm_cca.errors import UserError


def read_texts(path: str, key: str) -> list[str]:
    """Texts of a .txt file (one per line), or of the column ``text`` of a .jsonl or Parquet file.

    Args:
        path: the file.
        key: the recipe's key that named it, for messages.

    Raises:
        UserError: a missing or unreadable file, another file type, or no text in it.
    """
    kind = TEXT_FILES.get(Path(path).suffix)
    if kind is None or not Path(path).is_file():
        raise UserError(f"{key} is {path!r}; allowed: a file that ends in {', '.join(TEXT_FILES)}.")
    try:
        table = load_dataset(kind, data_files=path, split="train")
    except Exception as error:  # datasets wraps any error of its readers
        raise UserError(f"{key} {path!r} can't be read: {error}") from error
    if "text" not in table.column_names:
        raise UserError(f"{key} {path!r} has no column 'text', only {table.column_names}.")
    texts = [text for text in table["text"] if isinstance(text, str) and text.strip()]
    if not texts:
        raise UserError(f"{key} {path!r} has no texts.")
    return texts


class TextStream:
    """Texts in a seeded order, reshuffled every epoch; the text at a position depends on the seed
    and the position only."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        self._texts = texts
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._make_order)

    def at(self, positions: range) -> Iterator[str]:
        """The texts at the given positions (0, 1, 2, ...) of the stream."""
        for position in positions:
            epoch, offset = divmod(position, len(self._texts))
            yield self._texts[int(self._order(epoch)[offset])]

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch, 0x7478]).permutation(len(self._texts))
