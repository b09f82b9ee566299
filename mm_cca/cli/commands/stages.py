"""``run``, the single stages, and ``eval --compare``."""

import argparse

from mm_cca.errors import UserError


def compare_results(args: argparse.Namespace) -> int:
    """Run ``mm-cca eval --compare``."""
    from mm_cca.eval.compare import compare

    if args.recipe is not None:
        raise UserError(f"--compare takes two results and no recipe; remove {args.recipe}.")
    compare(*args.compare, allowed=args.allow)
    return 0


def stages(args: argparse.Namespace) -> int:
    """Run ``mm-cca run``, or the stage that is named by the verb."""
    from mm_cca.config.load import load_config

    if args.verb == "eval" and args.compare is not None:
        return compare_results(args)
    if args.recipe is None:
        raise UserError("mm-cca eval needs a recipe, or --compare A.json B.json.")
    recipe = load_config(args.recipe, args.overrides)  # before torch is imported
    from mm_cca.cli.commands.run import run_job

    run_job(recipe, recipe.run.stages if args.verb == "run" else [args.verb])
    return 0
