"""Aspect-ratio buckets: which of the recipe's sizes a picture is encoded at.

A picture gets the size of which it loses least when it is cropped to its shape. One that would lose
more than ``MAX_CROP`` fits none, and its row can't be used.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.image_sizes import AUTO, Size, size_text, sizes_in
from mm_cca.config.schema import DataConfig
from mm_cca.data.pictures import fitted, open_image
from mm_cca.errors import UserError

MAX_CROP = 0.05
"""Of the area of a picture."""
MAX_RATIO = 2.5
"""The longest shape that ``auto`` makes a size for, as its longer side by the shorter."""
_ROUNDING = 1e-9


def share_kept(shape: Size, size: Size) -> float:
    """How much of a picture of that height and width is left when it is cropped to a size."""
    ratio = (shape[0] * size[1]) / (shape[1] * size[0])
    return min(ratio, 1 / ratio)


def bucket_of(shape: Size, sizes: Sequence[Size]) -> Size:
    """The size that a picture of that height and width is encoded at.

    Of sizes of one shape it is the one whose area is nearest to the picture's.

    Raises:
        ValueError: it would lose more than ``MAX_CROP`` at every one.
    """

    def order(size: Size) -> tuple[float, float, Size]:
        area = math.log((shape[0] * shape[1]) / (size[0] * size[1]))
        return -share_kept(shape, size), abs(area), size

    best = min(sizes, key=order)
    lost = 1 - share_kept(shape, best)
    if lost > MAX_CROP + _ROUNDING:
        raise ValueError(
            f"{size_text(shape)} pixels (height x width) fit no bucket: the nearest, "
            f"{size_text(best)}, would crop {lost:.0%}, and {MAX_CROP:.0%} are allowed"
        )
    return best


def decode_image_to(cell: dict[str, Any] | None, sizes: Sequence[Size]) -> torch.Tensor:
    """An undecoded image cell -> [3, H, W] uint8 at the size that it fits; see ``decode_image``.

    Raises:
        ValueError: not a readable image, or it fits no size.
    """
    # Where a JPEG is decoded at a fraction of its size, its shape stays the same.
    image = open_image(cell, max(side for size in sizes for side in size))
    height, width = bucket_of((image.height, image.width), sizes)
    return torch.from_numpy(np.array(fitted(image, height, width))).permute(2, 0, 1)


def sizes_of(model: UnifiedModel, config: DataConfig) -> list[Size]:
    """``data.image_size`` and every bucket of a recipe.

    Raises:
        UserError: one that the checkpoint can't draw, or ``auto`` where it draws no other shape.
    """
    sizes = sizes_in(config.image_size, config.buckets)
    for size in sizes:
        model.layout(grid_of(model, size))
    if AUTO in config.buckets:
        sizes += auto_sizes(model, sizes[0])
    return sizes


def auto_sizes(model: UnifiedModel, image_size: Size) -> list[Size]:
    """Other shapes of about the area of ``image_size``, and never more.

    Neighbours are so close that a picture between them loses at most ``MAX_CROP``, as far as the
    checkpoint's grids allow, up to ``MAX_RATIO``.

    Raises:
        UserError: there is none.
    """
    shapes = {height / width: (height, width) for height, width in _drawable(model, image_size)}
    ratios, ratio = sorted(shapes), image_size[0] / image_size[1]
    tall = _steps(ratio, [r for r in ratios if r > ratio])
    wide = _steps(1 / ratio, sorted(1 / r for r in ratios if r < ratio))
    by_width = {1 / r: size for r, size in shapes.items()}
    found = [*(shapes[r] for r in tall), *(by_width[r] for r in wide)]
    if not found:
        raise UserError(
            f"data.buckets is auto, but this checkpoint draws no other shape with the area of "
            f"data.image_size {list(image_size)}. Leave data.buckets out, or choose a larger "
            "data.image_size."
        )
    return sorted(found, key=lambda size: size[0] / size[1])


def _drawable(model: UnifiedModel, image_size: Size) -> Iterator[Size]:
    """Of every height the widest size within the area, and of every width the tallest, that the
    checkpoint draws; the largest of a shape comes last."""
    side = model.pixels_per_code
    codes = math.prod(grid_of(model, image_size))
    grids = {grid for n in range(1, codes + 1) for grid in ((n, codes // n), (codes // n, n))}
    for grid in sorted(grids):
        if max(grid) > MAX_RATIO * min(grid):
            continue
        try:
            model.layout(grid)
        except UserError:
            continue
        yield grid[0] * side, grid[1] * side


def _steps(ratio: float, ratios: Sequence[float]) -> list[float]:
    """Of rising ratios as few as leave no gap: the next is as far as two crops reach."""
    steps: list[float] = []
    reach = 1 / (1 - MAX_CROP) ** 2
    for this, following in zip(ratios, [*ratios[1:], math.inf], strict=False):
        if following > ratio * reach:
            steps.append(this)
            ratio = this
    return steps
