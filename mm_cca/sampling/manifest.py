"""The manifest of an arm's images: reads it, merges it, and checks the files against it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import torch
from typing_extensions import TypedDict

from mm_cca.config.read_files import fault_of, json_lines_of
from mm_cca.runs.files import write_text
from mm_cca.runs.places import file_digest
from mm_cca.sampling.prompts import Prompt

MANIFEST = "manifest.jsonl"


class Line(TypedDict):
    """What a line must hold; it also has the seed and the settings, for people."""

    index: int
    split: str
    row: int
    prompt: str
    sha256: str
    forward_passes: int
    seconds: float
    sampling: NotRequired[dict[str, Any]]
    engine: NotRequired["EngineLine"]


class EngineLine(TypedDict):
    """``EngineFacts`` as they are written."""

    kind: str
    version: str
    dtype: str | None


@dataclass(frozen=True)
class EngineFacts:
    """What drew an arm: ``vllm`` or ``sglang``, its version, and its dtype if it tells."""

    kind: str
    version: str
    dtype: str | None

    def __str__(self) -> str:
        return f"{self.kind} {self.version}" + (f", {self.dtype}" if self.dtype else "")


@dataclass(frozen=True)
class Drawn:
    """Images of some prompts, before they are written.

    Attributes:
        prompts: B of them.
        pixels: [B, 3, H, W] uint8 on the CPU.
        forward_passes: of each image.
        seconds: for each image.
        engine: that drew them; None: our own sampler.
    """

    prompts: list[Prompt]
    pixels: torch.Tensor
    forward_passes: int
    seconds: float
    engine: EngineFacts | None = None


def manifest_of(folder: Path) -> list[dict[str, Any]]:
    """Every line of an arm's manifest in order of index, whether or not its image exists.

    Raises:
        UserError: no manifest, or a truncated one.
    """
    return sorted(_lines_of(folder / MANIFEST), key=lambda line: int(line["index"]))


def _lines_of(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    advice = f"Delete {path.parent} and run `mm-cca sample RECIPE` again."
    return [{**line} for line in json_lines_of(path, Line, advice, torn=torn)]


def picture_file(folder: Path, index: int) -> Path:
    """The PNG file of an image in an arm's folder."""
    return folder / f"{index:06d}.png"


def problem_of(folder: Path, line: dict[str, Any]) -> str | None:
    """Why the image of a line of the manifest can't be used (missing or changed), or None."""
    file = picture_file(folder, line["index"])
    try:
        digest = file_digest(file)
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} can't be read ({fault_of(error)})"
    if digest != line["sha256"]:
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

    Raises:
        UserError: a manifest is damaged in another way.
    """
    lines: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"{MANIFEST}*")):
        for line in _lines_of(path, torn=True):
            if picture_file(folder, line["index"]).exists():
                lines[line["index"]] = line
    return [lines[index] for index in sorted(lines)]


def merge_manifest(folder: Path) -> None:
    """Merge the manifests of all ranks into one, in order of index."""
    lines = read_manifest(folder)
    write_text(folder / MANIFEST, "".join(json.dumps(line) + "\n" for line in lines))
    for part in folder.glob(f"{MANIFEST}.*"):
        part.unlink()
