"""Reads prompts from a text, JSON, JSON-lines or CSV file, or from a folder of files."""

import csv
import json
from pathlib import Path
from typing import Any

from mm_cca.config.schema import PROMPT_FILES
from mm_cca.config.shipped import PROMPT_SETS
from mm_cca.errors import UserError

COLUMNS = ("text", "caption", "prompt")
IN_FOLDERS = (".txt", ".json")


def read_prompts(name: str) -> list[str]:
    """The prompts of a file or a folder in order, including repeated ones.

    Args:
        name: one of
            - the name of a built-in set (``PROMPT_SETS``),
            - a ``.txt`` with one prompt per line (empty lines are skipped),
            - a ``.jsonl`` or ``.csv`` with a column text, caption or prompt,
            - a ``.json`` with a list of texts,
            - a folder, read in order of file names, where a ``.txt`` is one prompt and a
              ``.json`` a list.

    Raises:
        UserError: a missing or unreadable file, another file type, no such column, or an empty
            prompt.
    """
    path = PROMPT_SETS.get(name, Path(name))
    try:
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix in IN_FOLDERS)
            parts = [_texts(p) if p.suffix == ".json" else [p.read_text("utf-8")] for p in files]
            prompts = [prompt for part in parts for prompt in part]
        else:
            prompts = _texts(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"sample.prompts {name!r} can't be read: {error}") from error
    if not prompts:
        raise UserError(f"sample.prompts {name!r} has no prompts.")
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{name}, prompt {number} is {prompt!r}; it must be a non-empty text.")
    return [prompt.strip() for prompt in prompts]


def _texts(path: Path) -> list[Any]:
    if path.suffix not in PROMPT_FILES:
        raise UserError(
            f"sample.prompts is {str(path)!r}; allowed: a file {', '.join(PROMPT_FILES)}, a "
            f"folder, or a built-in set: {', '.join(PROMPT_SETS)}."
        )
    if path.suffix == ".txt":
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    if path.suffix == ".json":
        prompts = json.loads(path.read_text("utf-8"))
        if not isinstance(prompts, list):
            raise UserError(f"{path} is not a list; a .json of prompts must be a list of texts.")
        return prompts
    return [row[text_column(path, row)] for row in rows_of(path)]


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
    """The first of ``COLUMNS`` that a row has. Raises UserError if it has none."""
    for name in COLUMNS:
        if name in row:
            return name
    raise UserError(
        f"{path} has the columns {', '.join(row)}; it needs one of {', '.join(COLUMNS)}."
    )
