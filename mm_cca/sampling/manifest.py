"""The manifest of an arm's images: reads it, merges it, and checks the files against it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mm_cca.errors import UserError
from mm_cca.runs.files import write_text

MANIFEST = "manifest.jsonl"


def manifest_of(folder: Path) -> list[dict[str, Any]]:
    """Every line of an arm's manifest in order of index, whether or not its image exists.

    Raises:
        UserError: no manifest, or a truncated one.
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
    """The PNG file of an image in an arm's folder."""
    return folder / f"{index:06d}.png"


def problem_of(folder: Path, line: dict[str, Any]) -> str | None:
    """Why the image of a line of the manifest can't be used (missing or changed), or None."""
    file = picture_file(folder, line["index"])
    if not file.exists():
        return f"{file.name} is missing"
    if hashlib.sha256(file.read_bytes()).hexdigest() != line["sha256"]:
        return f"{file.name} was changed after sampling (its sha256 differs from the manifest)"
    return None


def count_problems(problems: list[str], num_pictures: int, max_listed: int = 5) -> str:
    """How many images can't be used, and the first few problems."""
    more = "" if len(problems) <= max_listed else f" and {len(problems) - max_listed} more"
    return (
        f"{len(problems)} of {num_pictures} images can't be used: "
        f"{'; '.join(problems[:max_listed])}{more}"
    )


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """All lines whose image exists, in order of index, before or after merging.

    A truncated last line, as an interruption leaves it, is skipped.
    """
    lines: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"{MANIFEST}*")):
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if picture_file(folder, line["index"]).exists():
                lines[line["index"]] = line
    return [lines[index] for index in sorted(lines)]


def merge_manifest(folder: Path) -> None:
    """Merge the manifests of all ranks into one, in order of index."""
    lines = read_manifest(folder)
    write_text(folder / MANIFEST, "".join(json.dumps(line) + "\n" for line in lines))
    for part in folder.glob(f"{MANIFEST}.*"):
        part.unlink()
