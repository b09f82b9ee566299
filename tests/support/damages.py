"""Damages that the files of a run suffer: cut short, of another shape, or no file any more."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]
MAX_SHAPES = 12
"""Of one JSON file, besides those of the whole; which ones is drawn by the file's name."""


def damages_of(path: Path) -> dict[str, Damage]:
    """Name -> what turns this sound file or folder into a bad one."""
    if path.is_dir():
        return {"a file": _file, "emptied": _emptied, "no folder": shutil.rmtree}
    found: dict[str, Damage] = {
        "cut to half": lambda file: _write(file, file.read_bytes()[: file.stat().st_size // 2]),
        "empty": lambda file: _write(file, b""),
        "garbage": lambda file: _write(file, random.Random(0).randbytes(300)),
        "not UTF-8": lambda file: _write(file, file.read_bytes()[:-3] + b"\xff\xfe}\n"),
        "zeros": lambda file: _write(file, bytes(file.stat().st_size)),
        "missing": Path.unlink,
        "folder": _folder,
        "pipe": _pipe,
    }
    if path.suffix == ".json":
        values = list(_shapes(json.loads(path.read_bytes()), path))
        found |= {f"is {name}": _writer(json.dumps(value)) for name, value in values}
        found["deep"] = _writer("[" * 100_000)
    if path.suffix == ".jsonl":
        lines = path.read_text("utf-8").splitlines()
        middle = len(lines) // 2
        for name, value in _shapes(json.loads(lines[middle]), path):
            changed = [*lines[:middle], json.dumps(value), *lines[middle + 1 :]]
            found[f"line is {name}"] = _writer("\n".join(changed) + "\n")
    return found


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _writer(text: str) -> Damage:
    return lambda path: _write(path, text.encode())


def _file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def _emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def _pipe(path: Path) -> None:
    """Reading from it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def _shapes(value: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """The value with one wrong part; the name says which."""
    yield from (("a list", []), ("an object", {}), ("null", None), ("a text", "x"), ("a number", 3))
    places = list(_places(value))
    for place in random.Random(path.name).sample(places, min(MAX_SHAPES, len(places))):
        name = ".".join(str(part) for part in place)
        yield f"without {name}", _changed(value, place, None, drop=True)
        yield f"with another {name}", _changed(value, place, _wrong)


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        parts = list(enumerate(value))[:1]
    for key, part in parts:
        yield (*before, key)
        yield from _places(part, (*before, key))


def _wrong(value: Any) -> Any:
    """A value of another type."""
    if isinstance(value, str):
        return 7
    if isinstance(value, dict):
        return ["x"]
    if isinstance(value, list):
        return {"x": 1}
    return "x"


def _changed(
    value: Any, place: tuple[Any, ...], change: Callable[[Any], Any] | None, *, drop: bool = False
) -> Any:
    whole = json.loads(json.dumps(value))
    inner = whole
    for key in place[:-1]:
        inner = inner[key]
    if drop:
        del inner[place[-1]]
    elif change is not None:
        inner[place[-1]] = change(inner[place[-1]])
    return whole
