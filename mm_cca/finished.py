"""Runs that were made: what is in their folder, and whose models another run draws."""

from dataclasses import replace
from pathlib import Path

from mm_cca.config import load_config
from mm_cca.errors import UserError
from mm_cca.run import RunFolder
from mm_cca.schema import Recipe


def open_run(folder: Path) -> tuple[Recipe, RunFolder]:
    """A run that was made, wherever its folder lies now.

    Raises:
        UserError: no run folder, or one that holds no model.
    """
    path = folder / "recipe.yaml"
    if not path.exists():
        raise UserError(
            f"{folder} is no run folder: it has no recipe.yaml. Name the run.dir of a recipe that "
            "was run."
        )
    recipe = load_config(str(path))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{folder} holds a {recipe.job} run; only finetune runs have a model.")
    run = RunFolder.of(recipe)
    trained = folder if recipe.run.trained is None else run.trained
    return recipe, replace(run, root=folder, trained=trained)


def recipe_of_training(recipe: Recipe) -> Recipe:
    """The recipe that trained what is drawn: this one, or that of ``run.trained``.

    Raises:
        UserError: ``run.trained`` is no finished run, or one of another model.
    """
    if recipe.run.trained is None:
        return recipe
    folder = Path(recipe.run.trained)
    if folder.resolve() == Path(recipe.run.dir).resolve():
        raise UserError(
            f"run.trained and run.dir are both {str(folder)!r}; what is drawn needs a run.dir of "
            "its own."
        )
    try:
        found, _ = open_run(folder)
    except UserError as error:
        raise UserError(f"run.trained: {error}") from error
    if found.run.trained is not None:
        raise UserError(
            f"run.trained is {str(folder)!r}, which trained nothing itself; name "
            f"{found.run.trained!r}, whose models it drew."
        )
    differing = [
        f"  - {key}: {theirs!r} there, {ours!r} here"
        for key, theirs, ours in (
            ("model.adapter", found.model.adapter, recipe.model.adapter),
            ("model.path", found.model.path, recipe.model.path),
            ("data.image_size", found.data.image_size, recipe.data.image_size),
            ("train.tuning", found.train.tuning, recipe.train.tuning),
        )
        if theirs != ours
    ]
    if differing:
        listed = "\n".join(differing)
        raise UserError(
            f"run.trained is {str(folder)!r}, which trained another model:\n{listed}\nTake "
            f"{folder / 'recipe.yaml'} as the recipe, with another run.dir."
        )
    return found
