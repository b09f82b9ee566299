"""What an arm drew, as its manifest lists it, and whether the files are still that."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mm_cca.errors import UserError
from mm_cca.runs.files import write_text

MANIFEST = "manifest.jsonl"


def manifest_of(folder: Path) -> list[dict[str, Any]]:
    """Every line of an arm's manifest in order of index, whether or not its picture exists.

    Raises:
        UserError: no manifest, or a torn one.
    """
    path = folder / MANIFEST
    try:
        lines = [json.loads(text) for text in path.read_text().splitlines() if text]
        return sorted(lines, key=lambda line: int(line["index"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} can't be read: {error}\nDelete {folder} and run `mm-cca sample RECIPE` again."
        ) from error


def picture_file(folder: Path, index: int) -> Path:
    """Where an arm keeps a picture."""
    return folder / f"{index:06d}.png"


def problem_of(folder: Path, line: dict[str, Any]) -> str | None:
    """What is wrong with the picture of a line of the manifest: not there, or other bytes."""
    file = picture_file(folder, line["index"])
    if not file.exists():
        return f"{file.name} is missing"
    if hashlib.sha256(file.read_bytes()).hexdigest() != line["sha256"]:
        return f"{file.name} is not what was drawn (its sha256 is not the manifest's)"
    return None


def count_problems(problems: list[str], num_pictures: int, named: int = 5) -> str:
    """How many pictures can't be used, and the first few by name."""
    more = "" if len(problems) <= named else f" and {len(problems) - named} more"
    return (
        f"{len(problems)} of {num_pictures} pictures can't be used: "
        f"{'; '.join(problems[:named])}{more}"
    )


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """All complete lines whose picture exists, in order of index; a torn last line is left out."""
    lines: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"{MANIFEST}*")):
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if (folder / f"{line['index']:06d}.png").exists():
                lines[line["index"]] = line
    return [lines[index] for index in sorted(lines)]


def merge_manifest(folder: Path) -> None:
    lines = read_manifest(folder)
    write_text(folder / MANIFEST, "".join(json.dumps(line) + "\n" for line in lines))
    for part in folder.glob(f"{MANIFEST}.*"):
        part.unlink()
