"""A hostile checkpoint folder: what is done to a good one; and reading and writing its files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Hostile:
    """What is done to a good folder.

    Attributes:
        name: of the case, group first.
        damage: changes the folder.
        told: whether it must be refused.
    """

    name: str
    damage: Damage
    told: bool = True


def put_text(name: str, text: str) -> Damage:
    return put_bytes(name, text.encode("utf-8", "surrogatepass"))


def put_bytes(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def write(file: Path, held: object) -> None:
    file.write_text(json.dumps(held))
