"""``sweep``: train, sample and score a grid of values, next to the base's guidance sweep.

RUN/tokens reference       shared by all points
    base/                  arms of the base (and of the control), sampled and scored once
    points/NAME/           train, samples, eval of each point
    sweep.json sweep.html  the results of all points
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
    """Run ``mm-cca sweep``."""
    sweep_job(args.recipe, args.overrides)
    return 0


def sweep_job(path_or_name: str, overrides: Sequence[str]) -> None:
    """Train, sample and score every point of a sweep, and write ``sweep.json`` and ``sweep.html``.

    Raises:
        UserError: nothing to sweep, invalid values, or what a stage raises.
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


def run_sweep(sweep: Sweep, run: Callable[[Recipe, RunFolder, Sequence[str]], None]) -> None:
    """Run every stage of the base and of every point; finished stages are skipped.

    Args:
        sweep: from ``plan_sweep``.
        run: runs stages of a recipe in a folder that the caller has locked.

    Raises:
        UserError: what a stage raises; a diverged point is only marked, and skipped from then on.
    """
    main = PartialState().is_main_process
    stages = ["prepare", "sample", "eval"]
    if sweep.base.train.control:
        stages.insert(1, "train")
    _run_stages(sweep.base, stages, run)
    for number, (name, recipe) in enumerate(sweep.points.items(), 1):
        marker_file = Path(recipe.run.dir) / DIVERGED
        if main:
            print(f"point {number} of {len(sweep.points)}: {name}", file=sys.stderr)
        if _has_diverged(marker_file, recipe):
            if main:
                print(
                    f"  skipped, as it diverged; delete {marker_file.parent} to try again",
                    file=sys.stderr,
                )
            continue
        try:
            _run_stages(recipe, ["prepare", "train", "sample", "eval"], run)
        except Diverged as error:
            if main:
                content = {"reason": str(error), "settings": training_settings(recipe)}
                write_json(marker_file, content)
                print(f"  diverged; the sweep continues: {error}", file=sys.stderr)
        release_memory()


def _has_diverged(marker_file: Path, recipe: Recipe) -> bool:
    """Whether a point diverged with these training settings; with other ones it is deleted."""
    if not marker_file.exists():
        return False
    settings = json.loads(json.dumps(training_settings(recipe)))
    if json.loads(marker_file.read_text())["settings"] == settings:
        return True
    PartialState().wait_for_everyone()  # all ranks have read the file
    if PartialState().is_main_process:
        shutil.rmtree(marker_file.parent)
    PartialState().wait_for_everyone()
    return False


def _run_stages(
    recipe: Recipe, stages: list[str], run: Callable[[Recipe, RunFolder, Sequence[str]], None]
) -> None:
    folder = RunFolder.of(recipe)
    if PartialState().is_main_process:
        folder.describe(recipe)
    run(recipe, folder, stages)


def diverged(sweep: Sweep) -> dict[str, str]:
    """Name and reason of every diverged point."""
    reasons = {}
    for name, recipe in sweep.points.items():
        marker_file = Path(recipe.run.dir) / DIVERGED
        if marker_file.exists():
            reasons[name] = str(json.loads(marker_file.read_text())["reason"])
    return reasons
