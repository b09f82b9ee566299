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
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, release_memory
from typing_extensions import TypedDict

from mm_cca.cli.commands.quiet import quiet_libraries
from mm_cca.cli.commands.run import run_stages
from mm_cca.config.read_files import is_there, json_of
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import training_settings
from mm_cca.config.sweep_grid import Sweep
from mm_cca.errors import Diverged
from mm_cca.eval.summary_types import SweepVerdict
from mm_cca.runs.files import write_json
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import locked
from mm_cca.runs.threads import use_free_cores


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
    if state.device.type == "cpu" and state.num_processes == 1:
        use_free_cores(sweep.root)
    with locked(sweep.root) if state.is_main_process else nullcontext():
        run_sweep(sweep, run_stages)
        if state.is_main_process:
            failed = diverged(sweep)
            write_sweep(sweep, failed, _verdicts(sweep, failed))
    state.wait_for_everyone()
    state.destroy_process_group()


def _verdicts(sweep: Sweep, failed: Mapping[str, str]) -> list[SweepVerdict]:
    """Of every point that did not diverge, its seeds together."""
    from mm_cca.eval.compare_runs import ScoredRun
    from mm_cca.eval.report.sweep_seeds import name_without_seed
    from mm_cca.eval.sweep_verdicts import sweep_verdicts

    points: dict[str, list[ScoredRun]] = {}
    for name, recipe in sweep.points.items():
        if name not in failed:
            run = ScoredRun.read(RunFolder.of(recipe).eval, name)
            shown = name_without_seed(name, sweep.values[name].values)
            points.setdefault(shown, []).append(run)
    base = ScoredRun.read(RunFolder.of(sweep.base).eval, "base")
    return sweep_verdicts(base, points)


DIVERGED = "diverged.json"


class _Marker(TypedDict):
    reason: str
    settings: dict[str, Any]


def _marker(path: Path) -> _Marker:
    """Raises UserError if it is damaged."""
    return json_of(path, _Marker, f"Delete {path.parent} to train this point again.")


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
    if not is_there(marker_file):
        return False
    settings = json.loads(json.dumps(training_settings(recipe)))
    if _marker(marker_file)["settings"] == settings:
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
    run(recipe, folder, stages)
    if PartialState().is_main_process:
        folder.describe(recipe)


def diverged(sweep: Sweep) -> dict[str, str]:
    """Name and reason of every diverged point."""
    reasons = {}
    for name, recipe in sweep.points.items():
        marker_file = Path(recipe.run.dir) / DIVERGED
        if is_there(marker_file):
            reasons[name] = _marker(marker_file)["reason"]
    return reasons
