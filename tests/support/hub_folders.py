"""Copies of tiny folders, and changes to their JSON files."""

import json
import shutil
from pathlib import Path
from typing import Any


def copy_of(folders: Path, name: str, target: Path) -> Path:
    """``folders/name`` copied to ``target/name``."""
    return Path(shutil.copytree(folders / name, target / name))


def read_json(file: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value


def change_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(read_json(file) | values), encoding="utf-8")
