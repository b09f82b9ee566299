"""Do the data still hold what the token cache was made from?"""

from pathlib import Path

from mm_cca.config.schema import Recipe
from mm_cca.data.cache_changes import Comparison, compare
from mm_cca.data.contents import Origin, read_content
from mm_cca.data.images import load_split
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage, recorded


def data_splits(recipe: Recipe) -> list[str]:
    """The splits of the data that a recipe names."""
    names = (recipe.data.train_split, recipe.data.heldout_split)
    return [name for name in names if name is not None]


def refuse_other_path(recipe: Recipe, split: Path) -> None:
    """Raises UserError if a cache was made from another ``data.path`` that can't be compared."""
    stored = recorded(split)
    was = None if stored is None else stored["settings"].get("data.path")
    if was is not None and was != recipe.data.path:
        raise UserError(
            f"{split} was made with another recipe:\n  - data.path: was {was!r}, is now "
            f"{recipe.data.path!r}, which is not here to be compared\nIt was left as it is. "
            f"Restore the old value, choose another run.dir, or delete {split} to start over."
        )


def refuse_other_data(
    recipe: Recipe, run: RunFolder, split: Path, origin: Origin, found: Comparison
) -> None:
    """Refuse to change a cache that was made from other data, or that a model was trained on.

    Raises:
        UserError: what is another, and what can be done.
    """
    if not found.changes:
        if found.is_old:
            refuse_other_path(recipe, split)
        return
    content, stored = read_content(split), recorded(split)
    was = None if stored is None else stored["settings"].get("data.path")
    changed = "; ".join(found.changes)
    moved = was != recipe.data.path if content is None else content.place != origin.place
    if was is not None and moved:
        raise UserError(
            f"{split} was made with another recipe:\n  - data.path: was {was!r}, is now "
            f"{recipe.data.path!r}, which holds other data ({changed})\nIt was left as it is. "
            f"Restore the old value, choose another run.dir, or delete {split} to start over."
        )
    if run.holds_training():
        raise UserError(
            f"{recipe.data.path} has changed since {run.trained} was trained on it: {changed}. "
            "Nothing was changed. Restore the data, choose another run.dir, or delete "
            f"{run.trained} to train anew."
        )


def refuse_changed_data(recipe: Recipe, run: RunFolder) -> None:
    """Before stages that use a finished cache without ``prepare``: are its data the same?

    Data that are not here (on the hub, or taken away since) are not compared.

    Raises:
        UserError: captions or pictures are others.
    """
    origin = Origin.of(recipe.data.path, run.root)
    for name in data_splits(recipe):
        split = run.tokens / name
        content = read_content(split) if Stage.ended(split) else None
        if content is None or origin.signature in (None, content.signature):
            continue
        found = compare(load_split(recipe.data, name, run.tokens), split, recipe.data, origin)
        refuse_other_data(recipe, run, split, origin, found)
        if found.changes:
            raise UserError(
                f"{recipe.data.path} has changed since {split} was made from it: "
                f"{'; '.join(found.changes)}. Run `mm-cca prepare RECIPE`; it encodes only what "
                "changed."
            )
