"""The image grid's data: captions, scores, thumbnails, and images that can't be shown.

Not every image fits into one file. The most relevant ones (``display_order``) are inside the
report; the page reads the others from the run folder when they come into view.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from mm_cca.config.schema import Recipe
from mm_cca.data.images import decode_image, load_split
from mm_cca.data.token_cache import open_cache
from mm_cca.errors import UserError
from mm_cca.eval.report.tables import best_guided
from mm_cca.eval.report.thumbnails import EXACT_SIDE, Budget, check_image, read_image, thumbnail
from mm_cca.eval.summary_types import ImageNumbers, JudgedArm, SplitNumbers
from mm_cca.runs.files import atomic_path
from mm_cca.runs.folder import RunFolder, terms_of_training
from mm_cca.sampling.manifest import picture_file
from mm_cca.sampling.prompts import Prompt, by_size, has_real_images, prompts_of

REAL = "real"


@dataclass(frozen=True)
class Problem:
    """An image that can't be shown: where it should be, and why."""

    where: str
    what: str


@dataclass
class GridColumn:
    """One arm, or the real images, over all rows.

    Attributes:
        name: of the arm, or ``real``.
        shown: whether it is visible at first.
        thumbs: row -> base64.
        missing: rows without an image.
    """

    name: str
    shown: bool
    thumbs: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)


class Grid(TypedDict):
    """What grid.js reads; ``exact`` says that thumbnails have every pixel."""

    split: str
    indices: list[int]
    captions: list[str]
    scores: dict[str, ImageNumbers]
    baseline: str | None
    ours: str
    name: str
    exact: bool
    columns: list[dict[str, Any]]


class RealImages:
    """The training data's images of a split, cropped to the size that they are drawn at."""

    def __init__(self, recipe: Recipe, run: RunFolder, split: str) -> None:
        self._data = recipe.data
        self._table = load_split(recipe.data, split, run.tokens).table
        self._rows = open_cache(run.tokens / split, recipe.data.variants).source_rows

    def open(self, prompt: Prompt) -> Image.Image:
        """Raises ValueError where it can't be read."""
        cell = self._table[int(self._rows[prompt.row])][self._data.image_column]
        pixels = decode_image(cell, *(prompt.size or self._data.image_size))
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def grid_of_split(
    recipe: Recipe,
    run: RunFolder,
    arms: Sequence[JudgedArm],
    numbers: SplitNumbers,
    judge: str,
    split: str,
    budget: Budget,
) -> tuple[Grid, list[Problem]]:
    """The data of a split's grid, and its images that can't be shown.

    Args:
        recipe: of the run.
        run: its folder.
        arms: of its summary, as the judge sees them.
        numbers: this split's part of per_prompt.json.
        judge: whose numbers are shown and sorted by.
        split: its name.
        budget: is used up; what a browser without JavaScript shows is in the page twice.
    """
    terms = terms_of_training(recipe)
    columns = columns_of(arms, split, finetuned=terms.is_finetuning)
    problems: list[Problem] = []
    real = None
    if has_real_images(recipe):
        try:
            real = RealImages(recipe, run, split)
            columns.insert(0, GridColumn(REAL, shown=True))
        except UserError as error:
            problems.append(Problem(f"the real images of {split}", str(error)))
    baseline = baseline_of(arms, split)
    scores = numbers["judges"][judge]
    ours = ours_of(arms, split, finetuned=terms.is_finetuning)
    order = display_order(gains_of(scores, baseline, ours), len(numbers["indices"]))
    prompts = [prompt for prompt in prompts_of(recipe, run) if prompt.split == split]
    problems += _fill(run, columns, real, prompts, order, budget, recipe.eval.grid_prompts)
    grid: Grid = {
        "split": split,
        "indices": numbers["indices"],
        "captions": numbers["captions"],
        "scores": scores,
        "baseline": baseline,
        "ours": ours,
        "name": terms.model_name,
        "exact": max(max(size) for size in by_size(prompts, recipe)) <= EXACT_SIDE,
        "columns": [asdict(column) for column in columns],
    }
    return grid, problems


def _fill(
    run: RunFolder,
    columns: list[GridColumn],
    real: RealImages | None,
    prompts: list[Prompt],
    order: Sequence[int],
    budget: Budget,
    first_page: int,
) -> list[Problem]:
    """Put thumbnails into the columns, most relevant first, and check all other images."""
    problems = []
    for row, column in _in_order(order, columns):
        path = image_path(run, column.name, prompts[row].index)
        copies = 2 if column.shown and row < first_page else 1
        try:
            if column.name == REAL and real is not None:
                _add_real(real.open(prompts[row]), path, column, row, budget, copies)
            else:
                _add(path, column, row, budget, copies)
        except ValueError as error:
            problems.append(Problem(str(path.relative_to(run.root)), str(error)))
            column.missing.append(row)
    return problems


def columns_of(
    arms: Sequence[JudgedArm], split: str, *, finetuned: bool = False
) -> list[GridColumn]:
    """Every arm; visible at first are those without guidance and the best guided ones.

    Of the trained model's guided arms only after plain fine-tuning, which needs guidance.
    """
    sources = ("base", "control", *(["cca"] if finetuned else []))
    best = {best_guided(arms, split, source) for source in sources}
    return [
        GridColumn(arm["name"], shown=arm["guidance_scale"] == 1.0 or arm["name"] in best)
        for arm in arms
    ]


def baseline_of(arms: Sequence[JudgedArm], split: str) -> str | None:
    """The arm that CCA's gain is relative to: the best guided base, else the base; or None."""
    names = {arm["name"] for arm in arms}
    if "cca" not in names or "base" not in names:
        return None
    return best_guided(arms, split) or "base"


def ours_of(arms: Sequence[JudgedArm], split: str, *, finetuned: bool) -> str:
    """The arm whose gain is shown: CCA, or after plain fine-tuning its best guided arm, if any."""
    return (best_guided(arms, split, "cca") if finetuned else None) or "cca"


def gains_of(
    numbers: Mapping[str, ImageNumbers], baseline: str | None, ours: str = "cca"
) -> np.ndarray | None:
    """[n] alignment of our arm minus the baseline's."""
    if baseline is None:
        return None
    own, theirs = (np.array(numbers[name]["alignment"]) for name in (ours, baseline))
    return own - theirs


def display_order(gains: np.ndarray | None, count: int) -> list[int]:
    """Rows in turn from the top, from the largest gain and from the largest loss, each once."""
    if gains is None:
        return list(range(count))
    falling = np.argsort(-gains, kind="stable")
    turns = np.stack([np.arange(count), falling, falling[::-1]], axis=1).reshape(-1)
    return list(dict.fromkeys(turns.tolist()))


def image_path(run: RunFolder, column: str, index: int) -> Path:
    """Where the page finds an image that is not inside the report; grid.js knows it, too."""
    if column == REAL:
        return picture_file(run.root / REAL, index).with_suffix(".webp")
    return picture_file(run.samples / column, index)


def _in_order(order: Sequence[int], columns: list[GridColumn]) -> Iterator[tuple[int, GridColumn]]:
    for shown in (True, False):
        for row in order:
            for column in columns:
                if column.shown == shown:
                    yield row, column


def _add(path: Path, column: GridColumn, row: int, budget: Budget, copies: int) -> None:
    if budget.is_spent:
        check_image(path)
        return
    text = thumbnail(read_image(path))
    if budget.takes(text, copies):
        column.thumbs[row] = text


def _add_real(
    image: Image.Image, path: Path, column: GridColumn, row: int, budget: Budget, copies: int
) -> None:
    """Real images are in the data set, so those that don't fit into the report become files."""
    if not budget.is_spent:
        text = thumbnail(image)
        if budget.takes(text, copies):
            column.thumbs[row] = text
            if max(image.size) <= EXACT_SIDE:
                return
    if not path.exists():
        with atomic_path(path) as temporary:
            image.save(temporary, "WEBP", quality=90)
