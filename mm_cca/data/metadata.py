"""Reads what people write beside their pictures: metadata.jsonl, .csv, .json or .parquet."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm_cca.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.json", "metadata.parquet")
EXAMPLE = '{"file_name": "0001.jpg", "text": "a red kangaroo"}'
"""A line of a metadata.jsonl."""
csv.field_size_limit(1 << 24)


def decoded(data: bytes, name: str) -> str:
    """UTF-8 text, with or without a byte order mark. Raises UserError, which names the file."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name} is not UTF-8 (byte 0x{data[error.start]:02x} in line {line}), perhaps Latin-1 "
            f"or Windows-1252. Convert it: iconv -f WINDOWS-1252 -t UTF-8 {name} > new_file"
        ) from error


def read_metadata(data: bytes, name: str) -> list[dict[str, Any]]:
    """The rows of a metadata file, each with its columns.

    Args:
        data: the whole file.
        name: its path, whose ending tells the format.

    Raises:
        UserError: not UTF-8, damaged, without rows, or rows that are no mappings.
    """
    kind = name.rpartition(".")[2].lower()
    if kind == "parquet":
        try:
            rows: list[Any] = pq.read_table(io.BytesIO(data)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{name} is not a Parquet file: {error}") from error
    elif kind == "csv":
        rows = _csv_rows(decoded(data, name), name)
    else:
        rows = _json_rows(decoded(data, name), name, lines=kind == "jsonl")
    if not rows:
        raise UserError(f"{name} has no rows; it needs lines such as {EXAMPLE}.")
    wrong = next((n for n, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise UserError(f"{name}, row {wrong}, is not a mapping such as {EXAMPLE}.")
    return rows


def _json_rows(text: str, name: str, *, lines: bool) -> list[Any]:
    if lines:
        # Not splitlines: it also splits at characters that JSON allows inside a text.
        numbered = enumerate(text.split("\n"), 1)
        return [_json(line, f"{name}, line {n},") for n, line in numbered if line.strip()]
    whole = _json(text, name) if text.strip() else []
    if not isinstance(whole, list):
        raise UserError(
            f"{name} holds a {type(whole).__name__}, not a list; write one object per picture, as "
            f"lines of a metadata.jsonl: {EXAMPLE}"
        )
    return whole


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}") from error


def _csv_rows(text: str, name: str) -> list[Any]:
    try:
        rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"{name} is not CSV: {error}") from error
    wide = next((n for n, row in enumerate(rows, 1) if None in row), None)
    if wide is not None:
        raise UserError(
            f"{name}, row {wide}, has more columns than its head; put texts with commas in quotes."
        )
    return rows


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, pa.Array]:
    """Rows as columns, null where a row lacks one; a column of mixed types is JSON text."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError):
        return pa.array(
            [v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in values]
        )
