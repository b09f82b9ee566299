"""Reads a source into tables, one per split, by the builders of ``datasets``."""

import glob
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import (
    Dataset,
    DatasetDict,
    Image,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

from mm_cca.data.caption_column import TEXTS
from mm_cca.data.image_folders import folder_table, zip_table
from mm_cca.data.remote_files import innermost
from mm_cca.data.sources import TRAIN, Source, source_of, unreadable
from mm_cca.data.tar_index import tar_table
from mm_cca.errors import UserError

_BASE64 = re.compile(r"(data:image/[\w.+-]+;base64,)?[A-Za-z0-9+/_=\s-]{64,}")


def read_tables(
    path_or_name: str,
    key: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    kept: Path | None = None,
) -> DatasetDict:
    """Every split of a data set.

    Args:
        path_or_name: a value of ``data.path``.
        key: the recipe's key that named it, for messages.
        subset: the configuration of a data set of the hub.
        revision: its branch, tag or commit.
        kept: folder that keeps the indexes of tars at addresses, beside the token cache.

    Raises:
        UserError: nothing that can be read, or a file that is damaged or empty.
    """
    source = source_of(path_or_name, key, subset)
    try:
        if source.kind == "hub":
            return load_dataset(path_or_name, subset, revision=revision)
        if source.kind == "saved":
            saved = load_from_disk(str(source.root))
            return saved if isinstance(saved, DatasetDict) else DatasetDict({TRAIN: saved})
        if source.kind == "remote":
            addresses = source.addresses.items()
            return DatasetDict({split: tar_table(tars, kept) for split, tars in addresses})
        return DatasetDict({split: _read(source, split) for split in source.splits})
    except UserError:
        raise
    except Exception as error:  # datasets wraps any error of its readers
        raise unreadable(path_or_name, key, _why(error)) from error


def _read(source: Source, split: str) -> Dataset:
    files = source.splits[split]
    if source.kind == "images":
        below = files[0].relative_to(source.root).as_posix()
        start = "" if below == "." else f"{below}/"
        names = [n.removeprefix(start) for n in source.names if n.startswith(start)]
        return folder_table(files[0], names)
    if source.kind == "zip":
        return concatenate_datasets([zip_table(file) for file in files])
    if source.kind == "webdataset":
        return tar_table([str(file.absolute()) for file in files])
    if source.kind == "parquet":  # datasets can't read one without rows, even among others
        files = [file for file in files if pq.read_metadata(file).num_rows]
        if not files:
            raise ValueError("it has no rows")
    # To datasets a file's name is a pattern.
    named: Any = [glob.escape(str(file.absolute())) for file in files]
    return load_dataset(source.kind, data_files={split: named}, split=split)


def _why(error: BaseException) -> str:
    """The innermost cause in one line: datasets' own sentence is "An error occurred ..."."""
    error = innermost(error)
    text = str(error)
    return text.splitlines()[0][:400] if text.strip() else type(error).__name__


def with_images(table: Dataset, column: str, source: str) -> Dataset:
    """The table with its image column as undecoded cells, ``{"bytes", "path"}``.

    Images that are base64 text become bytes.

    Raises:
        UserError: the column holds URLs, lists or numbers.
    """
    feature = table.features[column]
    allowed = "allowed: images, bytes, paths, or images as base64 text"
    if isinstance(feature, Value) and feature.dtype in TEXTS:
        first = next((text for text in table[column] if text), "")
        if re.match(r"(https?|ftp|s3|gs)://", first):
            raise UserError(
                f"data.image_column {column!r} of {source} holds URLs, such as {first[:100]!r}, "
                "which are not fetched. Download the pictures first (img2dataset does it) and set "
                "data.path to what it writes."
            )
        if _BASE64.fullmatch(first):
            features = table.features.copy()
            features[column] = Image(decode=False)
            return table.map(
                _from_base64, features=features, fn_kwargs={"column": column}, desc="base64"
            )
    elif not isinstance(feature, Image) and not _is_cell(feature):
        raise UserError(
            f"data.image_column {column!r} of {source} holds {_kind(feature)}; {allowed}. Name "
            "another column, or write one with one image per row."
        )
    try:
        return table.cast_column(column, Image(decode=False))
    except Exception as error:  # pyarrow has many
        raise UserError(
            f"data.image_column {column!r} of {source} can't be read as images: {_why(error)}; "
            f"{allowed}."
        ) from error


def _is_cell(feature: Any) -> bool:
    """Bytes, or bytes and path."""
    if isinstance(feature, Value):
        return "binary" in feature.dtype or feature.dtype == "null"
    return isinstance(feature, dict) and set(feature) <= {"bytes", "path"}


def _kind(feature: Any) -> str:
    if isinstance(feature, Value):
        return f"values of the type {feature.dtype}"
    if isinstance(feature, dict):
        return f"mappings with the keys {', '.join(feature)}"
    return (
        "lists"
        if "List" in type(feature).__name__ or isinstance(feature, list)
        else (f"values of the type {type(feature).__name__}")
    )


def _from_base64(row: dict[str, Any], column: str) -> dict[str, Any]:
    """What can't be decoded becomes no bytes, a bad row."""
    try:
        text = (row[column] or "").rpartition(",")[2].translate(str.maketrans("-_", "+/"))
        data = b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        data = b""
    return {column: {"bytes": data, "path": None}}
