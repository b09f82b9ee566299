"""Reading a file that lies on a user's disk: one function per format, and one kind of message.

A file may have been cut short, emptied or exchanged, hold another shape than was written, or be no
file at all: a folder, or a pipe from which reading would wait for ever. The message names the file,
what is wrong with it, and what to delete, fetch or run again.
"""

import errno
import json
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

from safetensors import SafetensorError

from mm_cca.errors import UserError

MAX_BYTES = 2**30
"""Of a text: more is not what we or a person wrote."""
T = TypeVar("T")
ERRORS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    NotImplementedError,
    RecursionError,
    SafetensorError,
    BadZipFile,
    zlib.error,
)
"""What Python's readers, numpy, pyarrow and safetensors raise for a damaged file."""
NOT_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

WRONG = {
    "missing": "is missing",
    "list_type": "is not a list",
    "dict_type": "is not an object",
    "string_type": "is not a text",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is not true or false",
}
"""What pydantic finds, in words."""


@contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """Around whatever reads a file.

    Args:
        path: of the file, which is looked at before the block runs.
        advice: what to delete, fetch or run again; sentences.

    Raises:
        UserError: it is missing or not a file, or the block can't read it.
    """
    try:
        refuse_no_file(path)
        yield
    except ERRORS as error:
        raise unreadable(path, fault_of(error), advice) from error


def unreadable(path: Path, problem: str, advice: str) -> UserError:
    """The message about a file that can't be used."""
    return UserError(f"{path} can't be read: {problem}. {advice}")


def refuse_no_file(path: Path) -> None:
    """Raises OSError if there is nothing, or a folder, a pipe or a device."""
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        found = NOT_FILES.get(kind, "something else")
        raise OSError(errno.EINVAL, f"it is {found}, not a file", str(path))


def is_there(path: Path) -> bool:
    """Whether there is something, be it unreadable; ``Path.exists`` raises for some names."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def fault_of(error: BaseException) -> str:
    """What is wrong with a file, in a few words without a full stop."""
    problem = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    match error:
        case OSError(strerror=str() as reason):
            problem = reason
        case UnicodeDecodeError():
            problem = f"it is not UTF-8 text (byte {error.start})"
        case UnicodeEncodeError():
            problem = f"it has half a character ({error.object[error.start]!a}, one of a pair)"
        case json.JSONDecodeError():
            problem = f"it is not JSON, or was cut short ({problem})"
        case RecursionError():
            problem = "it is nested too deeply"
        case KeyError():
            problem = f"it lacks {problem}"
    return problem


def text_of(path: Path, advice: str, *, most: int = MAX_BYTES) -> str:
    """The UTF-8 text of a file, with or without a byte order mark.

    Args:
        path: of the file.
        advice: as in ``reading``.
        most: bytes; of a longer file nothing is read.

    Raises:
        UserError: missing, not a file, too long, or not UTF-8.
    """
    with reading(path, advice), path.open("rb") as file:
        data = file.read(most + 1) if path.stat().st_size <= most else None
        if data is None or len(data) > most:
            raise ValueError(f"it has {path.stat().st_size:,} bytes; allowed: up to {most:,}")
        return data.decode("utf-8-sig")


def json_of(path: Path, shape: type[T], advice: str, *, most: int = MAX_BYTES) -> T:
    """What a JSON file holds.

    Args:
        path: of the file.
        shape: what it must hold, such as a ``TypedDict`` or ``dict[str, int]``; more keys are
            kept.
        advice: as in ``reading``.
        most: as in ``text_of``.

    Raises:
        UserError: as ``text_of``; not JSON; or of another shape, with the first such place.
    """
    text = text_of(path, advice, most=most)
    with reading(path, advice):
        return shaped(_parsed(text), shape)


def json_lines_of(
    path: Path, shape: type[T], advice: str, *, torn: bool = False, most: int = MAX_BYTES
) -> list[T]:
    """What a file of JSON lines holds, one value a line; empty lines are skipped.

    Args:
        path: of the file.
        shape: of every value, as in ``json_of``.
        advice: as in ``reading``.
        torn: leave out lines that are not JSON, as an interruption cuts them.
        most: as in ``text_of``.

    Raises:
        UserError: as ``json_of``, with the number of the line.
    """
    values = []
    # Not splitlines: it also splits at characters that JSON allows inside a text.
    for number, line in enumerate(text_of(path, advice, most=most).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = _parsed(line)
        except (ValueError, RecursionError) as error:
            if torn:
                continue
            raise unreadable(path, f"in line {number}, {fault_of(error)}", advice) from error
        try:
            values.append(shaped(value, shape))
        except ValueError as error:
            raise unreadable(path, f"in line {number}, {fault_of(error)}", advice) from error
    return values


def _parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, also for texts that no file can hold."""
    value = json.loads(text)
    if "\\ud" in text.lower():  # half of a pair, written as an escape
        json.dumps(value, ensure_ascii=False).encode()
    return value


def shaped(value: Any, shape: type[T]) -> T:
    """The value itself. Raises ValueError, with the first place, if it is of another shape."""
    from pydantic import ValidationError

    try:
        checker: Any = _checker(shape)  # type: ignore[arg-type]  # a type is hashable
        checker.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = WRONG.get(first["type"], f"is wrong ({first['msg']})")
        raise ValueError(f"{place!r} {problem}" if place else f"it {problem}") from error
    kept: T = value
    return kept


@cache
def _checker(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)
