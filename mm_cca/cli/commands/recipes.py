"""``ls``, ``cp`` and ``validate``: list, copy and check recipes."""

import argparse

from mm_cca.errors import UserError


def validate(args: argparse.Namespace) -> int:
    """Run ``mm-cca validate``."""
    from mm_cca.config.load import load_config

    load_config(args.recipe, args.overrides)
    print(f"{args.recipe} is valid.")
    return 0


def ls(args: argparse.Namespace) -> int:
    """Run ``mm-cca ls``."""
    from rich.console import Console
    from rich.table import Table

    from mm_cca.config.shipped import shipped_recipes

    table = Table("recipe", "what it does", box=None)
    for name, path in shipped_recipes().items():
        table.add_row(name, path.read_text().splitlines()[0].lstrip("# "))
    Console().print(table)
    return 0


def cp(args: argparse.Namespace) -> int:
    """Run ``mm-cca cp``."""
    from mm_cca.config.load import own_copy
    from mm_cca.config.shipped import find_recipe

    source = find_recipe(args.recipe)
    if args.target.exists():
        raise UserError(f"{args.target} exists already; choose another name or delete it.")
    try:
        args.target.write_text(own_copy(source))
    except OSError as error:
        raise UserError(f"{args.target} can't be written: {error}") from error
    print(f"{args.recipe} copied to {args.target}")
    return 0
