"""Reads captioned images from any source that ``datasets`` supports, and checks every row."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Image, load_dataset
from datasets.exceptions import DatasetNotFoundError
from PIL import Image as pil
from PIL import ImageOps, UnidentifiedImageError

from mm_cca.config.schema import DataConfig
from mm_cca.config.shipped import how_to_make, shipped
from mm_cca.errors import UserError


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
        captions: [n] captions of the usable rows.
        bad: the rows that can't be used.
    """

    table: Dataset
    rows: list[int]
    captions: list[str]
    bad: list[BadRow]


def load_split(config: DataConfig, split: str) -> Split:
    """Read one split and check every caption; images are checked when they are decoded.

    Raises:
        UserError: an unreadable source, a missing column, an unknown split, or no caption at all.
    """
    table = _load_rows(config, split)
    for key, column in (
        ("image_column", config.image_column),
        ("caption_column", config.caption_column),
    ):
        if column not in table.column_names:
            raise UserError(
                f"data.{key} is {column!r}, but {config.path} has the columns "
                f"{', '.join(table.column_names)}."
            )
    table = table.cast_column(config.image_column, Image(decode=False))
    captions = table[config.caption_column]
    rows, usable, bad = [], [], []
    for row, caption in enumerate(captions):
        if isinstance(caption, str) and caption.strip():
            rows.append(row)
            usable.append(caption)
        else:
            bad.append(BadRow(row, f"empty caption ({caption!r})"))
    if not rows:
        raise UserError(f"{config.path}, split {split!r}, has no row with a caption.")
    return Split(table, rows, usable, bad)


def load_images(path: str, column: str, split: str, key: str) -> Dataset:
    """The undecoded image column of a Parquet file or a hub data set; needs no captions.

    Args:
        path: the file or the name of the data set.
        column: name of the image column.
        split: of a hub data set; a Parquet file has the split ``train`` only.
        key: the recipe's key that named it, for messages.

    Raises:
        UserError: an unreadable source, an unknown split or a missing column.
    """
    source = _load_source(path, key)
    if split not in source:
        raise UserError(f"{key} {path!r} has no split {split!r}; it has {', '.join(source)}.")
    table = source[split]
    if column not in table.column_names:
        raise UserError(
            f"data.image_column is {column!r}, but {key} {path} has the columns "
            f"{', '.join(table.column_names)}."
        )
    return table.select_columns([column]).cast_column(column, Image(decode=False))


def _load_source(path_or_name: str, key: str) -> DatasetDict:
    path = Path(shipped(path_or_name))
    try:
        if path.is_file():
            return load_dataset("parquet", data_files=str(path))
        if path.is_dir():
            return load_dataset("imagefolder", data_dir=str(path))
        return load_dataset(path_or_name)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{key} {path_or_name!r} can't be read: {error}\nAllowed: 'emoji', a Parquet file "
            "with an image column, a folder of images with a metadata.jsonl, or a name on the hub."
            f"{how_to_make(path_or_name)}"
        ) from error


def _load_rows(config: DataConfig, split: str) -> Dataset:
    source = _load_source(config.path, "data.path")
    if config.split_column is None:
        if split not in source:
            raise UserError(
                f"{config.path} has no split {split!r}; it has {', '.join(source)}. Set "
                "data.train_split, data.heldout_split, or data.split_column."
            )
        return source[split]
    table = source["train"]
    if config.split_column not in table.column_names:
        raise UserError(
            f"data.split_column is {config.split_column!r}, but {config.path} has the columns "
            f"{', '.join(table.column_names)}."
        )
    values = np.array(table[config.split_column])
    if not (values == split).any():
        raise UserError(
            f"no row of {config.path} has {config.split_column} = {split!r}; it holds "
            f"{', '.join(sorted(set(values.tolist())))}."
        )
    return table.select(np.flatnonzero(values == split))


def open_image(cell: dict[str, Any]) -> pil.Image:
    """An undecoded image cell -> an RGB image, EXIF rotation applied, flattened on white.

    Raises:
        ValueError: not a readable image.
    """
    try:
        data = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        with pil.open(io.BytesIO(data)) as file:
            image = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, UnidentifiedImageError, TypeError, pil.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {error}") from error
    flat = pil.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    return flat.convert("RGB")


def fitted(image: pil.Image, height: int, width: int) -> pil.Image:
    """The image resized to cover height x width, bicubic with antialiasing, and centre-cropped."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), pil.Resampling.BICUBIC)


def decode_image(cell: dict[str, Any], height: int, width: int) -> torch.Tensor:
    """An undecoded image cell -> [3, H, W] uint8, flattened on white, resized and centre-cropped.

    Raises:
        ValueError: not a readable image.
    """
    rgb = fitted(open_image(cell), height, width)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def images_of(split: Split, config: DataConfig) -> tuple[torch.Tensor, list[str]]:
    """All usable images of a small split at once: [n, 3, H, W] uint8 and their captions.

    Raises:
        UserError: more than ``data.max_bad`` rows can't be used.
    """
    height, width = config.image_size
    pixels, captions, bad = [], [], list(split.bad)
    for row, caption in zip(split.rows, split.captions, strict=True):
        try:
            pixels.append(decode_image(split.table[row][config.image_column], height, width))
            captions.append(caption)
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
