"""Prompts from a file of their own: one text a line, JSON lines, or a CSV."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mm_cca.errors import UserError

COLUMNS = ("text", "caption", "prompt")
SUFFIXES = (".txt", ".jsonl", ".csv")


def read_prompts(file: str) -> list[str]:
    """The prompts of a file in their order, repeated ones too.

    Args:
        file: ``.txt`` with a prompt a line, ``.jsonl`` or ``.csv`` with a column text, caption or
            prompt. Empty lines of a ``.txt`` are passed over.

    Raises:
        UserError: not there, another kind, no such column, or an empty prompt.
    """
    path = Path(file)
    if path.suffix not in SUFFIXES:
        raise UserError(f"sample.prompts is {file!r}; allowed: a file {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".txt":
            prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            prompts = [prompt for prompt in prompts if prompt]
        else:
            prompts = _column(path, rows_of(path))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"sample.prompts {file!r} can't be read: {error}") from error
    if not prompts:
        raise UserError(f"sample.prompts {file!r} holds no prompt.")
    return prompts


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``.jsonl`` or ``.csv`` file.

    Raises:
        OSError, ValueError, csv.Error: it can't be read.
    """
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file if line.strip()]
        return list(csv.DictReader(file))


def text_column(path: Path, row: dict[str, Any]) -> str:
    """Which of the allowed columns a row has. Raises UserError."""
    found = [name for name in COLUMNS if name in row]
    if not found:
        raise UserError(
            f"{path} has the columns {', '.join(row)}; one of {', '.join(COLUMNS)} must be there."
        )
    return found[0]


def _column(path: Path, rows: Iterable[dict[str, Any]]) -> list[str]:
    prompts = []
    for number, row in enumerate(rows, start=1):
        text = row[text_column(path, row)]
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{path}, row {number}: the prompt is {text!r}; it must be a text.")
        prompts.append(text.strip())
    return prompts
