"""Train, draw and score every point of a grid of values, beside one base and its guided sweep.

RUN/tokens reference       shared by all points
    base/                  arms of the base (and of the control), drawn and scored once
    points/NAME/           train, samples, eval of each point
    sweep.json sweep.html  all of them together
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import release_memory

from mm_cca.axes import Point, points_of, recipe_of
from mm_cca.cached_reference import DEPENDS_ON
from mm_cca.config import dump
from mm_cca.errors import Diverged, UserError
from mm_cca.runs.files import write_json
from mm_cca.runs.folder import RunFolder
from mm_cca.schema import Recipe, RunConfig
from mm_cca.scores import NEEDED_BY_SWEEP

DIVERGED = "diverged.json"


@dataclass(frozen=True)
class Sweep:
    """The recipes of a sweep; each is a run of its own inside the folder of the sweep.

    Attributes:
        root: its folder.
        base: draws the base, and trains and draws the control, with the recipe's own values.
        points: name -> recipe of the trained model.
        values: name -> what was swept.
    """

    root: Path
    base: Recipe
    points: dict[str, Recipe]
    values: dict[str, Point]


def plan_sweep(path_or_name: str, overrides: Sequence[str]) -> Sweep:
    """Read and check every recipe of the sweep before any work.

    Raises:
        UserError: what ``points_of`` raises, or a point whose values are wrong.
    """
    common, points = points_of(path_or_name, overrides)
    recipe = recipe_of(path_or_name, common)  # with the recipe's own values for what is swept
    if recipe.run.trained is not None:
        raise UserError(
            f"run.trained is {recipe.run.trained!r}; a sweep trains its own models. Leave it out."
        )
    _refuse_scores_without_a_plot(recipe)
    root = Path(recipe.run.dir)
    shared = not any(key in DEPENDS_ON for key in points[0].values)
    recipes = {}
    for point in points:
        one = recipe_of(path_or_name, [*common, *point.overrides])
        folder = root / "points" / point.name
        run = _inside(one.run, root, folder, ["cca"], shared=shared)
        recipes[point.name] = replace(one, run=run, train=replace(one.train, control=False))
    base = _inside(recipe.run, root, root / "base", ["base", "control"], shared=True)
    return Sweep(root, replace(recipe, run=base), recipes, {p.name: p for p in points})


def _refuse_scores_without_a_plot(recipe: Recipe) -> None:
    lacking = [name for name in NEEDED_BY_SWEEP if name not in recipe.eval.metrics]
    if lacking:
        raise UserError(
            f"sweep.html shows {', '.join(NEEDED_BY_SWEEP)}, and eval.metrics lacks "
            f"{', '.join(lacking)}. Add them, or run the points one by one."
        )


def _inside(
    run: RunConfig, root: Path, folder: Path, sources: list[str], *, shared: bool
) -> RunConfig:
    own = root / "reference" if run.reference_dir is None else Path(run.reference_dir)
    if not shared:
        own = folder / "reference" if run.reference_dir is None else own / folder.name
    return replace(
        run,
        dir=str(folder),
        tokens_dir=run.tokens_dir or str(root / "tokens"),
        reference_dir=str(own),
        sources=sources,
    )


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
                write_json(marked, {"reason": str(error), "recipe": dump(recipe)})
                print(f"  it diverged, the sweep goes on: {error}", file=sys.stderr)
        release_memory()


def _still_diverged(marked: Path, recipe: Recipe) -> bool:
    """A point that diverged with another recipe is cleared away and tried again."""
    if not marked.exists():
        return False
    if json.loads(marked.read_text())["recipe"] == dump(recipe):
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
