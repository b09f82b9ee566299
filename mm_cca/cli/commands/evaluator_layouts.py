"""The folders that other evaluators read. Each writer fills an empty folder.

Sources, read on 2026-11-24: openai/guided-diffusion evaluations/README.md; djghosh13/geneval
README.md; TencentQQGYLab/ELLA dpg_bench/compute_dpg_bench.py; Karine-Huang/T2I-CompBench Readme.md
and BLIPvqa_eval/BLIP_vqa.py;
tgxs002/HPSv2 README.md and hpsv2/evaluation.py.
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image

from mm_cca.data.images import fitted
from mm_cca.data.prompt_files import rows_of
from mm_cca.errors import UserError

HPS_STYLES = ("anime", "concept-art", "paintings", "photo")
DPG_PICTURES = 4
LONGEST_NAME = 255
"""Bytes in the name of a file."""
Tick = Callable[[], object]
"""Called after every picture."""


@dataclass(frozen=True)
class DrawnPicture:
    """A prompt and the pictures that were drawn for it."""

    prompt: str
    files: list[Path]


def write_adm(drawn: Sequence[DrawnPicture], folder: Path, size: int | None, tick: Tick) -> None:
    """``samples.npz`` with ``arr_0``, uint8 [n, H, W, 3], never whole in memory.

    Raises:
        UserError: pictures of several sizes.
    """
    files = [file for each in drawn for file in each.files]
    first = _opened(files[0], size)
    array = folder / "arr_0.npy"
    stored = open_memmap(array, "w+", np.uint8, (len(files), first.height, first.width, 3))
    for number, file in enumerate(files):
        image = _opened(file, size)
        if image.size != first.size:
            raise UserError(
                f"{file} is {image.size} pixels and {files[0].name} {first.size}; the array takes "
                "one size. Give --size."
            )
        stored[number] = np.asarray(image)
        tick()
    stored.flush()
    del stored
    with zipfile.ZipFile(folder / "samples.npz", "w", zipfile.ZIP_STORED) as archive:
        archive.write(array, array.name)
    array.unlink()


def write_geneval(
    drawn: Sequence[DrawnPicture], folder: Path, prompts: Path | None, tick: Tick
) -> None:
    """``00000/metadata.jsonl``, line 0 of evaluation_metadata.jsonl, and ``samples/0000.png`` ...

    Raises:
        UserError: no file of prompts, or one that these pictures were not drawn for.
    """
    path = _needed(prompts, "geneval", "geneval/prompts/evaluation_metadata.jsonl")
    lines = _rows(path)
    for number, found in enumerate(_matched(drawn, [line["prompt"] for line in lines], path)):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(json.dumps(lines[number]) + "\n")
        for k, file in enumerate(found.files):
            shutil.copyfile(file, place / "samples" / f"{k:04d}.png")
            tick()


def write_dpg(
    drawn: Sequence[DrawnPicture], folder: Path, prompts: Path | None, tick: Tick
) -> None:
    """``ITEM.png``: up to four square pictures of a prompt, two in a row.

    Raises:
        UserError: no folder of ITEM.txt files, other prompts, more than four pictures, pictures
            that are not square.
    """
    path = _needed(prompts, "dpg", "the folder ELLA/dpg_bench/prompts")
    items = {file.stem: file.read_text("utf-8") for file in sorted(path.glob("*.txt"))}
    if not items:
        raise UserError(f"--prompts {path} must be the folder dpg_bench/prompts of ITEM.txt files.")
    matched = _matched(drawn, list(items.values()), path)
    for item, found in zip(items, matched, strict=True):
        if len(found.files) > DPG_PICTURES:
            raise UserError(
                f"{len(found.files)} pictures were drawn for each prompt; DPG-Bench takes up to "
                f"{DPG_PICTURES}. Draw with sample.images_per_prompt={DPG_PICTURES}."
            )
        images = [_opened(file, None) for file in found.files]
        side = images[0].width
        if any(image.size != (side, side) for image in images):
            raise UserError(f"{found.files[0]} is not square, and DPG-Bench crops squares.")
        columns = min(2, len(images))
        grid = Image.new("RGB", (columns * side, -(-len(images) // 2) * side))
        for k, image in enumerate(images):
            grid.paste(image, (k % 2 * side, k // 2 * side))
            tick()
        grid.save(folder / f"{item}.png")


def write_compbench(drawn: Sequence[DrawnPicture], folder: Path, tick: Tick) -> None:
    """``samples/PROMPT_000000.png``; the number runs on over all pictures.

    Raises:
        UserError: a prompt that can't be part of a file's name.
    """
    (folder / "samples").mkdir()
    number = 0
    for each in drawn:
        for file in each.files:
            name = f"{each.prompt}_{number:06d}.png"
            if {"/", "\0", "_"} & set(each.prompt) or len(name.encode()) > LONGEST_NAME:
                raise UserError(
                    f"T2I-CompBench reads the prompt from the file's name, up to the first _; "
                    f"this one can't be part of it: {each.prompt!r}."
                )
            shutil.copyfile(file, folder / "samples" / name)
            number += 1
            tick()


def write_hps(
    drawn: Sequence[DrawnPicture], folder: Path, prompts: Path | None, tick: Tick
) -> None:
    """``STYLE/00000.jpg`` with Pillow's own JPEG settings, as HPSv2's README saves them.

    Raises:
        UserError: no folder of STYLE.json files, other prompts, several pictures of a prompt.
    """
    path = _needed(prompts, "hpsv2", "HPDv2/benchmark (anime.json, concept-art.json, ...)")
    styles: dict[str, list[str]] = {}
    for style in HPS_STYLES:
        try:
            styles[style] = json.loads((path / f"{style}.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--prompts {path}: {style}.json can't be read: {error}") from error
    if several := [each for each in drawn if len(each.files) != 1]:
        raise UserError(
            f"{len(several[0].files)} pictures were drawn for each prompt; HPSv2 takes one. Draw "
            "with sample.images_per_prompt=1."
        )
    places = [(s, number) for s, texts in styles.items() for number in range(len(texts))]
    texts = [text for texts in styles.values() for text in texts]
    for (style, number), found in zip(places, _matched(drawn, texts, path), strict=True):
        (folder / style).mkdir(exist_ok=True)
        _opened(found.files[0], None).save(folder / style / f"{number:05d}.jpg")
        tick()


def _needed(prompts: Path | None, form: str, example: str) -> Path:
    if prompts is None or not prompts.exists():
        raise UserError(
            f"--format {form} needs --prompts, here {prompts}: the evaluator's own file, such as "
            f"{example}, by which pictures are put where it looks for them."
        )
    return prompts


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        return rows_of(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {path} can't be read: {error}") from error


def _matched(drawn: Sequence[DrawnPicture], texts: Sequence[str], path: Path) -> list[DrawnPicture]:
    """What was drawn for each text; a text that comes twice takes the next of its prompts."""
    waiting: dict[str, list[DrawnPicture]] = {}
    for each in drawn:
        waiting.setdefault(each.prompt, []).append(each)
    found, missing = [], []
    for text in texts:
        if left := waiting.get(text.strip()):
            found.append(left.pop(0))
        else:
            missing.append(text)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(texts)} prompts of {path} were not drawn, the first: "
            f"{missing[0]!r}. Its score would be of a part; draw them all with sample.prompts."
        )
    return found


def _opened(file: Path, size: int | None) -> Image.Image:
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    return rgb if size is None else fitted(rgb, size, size)
