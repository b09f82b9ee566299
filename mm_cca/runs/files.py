"""Files and folders that appear whole or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mm_cca.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


IO_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What a full disk or a torn file raises: safetensors and torch have their own."""


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder beside, then rename it to ``folder``.

    Raises:
        UserError: the disk is full or not writable; the old folder stays.
    """
    beside = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except UserError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    except IO_ERRORS as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(
            f"{folder} could not be written: {error}\nFree some space and run the same command "
            "again."
        ) from error
