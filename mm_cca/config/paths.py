"""Questions about a path that a user wrote: one too long for a name, or with NUL, is no file.

``Path.is_file`` raises for those until Python 3.14; a value of a recipe must be told instead.
"""

from collections.abc import Callable
from pathlib import Path


def is_file(path: str) -> bool:
    """Whether the path names a file that exists."""
    return _ask(Path.is_file, path)


def is_folder(path: str) -> bool:
    """Whether the path names a folder that exists."""
    return _ask(Path.is_dir, path)


def exists(path: str) -> bool:
    """Whether the path names something that exists."""
    return _ask(Path.exists, path)


def _ask(question: Callable[[Path], bool], path: str) -> bool:
    try:
        return question(Path(path))
    except (OSError, ValueError):
        return False
