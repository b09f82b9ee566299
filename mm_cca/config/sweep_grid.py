"""The recipes of a sweep. A list for a key that takes one value is swept."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mm_cca.config.declarations import declared
from mm_cca.config.keys import REFERENCE
from mm_cca.config.load import load_config, split_override
from mm_cca.config.metrics import NEEDED_BY_SWEEP
from mm_cca.config.schema import Recipe, RunConfig, Source
from mm_cca.config.stage_keys import keys_of
from mm_cca.errors import UserError

SWEPT = ("loss.", "train.")
"""Groups whose keys may be swept: all points share images, base and sampling."""


@dataclass(frozen=True)
class SweepPoint:
    """One combination of values.

    Attributes:
        name: of its folder and of its arm, such as ``beta=0.01,lambda_=10``.
        values: key -> value.
        overrides: the same as ``key=value``.
    """

    name: str
    values: dict[str, Any]
    overrides: list[str]


def points_of(path_or_name: str, overrides: Sequence[str]) -> tuple[list[str], list[SweepPoint]]:
    """Common overrides, and the points in the order of the lists.

    Raises:
        UserError: nothing is swept, a key that can't be swept, an empty list, or two points with
            the same name.
    """
    keys = declared(Recipe)
    common: list[str] = []
    axes: dict[str, list[Any]] = {}
    for override in overrides:
        key, value = split_override(override)
        if isinstance(value, list) and not (key in keys and keys[key].is_list):
            axes[key] = value
        else:
            common.append(override)
    _refuse(path_or_name, axes)
    points = [
        _point(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())
    ]
    names = [point.name for point in points]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"the sweep has the point {repeated[0]} twice; give each value once.")
    return common, points


def _refuse(path_or_name: str, axes: dict[str, list[Any]]) -> None:
    if not axes:
        raise UserError(
            "nothing is swept: give at least one key a list of values, such as "
            f"mm-cca sweep {path_or_name} 'loss.lambda_=[1,10,100]'."
        )
    for key, values in axes.items():
        if not key.startswith(SWEPT):
            raise UserError(
                f"{key} can't be swept: all points share images, base and sampling; allowed: keys "
                "of loss and train."
            )
        if not values:
            raise UserError(f"{key} is an empty list; give it at least one value.")


def _point(values: dict[str, Any]) -> SweepPoint:
    name = ",".join(f"{key.split('.')[-1]}={_shown(value)}" for key, value in values.items())
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return SweepPoint(re.sub(r"[^\w.,=+-]+", "_", name), values, overrides)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def recipe_of(path_or_name: str, overrides: Sequence[str]) -> Recipe:
    """The finetune recipe with these overrides. Raises UserError, also for other jobs."""
    recipe = load_config(path_or_name, overrides)
    if not isinstance(recipe, Recipe):
        raise UserError(f"a {recipe.job} recipe can't be swept; use a finetune recipe.")
    return recipe


@dataclass(frozen=True)
class Sweep:
    """The recipes of a sweep; each is a separate run inside the sweep's folder.

    Attributes:
        root: the sweep's folder.
        base: samples the base, and trains and samples the control, with the recipe's own values.
        points: name -> recipe of the trained model.
        values: name -> the swept values.
    """

    root: Path
    base: Recipe
    points: dict[str, Recipe]
    values: dict[str, SweepPoint]


def plan_sweep(path_or_name: str, overrides: Sequence[str]) -> Sweep:
    """Read and check every recipe of the sweep before any work.

    Raises:
        UserError: what ``points_of`` raises, or a point with invalid values.
    """
    common, points = points_of(path_or_name, overrides)
    recipe = recipe_of(path_or_name, common)  # swept keys keep the recipe's own values
    if recipe.run.trained is not None:
        raise UserError(
            f"run.trained is {recipe.run.trained!r}; a sweep trains its own models. Leave it out."
        )
    _refuse_scores_without_a_plot(recipe)
    root = Path(recipe.run.dir)
    shared = keys_of(REFERENCE).isdisjoint(points[0].values)
    recipes = {}
    for point in points:
        swept = recipe_of(path_or_name, [*common, *point.overrides])
        folder = root / "points" / point.name
        run = _run_in(swept.run, root, folder, ["cca"], shared=shared)
        recipes[point.name] = replace(swept, run=run, train=replace(swept.train, control=False))
    base = _run_in(recipe.run, root, root / "base", ["base", "control"], shared=True)
    return Sweep(root, replace(recipe, run=base), recipes, {p.name: p for p in points})


def _refuse_scores_without_a_plot(recipe: Recipe) -> None:
    missing = [name for name in NEEDED_BY_SWEEP if name not in recipe.eval.metrics]
    if missing:
        raise UserError(
            f"sweep.html shows {', '.join(NEEDED_BY_SWEEP)}, but eval.metrics lacks "
            f"{', '.join(missing)}. Add them, or run the points one by one."
        )


def _run_in(
    run: RunConfig, root: Path, folder: Path, sources: list[Source], *, shared: bool
) -> RunConfig:
    reference = root / "reference" if run.reference_dir is None else Path(run.reference_dir)
    if not shared:
        reference = folder / "reference" if run.reference_dir is None else reference / folder.name
    return replace(
        run,
        dir=str(folder),
        tokens_dir=run.tokens_dir or str(root / "tokens"),
        reference_dir=str(reference),
        sources=sources,
    )
