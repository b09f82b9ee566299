"""Export the images of one arm in the folder layout of another evaluator."""

import argparse
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from mm_cca.cli.commands.evaluator_layouts import (
    OnImageDone,
    SampledPrompt,
    next_command,
    write_adm,
    write_compbench,
    write_dpg,
    write_geneval,
    write_hps,
)
from mm_cca.errors import UserError
from mm_cca.runs.files import refuse_file_as_folder, replace_folder
from mm_cca.runs.folder import run_folder_of
from mm_cca.runs.stage import recorded
from mm_cca.sampling.manifest import count_problems, manifest_of, picture_file, problem_of

MAX_SIDE = 4096
"""Pixels; an array of larger images fills any disk."""


class ExportedImages(NamedTuple):
    """How many images were written, and the width of each in pixels."""

    num_images: int
    side: int


def export_images(args: argparse.Namespace) -> int:
    """Run ``mm-cca export-samples``."""
    done = export_samples(
        args.run if (args.run / "samples").is_dir() else run_folder_of(args.run),
        args.arm,
        args.folder,
        form=args.form,
        prompts=args.prompts,
        split=args.split,
        size=args.size,
    )
    print(
        f"{done.num_images} images of {args.arm} are in {args.folder}, {done.side} pixels "
        f"wide; score them with\n\n  {next_command(args.form, args.folder, done.side)}\n"
    )
    return 0


def export_samples(
    run_folder: Path,
    arm: str,
    target: Path,
    *,
    form: str,
    prompts: Path | None = None,
    split: str | None = None,
    size: int | None = None,
) -> ExportedImages:
    """Write an arm's images in the layout ``form``; the folder is written atomically.

    Args:
        run_folder: of a run whose arm is sampled.
        arm: such as ``cca`` or ``base+cfg3``.
        target: must not exist, or be empty.
        form: such as ``adm-npz``, see ``_writer``.
        prompts: the evaluator's prompt file or folder; geneval, dpg and hpsv2 need it.
        split: only images of this split; None: all.
        size: side in pixels for adm-npz; None: as sampled.

    Returns:
        How many images were written, and how wide they are.

    Raises:
        UserError: no such arm, missing or changed images, prompts that were not sampled, a target
            in use, a full disk.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; choose another folder or empty it.")
    if size is not None and (form != "adm-npz" or not 1 <= size <= MAX_SIDE):
        raise UserError(
            f"--size is {size}; it must be 1 to {MAX_SIDE}, and goes with --format adm-npz."
        )
    sampled = _sampled_prompts(run_folder / "samples", arm, split)
    count = sum(len(prompt.files) for prompt in sampled)
    with tqdm(total=count, desc=f"writing {form}", unit="img") as bar:
        write = _writer(form, sampled, prompts, size, bar.update)
        replace_folder(target, write)
        count = int(bar.n)
    with Image.open(sampled[0].files[0]) as image:
        return ExportedImages(count, image.width if size is None else size)


def _writer(
    form: str,
    sampled: list[SampledPrompt],
    prompts: Path | None,
    size: int | None,
    on_image_done: OnImageDone,
) -> Callable[[Path], None]:
    """What fills an empty folder in the layout ``form``."""
    writers: dict[str, Callable[[Path], None]] = {
        "adm-npz": lambda folder: write_adm(sampled, folder, size, on_image_done),
        "geneval": lambda folder: write_geneval(sampled, folder, prompts, on_image_done),
        "dpg": lambda folder: write_dpg(sampled, folder, prompts, on_image_done),
        "t2i-compbench": lambda folder: write_compbench(sampled, folder, on_image_done),
        "hpsv2": lambda folder: write_hps(sampled, folder, prompts, on_image_done),
    }
    if form not in writers:
        raise UserError(f"--format is {form!r}; allowed: {', '.join(writers)}.")
    return writers[form]


def _sampled_prompts(samples: Path, arm: str, split: str | None) -> list[SampledPrompt]:
    folder = samples / arm
    refuse_file_as_folder(samples)
    stored = recorded(folder)
    if stored is None:
        arms = sorted(p.name for p in samples.glob("*") if p.is_dir())
        raise UserError(f"{samples} has no arm {arm!r}; it has {', '.join(arms) or 'none'}.")
    if not stored["done"]:
        raise UserError(f"arm {arm} is incomplete: run `mm-cca sample RECIPE` first.")
    all_lines = manifest_of(folder)
    if not all_lines:
        raise UserError(f"{folder} has no images. Delete it and run `mm-cca sample RECIPE` again.")
    splits = list(dict.fromkeys(line["split"] for line in all_lines))
    if split is not None and split not in splits:
        raise UserError(f"--split is {split!r}; arm {arm} has {', '.join(splits)}.")
    lines = [line for line in all_lines if split in (None, line["split"])]
    bad = [problem for line in lines if (problem := problem_of(folder, line)) is not None]
    if bad:
        raise UserError(
            f"{folder}: {count_problems(bad, len(lines))}. Delete the folder and run "
            "`mm-cca sample RECIPE` again."
        )
    # Images of one prompt are adjacent.
    groups = groupby(lines, key=lambda line: (line["split"], line["row"], line["prompt"]))
    return [
        SampledPrompt(prompt, [picture_file(folder, line["index"]) for line in group])
        for (_, _, prompt), group in groups
    ]
