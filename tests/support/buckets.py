"""Pictures of three shapes, and a recipe with a size for each."""

from pathlib import Path
from typing import Any

from tests.support import runs

SHAPES = [(32, 32), (24, 40), (40, 24)]
"""Height and width of the pictures, in turn."""
SIZES = [(16, 16), (12, 20), (20, 12)]
"""What they are encoded at: 16, 15 and 15 codes of the tiny checkpoint."""


def shaped_rows(count: int, *, first: int = 0, **extra: Any) -> list[dict[str, Any]]:
    """Rows whose pictures have the shapes in turn."""
    rows = runs.rows_of(count, first=first, **extra)
    for number, row in enumerate(rows, start=first):
        height, width = SHAPES[number % 3]
        row["image"] = runs.png(runs.picture(number).resize((width, height)))
    return rows


def bucketed_recipe(folder: Path, model: Path, *more: dict[str, Any]) -> Path:
    """A recipe of 24 training and 16 held-out pictures, and of rows ``more``."""
    rows = shaped_rows(24, split="train") + shaped_rows(16, first=24, split="heldout")
    values = runs.tiny_recipe(
        folder, model, runs.write_parquet(folder / "data.parquet", [*rows, *more])
    )
    values["data"] |= {"heldout_split": "heldout", "image_size": [list(size) for size in SIZES]}
    values["train"].update(max_steps=8, eval_every=4, micro_batch_size=2)
    values["sample"] |= {"num_images": 8, "guidance_scales": []}
    return runs.write_recipe(folder / "recipe.yaml", values)
