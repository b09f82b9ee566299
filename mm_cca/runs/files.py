"""Atomic writes: a file or folder is complete, or it is not there."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mm_cca.errors import UserError

IO_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What a full disk or a truncated file raises: safetensors and torch have their own."""
PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Where ``path`` is written until it is complete."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes ``path`` when the block ends without an error.

    Works for a file or a folder (created in the block). An existing ``path`` is replaced; after an
    error it is unchanged.

    Raises:
        UserError: a folder stands where the file is meant to be, or a file where a folder is.
    """
    temporary = partial_path(path)
    refuse_file_as_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete(temporary)  # left by a killed process
    try:
        yield temporary
        if temporary.is_dir():
            _delete(path)
        elif path.is_dir():
            raise UserError(f"{path} is a folder; a file is written there. Move or delete it.")
        temporary.replace(path)
    except BaseException:
        _delete(temporary)
        raise


def refuse_file_as_folder(folder: Path) -> None:
    """Raises UserError if the folder, or one that it lies in, is a file."""
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise UserError(f"{path} is a file; a folder is needed there. Move or delete it.")
            return


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """``write_text`` of JSON, indented for people unless ``indent`` is None."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill an empty folder, which then replaces ``folder``.

    Raises:
        UserError: the disk is full or not writable; the old folder is kept.
    """
    try:
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write(temporary)
    except IO_ERRORS as error:
        raise UserError(
            f"{folder} could not be written: {error}\nFree some space and run the same command "
            "again."
        ) from error
