"""Captioned images of a split from any source, with every row checked."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from mm_cca.config.schema import DataConfig
from mm_cca.data.caption_column import caption_columns, captions_of
from mm_cca.data.filters import TooSmallError, decode_large, fault_of_length
from mm_cca.data.kept_index import INDEXES
from mm_cca.data.pictures import decode_image, fitted, image_bytes, open_image
from mm_cca.data.read_source import read_tables, with_images
from mm_cca.errors import UserError

__all__ = [
    "BadRow",
    "Split",
    "decode_image",
    "fitted",
    "image_bytes",
    "images_of",
    "load_images",
    "load_split",
    "open_image",
    "refuse_too_many",
    "with_names",
]
NAMES_SHOWN = 20
"""How many of a column's values a message lists."""


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used, and why."""

    row: int
    problem: str


@dataclass(frozen=True)
class Split:
    """The usable rows of one split, images still undecoded.

    Attributes:
        table: all rows and columns of the source; images as ``{"bytes", "path"}``.
        rows: position of every usable row in ``table``.
        captions: [n] captions of the usable rows; of several columns the first that a row has.
        bad: the rows that can't be used.
        texts: [n] with several columns the captions of all, "" where a row has none; else empty.
        left_out: rows whose captions the recipe leaves out for their length.
    """

    table: Dataset
    rows: list[int]
    captions: list[str]
    bad: list[BadRow]
    texts: list[list[str]] = field(default_factory=list)
    left_out: list[BadRow] = field(default_factory=list)


def load_split(config: DataConfig, split: str, tokens: Path | None = None) -> Split:
    """Read one split and check every caption; images are checked when they are decoded.

    ``tokens``, the folder of the token cache, keeps the indexes of tars at addresses.

    Raises:
        UserError: an unreadable source, a missing column, an unknown split, a column of something
            else, or no caption at all.
    """
    table = _load_rows(config, split, tokens)
    if not len(table):
        raise UserError(f"{config.path}, split {split!r}, has no rows.")
    columns = caption_columns(config)
    for key, column in (
        ("image_column", config.image_column),
        *(("caption_column", column) for column in columns),
    ):
        if column not in table.column_names:
            raise UserError(
                f"data.{key} is {column!r}, but {config.path} has the columns "
                f"{', '.join(table.column_names)}."
            )
    table = with_images(table, config.image_column, config.path)
    rows, usable, texts, bad, left_out = [], [], [], [], []
    by_column = [captions_of(table, column) for column in columns]
    for row, captions in enumerate(zip(*by_column, strict=True)):
        given = [c if isinstance(c, str) and c.strip() else "" for c in captions]
        faults = [fault_of_length(caption, config) if caption else "" for caption in given]
        own = ["" if fault else c for c, fault in zip(given, faults, strict=True)]
        if any(own):
            rows.append(row)
            usable.append(next(filter(None, own)))
            if len(columns) > 1:
                texts.append(own)
        elif any(faults):
            left_out.append(BadRow(row, next(filter(None, faults))))
        else:
            shown = repr(captions[0]) if len(columns) == 1 else f"none in {', '.join(columns)}"
            bad.append(BadRow(row, f"empty caption ({shown})"))
    if not rows:
        raise UserError(f"{config.path}, split {split!r}, has no row with a caption.")
    bad = with_names(bad, table, config.image_column)
    return Split(table, rows, usable, bad, texts, left_out)


def with_names(bad: list[BadRow], table: Dataset, column: str) -> list[BadRow]:
    """The bad rows with the names of their pictures, in ``column``, where these have one."""
    if not bad:
        return bad
    names = [c and c["path"] for c in table.select([b.row for b in bad])[column]]
    return [
        BadRow(b.row, f"{name}: {b.problem}") if name else b
        for b, name in zip(bad, names, strict=True)
    ]


def load_images(path: str, column: str, split: str, key: str) -> Dataset:
    """The undecoded image column of a data set; needs no captions.

    Args:
        path: the file, folder or the name of the data set.
        column: name of the image column.
        split: of a data set that has several.
        key: the recipe's key that named it, for messages.

    Raises:
        UserError: an unreadable source, an unknown split or a missing column.
    """
    source = read_tables(path, key)
    if split not in source:
        raise UserError(f"{key} {path!r} has no split {split!r}; it has {', '.join(source)}.")
    table = source[split]
    if column not in table.column_names:
        raise UserError(
            f"data.image_column is {column!r}, but {key} {path} has the columns "
            f"{', '.join(table.column_names)}."
        )
    return with_images(table.select_columns([column]), column, path)


def _load_rows(config: DataConfig, split: str, tokens: Path | None) -> Dataset:
    kept = None if tokens is None else tokens / INDEXES
    source = read_tables(
        config.path, "data.path", subset=config.subset, revision=config.revision, kept=kept
    )
    if config.split_column is None:
        if split not in source:
            raise UserError(
                f"{config.path} has no split {split!r}; it has {', '.join(source)}. Set "
                "data.train_split, data.heldout_split, or data.split_column."
            )
        return source[split]
    table = source["train"] if "train" in source else next(iter(source.values()))
    if config.split_column not in table.column_names:
        raise UserError(
            f"data.split_column is {config.split_column!r}, but {config.path} has the columns "
            f"{', '.join(table.column_names)}."
        )
    names = [str(name) for name in _names(table, config.split_column)]
    if split not in names:
        found = sorted(set(names))
        more = f" and {len(found) - NAMES_SHOWN} others" if len(found) > NAMES_SHOWN else ""
        raise UserError(
            f"no row of {config.path} has {config.split_column} = {split!r}; it holds "
            f"{', '.join(found[:NAMES_SHOWN])}{more}."
        )
    return table.select(np.flatnonzero(np.array(names, dtype=object) == split))


def _names(table: Dataset, column: str) -> list[Any]:
    """A column's values; class labels by name."""
    feature, values = table.features[column], table[column][:]
    if isinstance(feature, ClassLabel):
        return [None if v is None or v < 0 else feature.int2str(v) for v in values]
    return values  # type: ignore[no-any-return]


def images_of(split: Split, config: DataConfig) -> tuple[torch.Tensor, list[str]]:
    """All usable images of a small split at once: [n, 3, H, W] uint8 and their captions.

    Raises:
        UserError: more than ``data.max_bad`` rows can't be used.
    """
    pixels, captions, bad = [], [], list(split.bad)
    for row, caption in zip(split.rows, split.captions, strict=True):
        try:
            pixels.append(decode_large(config, (), split.table[row][config.image_column]))
            captions.append(caption)
        except TooSmallError:
            continue
        except ValueError as error:
            bad.append(BadRow(row, str(error)))
    refuse_too_many(bad, config, None)
    return torch.stack(pixels), captions


def refuse_too_many(bad: list[BadRow], config: DataConfig, report: Path | None) -> None:
    """Write the bad rows to ``report`` and raise UserError if they exceed ``data.max_bad``."""
    if not bad:
        return
    lines = [json.dumps({"row": b.row, "problem": b.problem}) for b in bad]
    where = ""
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text("\n".join(lines) + "\n")
        where = f" All are listed in {report}."
    if len(bad) > config.max_bad:
        raise UserError(
            f"{config.path}: {len(bad)} row(s) can't be used, and data.max_bad is "
            f"{config.max_bad}. The first is row {bad[0].row}: {bad[0].problem}.{where} Fix these "
            f"rows, or skip them with data.max_bad={len(bad)}."
        )
