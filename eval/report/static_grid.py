"""The first page of the image grid as plain HTML, for browsers without JavaScript."""

from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote

from mm_cca.eval.report.gallery import REAL, Grid
from mm_cca.eval.report.thumbnails import EXACT_SIDE

THUMB_SHOWN = 104
"""Side of an image in the grid, in CSS pixels."""
ZOOM_SHOWN = 128
"""At most, of small images, which are shown at a whole multiple of their size."""


class StaticCell(NamedTuple):
    """One picture: where it is read from (None where there is none), its file (None where the page
    alone has it), its alignment."""

    arm: str
    source: str | None
    file: str | None
    alignment: float | None


class StaticRow(NamedTuple):
    """One prompt."""

    caption: str
    cells: list[StaticCell]


class StaticPage(NamedTuple):
    """The first prompts of a split."""

    split: str
    num_prompts: int
    arms: list[str]
    rows: list[StaticRow]


def first_page(grid: Grid, rows: int) -> StaticPage:
    """As grid.js shows it at first."""
    shown = [column["name"] for column in grid["columns"] if column["shown"]]
    captions = grid["captions"][:rows]
    return StaticPage(
        grid["split"],
        len(grid["captions"]),
        shown,
        [
            StaticRow(caption, [_cell(grid, name, row) for name in shown])
            for row, caption in enumerate(captions)
        ],
    )


def _cell(grid: Grid, name: str, row: int) -> StaticCell:
    numbers = grid["scores"].get(name)
    alignment = None if numbers is None else numbers["alignment"][row]
    # Of small real images, every pixel is in the page, and the run folder has no copy.
    thumbs = next(column["thumbs"] for column in grid["columns"] if column["name"] == name)
    is_here = name == REAL and grid["exact"] and row in thumbs
    file = None if is_here else file_of(grid, name, row)
    return StaticCell(name, image_of(grid, name, row), file, alignment)


def image_of(grid: Grid, name: str, row: int) -> str | None:
    """Where a page reads a picture from: itself or the run folder; None if it can't be shown."""
    column = next(column for column in grid["columns"] if column["name"] == name)
    if row in column["missing"]:
        return None
    if row in column["thumbs"]:
        return f"data:image/webp;base64,{column['thumbs'][row]}"
    return file_of(grid, name, row)


def file_of(grid: Grid, name: str, row: int) -> str:
    """The address of a picture's file, from the run folder; grid.js has the same."""
    index = f"{grid['indices'][row]:06d}"
    if name == REAL:
        return f"real/{index}.webp"
    return f"samples/{quote(name, safe='')}/{index}.png"


def first_file(sources: Iterable[str | None]) -> str | None:
    """The first picture that the page reads from the run folder; None if it has them all."""
    return next((one for one in sources if one and not one.startswith("data:")), None)


def side_shown(image_size: tuple[int, int] | list[int], room: int, otherwise: int) -> int:
    """Side in CSS pixels of the square that an image is shown in.

    Args:
        image_size: in pixels.
        room: for a small image, which is enlarged by a whole number.
        otherwise: for a larger one.
    """
    side = max(image_size)
    return side * max(1, room // side) if side <= EXACT_SIDE else otherwise
