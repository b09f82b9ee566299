"""The pictures of one arm in the folder that another evaluator reads."""

import argparse
import json
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from mm_cca.cli.commands.evaluator_layouts import (
    DrawnPicture,
    write_adm,
    write_compbench,
    write_dpg,
    write_geneval,
    write_hps,
)
from mm_cca.errors import UserError
from mm_cca.runs.files import replace_folder
from mm_cca.sampling.manifest import count_problems, manifest_of, picture_file, problem_of


def export_pictures(args: argparse.Namespace) -> int:
    """Run ``mm-cca export-samples``."""

    count = export_samples(
        args.run,
        args.arm,
        args.folder,
        form=args.form,
        prompts=args.prompts,
        split=args.split,
        size=args.size,
    )
    print(f"{count} pictures of {args.arm} are in {args.folder}")
    return 0


FORMATS = ("adm-npz", "geneval", "dpg", "t2i-compbench", "hpsv2")


def export_samples(
    run_folder: Path,
    arm: str,
    target: Path,
    *,
    form: str,
    prompts: Path | None = None,
    split: str | None = None,
    size: int | None = None,
) -> int:
    """Write an arm's pictures in the layout of ``form``; the folder appears whole or not at all.

    Args:
        run_folder: of a run whose arm is drawn.
        arm: such as ``cca`` or ``base+cfg3``.
        target: must not exist, or be empty.
        form: one of ``FORMATS``.
        prompts: the evaluator's own file of prompts; geneval, dpg and hpsv2 need it.
        split: only pictures of this split; None is all.
        size: side in pixels for adm-npz; None is as drawn.

    Returns:
        How many pictures were written.

    Raises:
        UserError: no such arm, pictures missing or changed, prompts that don't fit, a target in
            use, a full disk.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; choose another folder or empty it.")
    if size is not None and (form != "adm-npz" or size < 1):
        raise UserError(f"--size is {size}; it must be 1 or more, and goes with --format adm-npz.")
    drawn = _drawn(run_folder / "samples", arm, split)
    count = sum(len(each.files) for each in drawn)
    with tqdm(total=count, desc=f"writing {form}", unit="img") as bar:

        def write(folder: Path) -> None:
            if form == "adm-npz":
                write_adm(drawn, folder, size, bar.update)
            elif form == "geneval":
                write_geneval(drawn, folder, prompts, bar.update)
            elif form == "dpg":
                write_dpg(drawn, folder, prompts, bar.update)
            elif form == "t2i-compbench":
                write_compbench(drawn, folder, bar.update)
            elif form == "hpsv2":
                write_hps(drawn, folder, prompts, bar.update)
            else:
                raise UserError(f"--format is {form!r}; allowed: {', '.join(FORMATS)}.")

        replace_folder(target, write)
        return int(bar.n)


def _drawn(samples: Path, arm: str, split: str | None) -> list[DrawnPicture]:
    folder = samples / arm
    if not (folder / "stage.json").exists():
        there = sorted(p.name for p in samples.glob("*") if p.is_dir())
        raise UserError(f"{samples} has no arm {arm!r}; it has {', '.join(there) or 'none'}.")
    if not json.loads((folder / "stage.json").read_text())["done"]:
        raise UserError(f"arm {arm} is not drawn to the end: run `mm-cca sample RECIPE` first.")
    everything = manifest_of(folder)
    splits = list(dict.fromkeys(line["split"] for line in everything))
    if split is not None and split not in splits:
        raise UserError(f"--split is {split!r}; arm {arm} has {', '.join(splits)}.")
    lines = [line for line in everything if split in (None, line["split"])]
    bad = [problem for line in lines if (problem := problem_of(folder, line)) is not None]
    if bad:
        raise UserError(
            f"{folder}: {count_problems(bad, len(lines))}. Delete the folder and run "
            "`mm-cca sample RECIPE` again."
        )
    # Pictures of one prompt come one after the other.
    groups = groupby(lines, key=lambda line: (line["split"], line["row"], line["prompt"]))
    return [
        DrawnPicture(prompt, [picture_file(folder, line["index"]) for line in group])
        for (_, _, prompt), group in groups
    ]
