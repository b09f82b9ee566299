"""Reads prompts from a text, JSON, JSON-lines or CSV file, or from a folder of files."""

import csv
import io
from pathlib import Path
from typing import Any

from mm_cca.config.image_sizes import Size, size_in
from mm_cca.config.read_files import fault_of, json_lines_of, json_of, text_of, unreadable
from mm_cca.config.schema import PROMPT_FILES
from mm_cca.config.shipped import PROMPT_SETS
from mm_cca.errors import UserError

COLUMNS = ("text", "caption", "prompt")
IN_FOLDERS = (".txt", ".json")
MAX_BYTES = 2**26
"""Of a file of prompts: more than a million of them."""
MAX_PROMPT = 20_000
"""Characters; no model reads longer ones."""
ADVICE = (
    "sample.prompts must be texts in UTF-8: one a line (.txt), a list (.json), or a column text, "
    "caption or prompt (.jsonl, .csv)."
)


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
    if path.is_dir():
        try:
            files = sorted(p for p in path.iterdir() if p.suffix in IN_FOLDERS)
        except OSError as error:
            raise unreadable(path, fault_of(error), ADVICE) from error
        parts = [_texts(p) if p.suffix == ".json" else [_read(p)] for p in files]
        prompts = [prompt for part in parts for prompt in part]
    else:
        prompts = _texts(path)
    if not prompts:
        raise UserError(f"sample.prompts {name!r} has no prompts.")
    for number, prompt in enumerate(prompts, start=1):
        if problem := _problem_of(prompt):
            raise UserError(f"{name}, prompt {number} {problem}.")
    return [prompt.strip() for prompt in prompts]


def read_sizes(name: str) -> list[Size | None]:
    """The image size of every prompt that ``read_prompts`` gives, from columns height and width.

    None where a row has none, or the file has no columns.

    Raises:
        UserError: one without the other, or no whole numbers.
    """
    path = PROMPT_SETS.get(name, Path(name))
    if path.suffix not in (".jsonl", ".csv"):
        return [None] * len(read_prompts(name))
    return [_size_in(name, number, row) for number, row in enumerate(rows_of(path), start=1)]


def _size_in(name: str, number: int, row: dict[str, Any]) -> Size | None:
    given = [row.get(column) for column in ("height", "width")]
    given = [None if value == "" else value for value in given]
    if given == [None, None]:
        return None
    size = size_in(f"{given[0]}x{given[1]}")
    if size is None:
        raise UserError(
            f"{name}, prompt {number} has height {given[0]!r} and width {given[1]!r}; allowed: "
            "both as whole numbers of pixels, or neither."
        )
    return size


def _problem_of(prompt: Any) -> str | None:
    """What is wrong with a prompt, or None."""
    if not isinstance(prompt, str) or not prompt.strip():
        return f"is {prompt!r:.80}; it must be a non-empty text"
    if len(prompt) > MAX_PROMPT:
        return f"has {len(prompt):,} characters; allowed: up to {MAX_PROMPT:,}"
    return None


def _texts(path: Path) -> list[Any]:
    if path.suffix not in PROMPT_FILES:
        raise UserError(
            f"sample.prompts is {str(path)!r}; allowed: a file {', '.join(PROMPT_FILES)}, a "
            f"folder, or a built-in set: {', '.join(PROMPT_SETS)}."
        )
    if path.suffix == ".txt":
        return [line for line in _read(path).split("\n") if line.strip()]
    if path.suffix == ".json":
        return json_of(path, list[Any], ADVICE, most=MAX_BYTES)
    return [row[text_column(path, row)] for row in rows_of(path)]


def _read(path: Path) -> str:
    """Lines end in a newline. Not ``splitlines``: it would also cut a prompt at a U+2028 inside."""
    return text_of(path, ADVICE, most=MAX_BYTES).replace("\r\n", "\n").replace("\r", "\n")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``.jsonl`` or ``.csv`` file.

    Raises:
        UserError: it can't be read, or a row is no mapping.
    """
    if path.suffix == ".jsonl":
        return json_lines_of(path, dict[str, Any], ADVICE, most=MAX_BYTES)
    text = text_of(path, ADVICE, most=MAX_BYTES)
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise unreadable(path, fault_of(error), ADVICE) from error


def text_column(path: Path, row: dict[str, Any]) -> str:
    """The first of ``COLUMNS`` that a row has. Raises UserError if it has none."""
    for name in COLUMNS:
        if name in row:
            return name
    raise UserError(
        f"{path} has the columns {', '.join(row)}; it needs one of {', '.join(COLUMNS)}."
    )
