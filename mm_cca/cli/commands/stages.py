"""``run``, the single stages, and ``eval --compare``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mm_cca.config.schema import AnyRecipe
from mm_cca.errors import UserError


def compare_results(args: argparse.Namespace) -> int:
    """Run ``mm-cca eval --compare``."""
    from mm_cca.eval.compare import compare

    if args.recipe is not None:
        raise UserError(f"--compare takes two results and no recipe; remove {args.recipe}.")
    compare(*args.compare, allowed=args.allow)
    return 0


MADE_BY_A_RUN = ("environment.json", "*/stage.json", "*/*/stage.json")


def where_it_lies(recipe: AnyRecipe, path: str, overrides: Sequence[str]) -> AnyRecipe:
    """A run folder's own recipe runs in that folder, also after it was moved or copied.

    Args:
        recipe: as loaded.
        path: where it was loaded from.
        overrides: those of the command; one of ``run.dir`` is followed.
    """
    folder = Path(path).parent
    is_run = Path(path).name == "recipe.yaml" and any(
        next(folder.glob(pattern), None) for pattern in MADE_BY_A_RUN
    )
    given = any(override.startswith("run.dir=") for override in overrides)
    if not is_run or given or folder.resolve() == Path(recipe.run.dir).resolve():
        return recipe
    print(
        f"{path} lies in another folder than its run.dir ({recipe.run.dir}): this run folder was "
        f"moved or copied, so it goes on in {folder}; run.dir=... chooses another",
        file=sys.stderr,
    )
    return replace(recipe, run=replace(recipe.run, dir=str(folder)))


def stages(args: argparse.Namespace) -> int:
    """Run ``mm-cca run``, or the stage that is named by the verb."""
    from mm_cca.config.load import load_config
    from mm_cca.config.shipped import find_recipe

    if args.verb == "eval" and args.compare is not None:
        return compare_results(args)
    if args.recipe is None:
        raise UserError("mm-cca eval needs a recipe, or --compare A.json B.json.")
    args.recipe = str(find_recipe(args.recipe))
    recipe = load_config(args.recipe, args.overrides)  # before torch is imported
    recipe = where_it_lies(recipe, args.recipe, args.overrides)
    from mm_cca.cli.commands.run import run_job

    run_job(recipe, recipe.run.stages if args.verb == "run" else [args.verb])
    return 0
