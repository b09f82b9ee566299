"""The token cache: the codes of every image, encoded once.

Shapes: B images, V variants, N codes per image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetInfo, concatenate_datasets
from pyarrow import compute

from mm_cca.config.image_sizes import Size
from mm_cca.data.contents import read_content
from mm_cca.data.mapped_column import MappedColumn
from mm_cca.data.token_shards import (
    SHARDS,
    TEXTS,
    read_record,
    read_shard,
    record_path,
    shards_of,
    sizes_in,
)
from mm_cca.errors import UserError
from mm_cca.runs.stage import recorded


class TokenCache:
    """The codes and captions of one split, memory-mapped.

    Attributes:
        name: of the split.
        captions: [n] of every usable row; with several columns the first one that it has.
        texts: [n] the captions of every column of ``data.caption_column``, "" where a row has none;
            None with a single column.
        source_rows: [n] the row of the data.
        sizes: [n, 2] height and width of every image; None where all have ``data.image_size``.
        num_variants: V.
    """

    def __init__(
        self, name: str, table: Dataset, num_variants: int, usable: np.ndarray | None = None
    ) -> None:
        """``usable`` [n] are the rows of ``table`` that count; None: all."""
        self.name = name
        self._table = table.with_format("torch", columns=["codes"])
        self._usable = usable
        columns = table.data
        self.captions: MappedColumn[str] = MappedColumn(columns.column("caption"), usable)
        self.texts: MappedColumn[list[str]] | None = None
        if TEXTS in table.column_names:
            self.texts = MappedColumn(columns.column(TEXTS), usable)
            lists = columns.column(TEXTS).chunks
            self._flat = pa.chunked_array([chunk.flatten() for chunk in lists], pa.string())
        self.source_rows: MappedColumn[int] = MappedColumn(columns.column("row"), usable)
        sizes = sizes_in(table)
        self.sizes = sizes if sizes is None or usable is None else sizes[usable]
        self.num_variants = num_variants

    def __len__(self) -> int:
        return len(self.captions)

    def drawn(self, columns: np.ndarray) -> MappedColumn[str]:
        """[n] the caption of each row in one of several columns, by the columns' numbers."""
        rows = np.arange(len(self)) if self._usable is None else self._usable
        per_row = len(self._flat) // len(self._table)
        return MappedColumn(self._flat, rows * per_row + columns)

    def every_caption(self) -> tuple[Sequence[str], Sequence[int]]:
        """All captions of the rows, of several columns too, and the row of the data of each."""
        if self.texts is None:
            return self.captions, self.source_rows
        has = self.has_caption()
        places, columns = np.nonzero(has)
        rows = np.arange(len(self)) if self._usable is None else self._usable
        texts: MappedColumn[str] = MappedColumn(self._flat, rows[places] * has.shape[1] + columns)
        return texts, self.source_rows.at(places)

    def has_caption(self) -> np.ndarray:
        """[n, K] whether an image has a caption in each of several columns."""
        has = compute.binary_length(self._flat).to_numpy() > 0
        of_rows = has.reshape(len(self._table), -1)
        return of_rows if self._usable is None else of_rows[self._usable]

    def codes(self, rows: torch.Tensor, variants: torch.Tensor) -> torch.Tensor:
        """[B] rows of one size and [B] variants -> [B, N] int64 codes."""
        stored_rows = rows.tolist() if self._usable is None else self._usable[rows.numpy()].tolist()
        stored = self._table[stored_rows]["codes"].view(len(rows), self.num_variants, -1)
        return stored[torch.arange(len(rows)), variants].long()

    def by_size(self, rows: np.ndarray, image_size: Sequence[int]) -> dict[Size, np.ndarray]:
        """Places in ``rows`` of the images of each size, in the order in which sizes appear."""
        height, width = image_size
        if self.sizes is None:
            return {(height, width): np.arange(len(rows))}
        sizes, first, number = np.unique(
            self.sizes[rows], axis=0, return_index=True, return_inverse=True
        )
        return {
            (int(sizes[n, 0]), int(sizes[n, 1])): np.flatnonzero(number == n)
            for n in np.argsort(first).tolist()
        }


def open_cache(folder: Path, num_variants: int, *, unfinished: bool = False) -> TokenCache:
    """The cache in the folder of a split.

    Args:
        folder: of the split.
        num_variants: of every image.
        unfinished: take what is there so far.

    Raises:
        UserError: there is none, it is incomplete, or a file was damaged or exchanged.
    """
    shards = folder / SHARDS
    if not shards.is_dir():
        raise UserError(f"{shards} does not exist: run `mm-cca prepare RECIPE` first.")
    stage = None if unfinished else recorded(folder)
    if stage is not None and not stage["done"]:
        raise UserError(f"{folder} is incomplete: run `mm-cca prepare RECIPE` to finish it.")
    if not unfinished:
        _refuse_missing(folder)
    table = all_shards(folder)
    if len(np.unique(table.data.column("row").to_numpy())) != len(table):
        raise UserError(
            f"{shards} holds some rows twice: a shard was copied. Delete {folder} and run "
            "`mm-cca prepare RECIPE` again."
        )
    problems: MappedColumn[str] = MappedColumn(table.data.column("problem"))
    good = np.flatnonzero([not problem for problem in problems])
    return TokenCache(folder.name, table, num_variants, None if len(good) == len(table) else good)


def _refuse_missing(folder: Path) -> None:
    """Every shard has a record, and every record a shard, once records are kept at all, and they
    are those that the cache was finished with."""
    shards = {path.name: path for path in shards_of(folder)}
    records = {path.stem for path in record_path(folder / SHARDS / "any").parent.glob("*.json")}
    if not records:
        return
    content = read_content(folder)
    for name in sorted(shards.keys() | records):
        path = folder / SHARDS / name
        if name not in shards:
            problem = "it is missing"
        elif name not in records:
            problem = "it is not of this cache (no record)"
        elif content is not None and not content.holds(path, read_record(path)):
            problem = "it is of another cache"
        else:
            continue
        raise UserError(
            f"{path}: {problem}. Run `mm-cca prepare RECIPE`; it makes only what is missing."
        )


def all_shards(folder: Path) -> Dataset:
    """All rows of a split, also those with a problem. Raises UserError for a damaged shard."""
    shards = [read_shard(path) for path in shards_of(folder)]
    # Without the shards' homepages and licences, which nothing here has checked.
    return concatenate_datasets(shards, info=DatasetInfo())
