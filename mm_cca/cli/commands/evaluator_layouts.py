"""The folder layouts that other evaluators read. Each writer fills an empty folder.

Sources, read on 2026-11-24: openai/guided-diffusion evaluations/README.md; djghosh13/geneval
README.md; TencentQQGYLab/ELLA dpg_bench/compute_dpg_bench.py; Karine-Huang/T2I-CompBench Readme.md
and BLIPvqa_eval/BLIP_vqa.py; tgxs002/HPSv2 README.md and hpsv2/evaluation.py.
"""

import json
import shlex
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image
from typing_extensions import TypedDict

from mm_cca.config.read_files import json_lines_of, json_of, text_of
from mm_cca.data.images import fitted
from mm_cca.errors import UserError

HPS_STYLES = ("anime", "concept-art", "paintings", "photo")
DPG_IMAGES = 4
ADM_SEED = 0
COPIED_AT_ONCE = 2**20
LONGEST_NAME = 255
"""Bytes in a file name."""
OnImageDone = Callable[[], object]
"""Called after every image."""


class _GenevalLine(TypedDict):
    """What a line must hold; the rest is copied."""

    prompt: str


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt and its images."""

    prompt: str
    files: list[Path]


def write_adm(
    sampled: Sequence[SampledPrompt], folder: Path, size: int | None, on_image_done: OnImageDone
) -> None:
    """``samples.npz`` with ``arr_0``, uint8 [n, H, W, 3], which is never in memory as a whole.

    The images are shuffled, the same way every time: the evaluator's Inception Score is a mean over
    consecutive parts of the file, which images of one prompt side by side would make alike.

    Raises:
        UserError: images of several sizes.
    """
    ordered = [file for prompt in sampled for file in prompt.files]
    files = [ordered[i] for i in np.random.default_rng(ADM_SEED).permutation(len(ordered))]
    first = _opened(files[0], size)
    array = folder / "arr_0.npy"
    stored = open_memmap(array, "w+", np.uint8, (len(files), first.height, first.width, 3))
    for number, file in enumerate(files):
        image = _opened(file, size)
        if image.size != first.size:
            raise UserError(
                f"{file} is {image.size} pixels and {files[0].name} {first.size}; the array needs "
                "one size. Give --size."
            )
        stored[number] = np.asarray(image)
        on_image_done()
    stored.flush()
    del stored
    entry = zipfile.ZipInfo(array.name)  # without a date, so that equal images are equal files
    with (
        array.open("rb") as source,
        zipfile.ZipFile(folder / "samples.npz", "w") as archive,
        archive.open(entry, "w", force_zip64=True) as target,
    ):
        shutil.copyfileobj(source, target, COPIED_AT_ONCE)
    array.unlink()


def write_geneval(
    sampled: Sequence[SampledPrompt],
    folder: Path,
    prompts: Path | None,
    on_image_done: OnImageDone,
) -> None:
    """``00000/metadata.jsonl``, line 0 of evaluation_metadata.jsonl, and ``samples/0000.png`` ...

    Raises:
        UserError: no prompt file, or prompts that were not sampled.
    """
    path = _required(prompts, "geneval", "geneval/prompts/evaluation_metadata.jsonl")
    advice = "--prompts must be geneval's evaluation_metadata.jsonl."
    lines = json_lines_of(path, _GenevalLine, advice)
    for number, match in enumerate(_matched(sampled, [line["prompt"] for line in lines], path)):
        target = folder / f"{number:05d}"
        (target / "samples").mkdir(parents=True)
        (target / "metadata.jsonl").write_text(json.dumps(lines[number]) + "\n")
        for k, file in enumerate(match.files):
            shutil.copyfile(file, target / "samples" / f"{k:04d}.png")
            on_image_done()


def write_dpg(
    sampled: Sequence[SampledPrompt],
    folder: Path,
    prompts: Path | None,
    on_image_done: OnImageDone,
) -> None:
    """``ITEM.png``: up to four square images of a prompt, two in a row.

    Raises:
        UserError: no folder of ITEM.txt files, prompts that were not sampled, more than four images
            of a prompt, images that are not square.
    """
    path = _required(prompts, "dpg", "the folder ELLA/dpg_bench/prompts")
    advice = "--prompts must be the folder dpg_bench/prompts of ITEM.txt files."
    items = {file.stem: text_of(file, advice) for file in sorted(path.glob("*.txt"))}
    if not items:
        raise UserError(f"--prompts {path} must be the folder dpg_bench/prompts of ITEM.txt files.")
    matched = _matched(sampled, list(items.values()), path)
    for item, match in zip(items, matched, strict=True):
        if len(match.files) > DPG_IMAGES:
            raise UserError(
                f"each prompt has {len(match.files)} images; DPG-Bench takes up to {DPG_IMAGES}. "
                f"Sample with sample.images_per_prompt={DPG_IMAGES}."
            )
        images = [_opened(file, None) for file in match.files]
        side = images[0].width
        if any(image.size != (side, side) for image in images):
            raise UserError(
                f"{match.files[0]} is not square; DPG-Bench needs square images. Set "
                "data.image_size to a square."
            )
        columns = min(2, len(images))
        grid = Image.new("RGB", (columns * side, -(-len(images) // 2) * side))
        for k, image in enumerate(images):
            grid.paste(image, (k % 2 * side, k // 2 * side))
            on_image_done()
        grid.save(folder / f"{item}.png")


def write_compbench(
    sampled: Sequence[SampledPrompt], folder: Path, on_image_done: OnImageDone
) -> None:
    """``samples/PROMPT_000000.png``, numbered over all images.

    Raises:
        UserError: a prompt that can't be part of a file name.
    """
    (folder / "samples").mkdir()
    number = 0
    for prompt in sampled:
        for file in prompt.files:
            name = f"{prompt.prompt}_{number:06d}.png"
            if {"/", "\0", "_"} & set(prompt.prompt) or len(name.encode()) > LONGEST_NAME:
                raise UserError(
                    f"T2I-CompBench reads the prompt from the file name, up to the first _; "
                    f"this one can't be part of it: {prompt.prompt!r}."
                )
            shutil.copyfile(file, folder / "samples" / name)
            number += 1
            on_image_done()


def write_hps(
    sampled: Sequence[SampledPrompt],
    folder: Path,
    prompts: Path | None,
    on_image_done: OnImageDone,
) -> None:
    """``STYLE/00000.jpg`` with Pillow's default JPEG settings, as in HPSv2's README.

    Raises:
        UserError: no folder of STYLE.json files, prompts that were not sampled, several images of
            a prompt.
    """
    path = _required(prompts, "hpsv2", "HPDv2/benchmark (anime.json, concept-art.json, ...)")
    advice = f"--prompts must be the folder HPDv2/benchmark with {', '.join(HPS_STYLES)}.json."
    styles = {style: json_of(path / f"{style}.json", list[str], advice) for style in HPS_STYLES}
    if several := [prompt for prompt in sampled if len(prompt.files) != 1]:
        raise UserError(
            f"each prompt has {len(several[0].files)} images; HPSv2 takes one. Sample with "
            "sample.images_per_prompt=1."
        )
    targets = [(s, number) for s, texts in styles.items() for number in range(len(texts))]
    texts = [text for texts in styles.values() for text in texts]
    for (style, number), match in zip(targets, _matched(sampled, texts, path), strict=True):
        (folder / style).mkdir(exist_ok=True)
        _opened(match.files[0], None).save(folder / style / f"{number:05d}.jpg")
        on_image_done()


def next_command(form: str, folder: Path, side: int) -> str:
    """The evaluator's own command for an exported folder, in the evaluator's checkout.

    Args:
        form: of the layout.
        folder: where it is.
        side: of the images in pixels, as they were exported.
    """
    place = folder.resolve()
    commands = {
        "adm-npz": "python guided-diffusion/evaluations/evaluator.py REFERENCE.npz "
        f"{shlex.quote(str(place / 'samples.npz'))}",
        "geneval": f"python geneval/evaluation/evaluate_images.py {shlex.quote(str(place))} "
        "--outfile results.jsonl --model-path DETECTOR",
        "dpg": f"cd ELLA && bash dpg_bench/dist_eval.sh {shlex.quote(str(place))} {side}",
        "t2i-compbench": "cd T2I-CompBench/BLIPvqa_eval && python BLIP_vqa.py "
        f"--out_dir={shlex.quote(str(place))}",
        "hpsv2": f"python -c {shlex.quote(f'import hpsv2; hpsv2.evaluate({str(place)!r})')}",
    }
    return commands[form]


def _required(prompts: Path | None, form: str, example: str) -> Path:
    if prompts is None or not prompts.exists():
        raise UserError(
            f"--format {form} needs --prompts, which is {prompts}; allowed: the evaluator's prompt "
            f"file, such as {example}."
        )
    return prompts


def _matched(
    sampled: Sequence[SampledPrompt], texts: Sequence[str], path: Path
) -> list[SampledPrompt]:
    """The sampled prompt of each text; a repeated text takes the next one with that prompt."""
    unused: dict[str, list[SampledPrompt]] = {}
    for prompt in sampled:
        unused.setdefault(prompt.prompt, []).append(prompt)
    matches, missing = [], []
    for text in texts:
        if candidates := unused.get(text.strip()):
            matches.append(candidates.pop(0))
        else:
            missing.append(text)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(texts)} prompts of {path} were not sampled, the first: "
            f"{missing[0]!r}. The score would be incomplete; sample all with sample.prompts."
        )
    return matches


def _opened(file: Path, size: int | None) -> Image.Image:
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    return rgb if size is None else fitted(rgb, size, size)
