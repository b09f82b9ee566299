"""The picture grid's data: captions, scores, thumbnails, and what could not be shown.

Not every picture fits into one file. Those of the columns and rows that are looked at first are
inside the report; the others are read from the run folder when they come into view.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mm_cca.config.schema import Recipe
from mm_cca.data.images import decode_image, load_split
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.eval.report.tables import best_guided
from mm_cca.eval.report.thumbnails import EXACT_SIDE, Budget, check_picture, open_picture, thumbnail
from mm_cca.runs.files import atomic_path
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.prompts import Prompt, has_real_images, prompts_of

REAL = "real"


@dataclass(frozen=True)
class Problem:
    """A picture that can't be shown: where it should be, and what is wrong."""

    where: str
    what: str


@dataclass
class Column:
    """One way of drawing, over all rows.

    Attributes:
        name: of the arm, or ``real``.
        shown: whether it is seen without being asked for.
        thumbs: row -> base64.
        missing: rows without a picture.
    """

    name: str
    shown: bool
    thumbs: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)


class RealImages:
    """The training data's images of a split, cropped to the size the model was given."""

    def __init__(self, recipe: Recipe, run: RunFolder, split: str) -> None:
        self._data = recipe.data
        self._table = load_split(recipe.data, split).table
        self._rows = open_cache(run.tokens / split, recipe.data.variants).source_rows

    def open(self, prompt: Prompt) -> Image.Image:
        """Raises ValueError where it can't be read."""
        cell = self._table[int(self._rows[prompt.row])][self._data.image_column]
        pixels = decode_image(cell, *self._data.image_size)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def grid_of_split(
    recipe: Recipe,
    run: RunFolder,
    summary: dict[str, Any],
    numbers: dict[str, Any],
    split: str,
    budget: Budget,
) -> tuple[dict[str, Any], list[Problem]]:
    """What the script needs to show the grid of a split, and what is wrong with its pictures.

    Args:
        recipe: of the run.
        run: its folder.
        summary: of the evaluation.
        numbers: this split's part of per_prompt.json.
        split: its name.
        budget: is used up.
    """
    columns = columns_of(summary, split)
    problems: list[Problem] = []
    real = None
    if has_real_images(recipe):
        try:
            real = RealImages(recipe, run, split)
            columns.insert(0, Column(REAL, shown=True))
        except UserError as error:
            problems.append(Problem(f"the real images of {split}", str(error)))
    prompts = [p for p in prompts_of(recipe, run) if p.split == split]
    rival = rival_of(summary, split)
    order = looked_at_first(gains_of(numbers, rival), len(prompts))
    for row, column in _in_order(order, columns):
        path = picture_path(run, column.name, prompts[row].index)
        try:
            if column.name == REAL and real is not None:
                _take_real(real.open(prompts[row]), path, column, row, budget)
            else:
                _take(path, column, row, budget)
        except ValueError as error:
            problems.append(Problem(str(path.relative_to(run.root)), str(error)))
            column.missing.append(row)
    grid = {
        "split": split,
        "indices": numbers["indices"],
        "captions": numbers["captions"],
        "scores": numbers["arms"],
        "rival": rival,
        "exact": max(recipe.data.image_size) <= EXACT_SIDE,
        "columns": [asdict(column) for column in columns],
    }
    return grid, problems


def columns_of(summary: dict[str, Any], split: str) -> list[Column]:
    """Every arm; shown are those without guidance and the best guided ones."""
    best = {best_guided(summary, split, source) for source in ("base", "control")}
    return [
        Column(arm["name"], shown=arm["guidance_scale"] == 1.0 or arm["name"] in best)
        for arm in summary["arms"]
    ]


def rival_of(summary: dict[str, Any], split: str) -> str | None:
    """What CCA's gain is measured against: the best guided base, else the base; None without."""
    names = {arm["name"] for arm in summary["arms"]}
    if "cca" not in names or "base" not in names:
        return None
    return best_guided(summary, split) or "base"


def gains_of(numbers: dict[str, Any], rival: str | None) -> np.ndarray | None:
    """[n] alignment of CCA minus the rival's."""
    if rival is None:
        return None
    ours, theirs = (np.array(numbers["arms"][name]["alignment"]) for name in ("cca", rival))
    return ours - theirs


def looked_at_first(gains: np.ndarray | None, count: int) -> list[int]:
    """Rows in turn from the top, from the largest gain and from the largest loss, each once."""
    if gains is None:
        return list(range(count))
    falling = np.argsort(-gains, kind="stable")
    turns = np.stack([np.arange(count), falling, falling[::-1]], axis=1).reshape(-1)
    return list(dict.fromkeys(turns.tolist()))


def picture_path(run: RunFolder, column: str, index: int) -> Path:
    """Where the report looks for a picture that is not inside it."""
    if column == REAL:
        return run.root / REAL / f"{index:06d}.webp"
    return run.samples / column / f"{index:06d}.png"


def _in_order(order: Sequence[int], columns: list[Column]) -> Iterator[tuple[int, Column]]:
    for shown in (True, False):
        for row in order:
            for column in columns:
                if column.shown == shown:
                    yield row, column


def _take(path: Path, column: Column, row: int, budget: Budget) -> None:
    if budget.is_spent:
        check_picture(path)
        return
    text = thumbnail(open_picture(path))
    if budget.takes(text):
        column.thumbs[row] = text


def _take_real(image: Image.Image, path: Path, column: Column, row: int, budget: Budget) -> None:
    """Real images lie in the data set, so what does not fit into the report becomes a file."""
    if not budget.is_spent:
        text = thumbnail(image)
        if budget.takes(text):
            column.thumbs[row] = text
            if max(image.size) <= EXACT_SIDE:
                return
    if not path.exists():
        with atomic_path(path) as temporary:
            image.save(temporary, "WEBP", quality=90)
