"""The pictures of a sweep: a few prompts, drawn by the base, the guided base and every point."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mm_cca.eval.report.thumbnails import Budget, read_image, thumbnail
from mm_cca.eval.summary_types import SplitNumbers
from mm_cca.sampling.manifest import picture_file

NUM_PROMPTS = 6


class PictureTable(NamedTuple):
    """Names of the columns, and by prompt a thumbnail (base64) for each, None where it is gone."""

    columns: list[str]
    rows: list[tuple[str, list[str | None]]]


def picture_table(
    folders: Mapping[str, Path], numbers: SplitNumbers, budget: Budget
) -> PictureTable:
    """The first prompts of a split.

    Args:
        folders: name of a column -> the folder of an arm's images.
        numbers: the split's part of per_prompt.json.
        budget: is used up.
    """
    first: dict[str, int] = {}
    for index, caption in zip(numbers["indices"], numbers["captions"], strict=True):
        first.setdefault(caption, index)
    return PictureTable(
        list(folders),
        [
            (caption, _thumbs(list(folders.values()), index, budget))
            for caption, index in list(first.items())[:NUM_PROMPTS]
        ],
    )


def _thumbs(folders: Sequence[Path], index: int, budget: Budget) -> list[str | None]:
    thumbs: list[str | None] = []
    for folder in folders:
        try:
            text = thumbnail(read_image(picture_file(folder, index)))
        except ValueError:
            thumbs.append(None)
            continue
        thumbs.append(text if budget.takes(text) else None)
    return thumbs
