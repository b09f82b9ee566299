"""Train, draw and score every point of a grid of values, beside one base and its guided sweep.

RUN/tokens reference       shared by all points
    base/                  arms of the base (and of the control), drawn and scored once
    points/NAME/           train, samples, eval of each point
    sweep.json sweep.html  all of them together
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, release_memory

from mm_cca.cli.commands.quiet import quiet_libraries
from mm_cca.cli.commands.run import run_stages
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import training_settings
from mm_cca.config.sweep_grid import Sweep
from mm_cca.errors import Diverged
from mm_cca.runs.files import write_json
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import locked


def sweep(args: argparse.Namespace) -> int:

    sweep_job(args.recipe, args.overrides)
    return 0


def sweep_job(path_or_name: str, overrides: Sequence[str]) -> None:
    """Train, draw and score every point of a sweep, and write ``sweep.json`` and ``sweep.html``.

    Raises:
        UserError: nothing to sweep, wrong values, or what a stage raises.
    """
    from mm_cca.config.sweep_grid import plan_sweep
    from mm_cca.eval.report.sweep_report import write_sweep

    sweep = plan_sweep(path_or_name, overrides)
    quiet_libraries()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    with locked(sweep.root) if state.is_main_process else nullcontext():
        run_sweep(sweep, run_stages)
        if state.is_main_process:
            write_sweep(sweep, diverged(sweep))
    state.wait_for_everyone()
    state.destroy_process_group()


DIVERGED = "diverged.json"


def run_sweep(sweep: Sweep, do: Callable[[Recipe, RunFolder, Sequence[str]], None]) -> None:
    """Every stage of the base and of every point; what is done is skipped.

    Args:
        sweep: from ``plan_sweep``.
        do: runs stages of a recipe in a folder that the caller holds.

    Raises:
        UserError: anything but a point that diverges, which is marked and passed over.
    """
    main = PartialState().is_main_process
    stages = ["prepare", "sample", "eval"]
    if sweep.base.train.control:
        stages.insert(1, "train")
    _do(sweep.base, stages, do)
    for number, (name, recipe) in enumerate(sweep.points.items(), 1):
        marked = Path(recipe.run.dir) / DIVERGED
        if main:
            print(f"point {number} of {len(sweep.points)}: {name}", file=sys.stderr)
        if _still_diverged(marked, recipe):
            if main:
                print(f"  it diverged; delete {marked.parent} to try again", file=sys.stderr)
            continue
        try:
            _do(recipe, ["prepare", "train", "sample", "eval"], do)
        except Diverged as error:
            if main:
                write_json(marked, {"reason": str(error), "settings": training_settings(recipe)})
                print(f"  it diverged, the sweep goes on: {error}", file=sys.stderr)
        release_memory()


def _still_diverged(marked: Path, recipe: Recipe) -> bool:
    """A point that diverged with other settings of the training is deleted and tried again."""
    if not marked.exists():
        return False
    wanted = json.loads(json.dumps(training_settings(recipe)))
    if json.loads(marked.read_text())["settings"] == wanted:
        return True
    PartialState().wait_for_everyone()  # all ranks have read the mark
    if PartialState().is_main_process:
        shutil.rmtree(marked.parent)
    PartialState().wait_for_everyone()
    return False


def _do(
    recipe: Recipe, stages: list[str], do: Callable[[Recipe, RunFolder, Sequence[str]], None]
) -> None:
    run = RunFolder.of(recipe)
    if PartialState().is_main_process:
        run.describe(recipe)
    do(recipe, run, stages)


def diverged(sweep: Sweep) -> dict[str, str]:
    """Name and reason of every point that was marked."""
    found = {}
    for name, recipe in sweep.points.items():
        marked = Path(recipe.run.dir) / DIVERGED
        if marked.exists():
            found[name] = str(json.loads(marked.read_text())["reason"])
    return found
