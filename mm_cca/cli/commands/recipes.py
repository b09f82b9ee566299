"""``ls``, ``cp`` and ``validate``: list, copy and check recipes."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mm_cca.errors import UserError

if TYPE_CHECKING:
    from mm_cca.config.schema import AnyRecipe


def validate(args: argparse.Namespace) -> int:
    """Run ``mm-cca validate``."""
    from mm_cca.config.load import config_as_written

    recipe = config_as_written(args.recipe, args.overrides)
    print(f"{args.recipe} is valid.")
    for key, path, command in _to_make(recipe):
        print(f"Note: {key} {path} is not there yet. Make it with: {command}")
    for note in _tokenizers(recipe):
        print(f"Note: {note}")
    if not args.recipe_only:
        _check_checkpoint(recipe)
    return 0


def _check_checkpoint(recipe: "AnyRecipe") -> None:
    """Print what the checkpoint's files show. Raises UserError if they don't fit the recipe."""
    from mm_cca.config.schema import Recipe
    from mm_cca.config.shipped import SHIPPED, command_for

    if not isinstance(recipe, Recipe):
        return
    path = recipe.model.path
    if path in SHIPPED or command_for(path) is not None:  # comes with the package, or made later
        return
    from mm_cca.adapters.check import check_checkpoint
    from mm_cca.adapters.checkpoint_files import NoHeadersError, UnreachableError
    from mm_cca.config.image_sizes import sizes_in

    try:
        first, *buckets = sizes_in(recipe.data.image_size, recipe.data.buckets)
        parameters = check_checkpoint(recipe.model, first, buckets)
    except UnreachableError as error:
        part = "weights" if isinstance(error, NoHeadersError) else "files"
        print(f"Note: the {part} of model.path {path} were not checked: {error}")
    else:
        print(
            f"model.path {path} fits the adapter {recipe.model.adapter}: {parameters / 1e9:.2f} "
            "billion parameters by the headers of its files, no weights read."
        )


def _tokenizers(recipe: "AnyRecipe") -> Iterator[str]:
    """What else is downloaded or must be there because Lumina-mGPT's folders lack it."""
    from mm_cca.config.schema import Recipe
    from mm_cca.config.shipped import LUMINA_TOKENIZER

    if not isinstance(recipe, Recipe) or recipe.model.adapter != "lumina-mgpt":
        return
    model, folder = recipe.model, Path(recipe.model.path)
    if model.tokenizer is not None or (folder / "tokenizer.json").exists():
        return
    lacking = "has no tokenizer" if folder.is_dir() else "may have no tokenizer (-512 has none)"
    yield (
        f"model.path {model.path} {lacking}: that of {LUMINA_TOKENIZER} is used then. "
        "model.tokenizer names another one."
    )


def _to_make(recipe: "AnyRecipe") -> Iterator[tuple[str, str, str]]:
    """Key, path and command of what the recipe reads, other built-in recipes make, and is missing.

    Not a mistake in the recipe, so that a chain of runs can be checked before its first one.
    """
    from mm_cca.config.schema import Recipe
    from mm_cca.config.shipped import command_for

    paths = [("data.path", recipe.data.path)]
    if isinstance(recipe, Recipe):
        paths.append(("model.path", recipe.model.path))
    for key, path in paths:
        command = command_for(path)
        if command is not None and not Path(path).exists():
            yield key, path, command


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
