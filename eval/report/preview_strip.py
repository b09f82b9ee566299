"""The previews of a training over its steps, for the report and ``mm-cca watch``."""

from pathlib import Path
from typing import TypedDict

import numpy as np

from mm_cca.eval.report.thumbnails import is_exact, read_image, thumbnail
from mm_cca.runs.preview_record import picture_of, read_record

MOST = 8
"""Columns; of more previews so many are shown, evenly spread from the first to the last."""


class PreviewRow(TypedDict):
    """The pictures of one prompt, with or without guidance; None where a file is gone."""

    prompt: str
    guided: bool
    thumbs: list[str | None]


class PreviewStrip(TypedDict):
    """``steps`` are the columns; 0 is the base. ``exact``: small pictures, which are enlarged."""

    steps: list[int]
    count: int
    guidance_scale: float
    exact: bool
    rows: list[PreviewRow]


def strip_of(training: Path) -> PreviewStrip | None:
    """The strip of the training in a folder; None where no previews were drawn.

    Raises:
        UserError: the record of the previews is damaged.
    """
    record = read_record(training)
    if record is None or not record.drawn:
        return None
    drawn = sorted(record.drawn)
    places = np.linspace(0, len(drawn) - 1, min(MOST, len(drawn))).round().astype(int)
    steps = [drawn[place] for place in places]
    return {
        "steps": steps,
        "count": len(drawn),
        "guidance_scale": record.guidance_scale,
        "exact": _is_small(picture_of(training, steps[-1], 0, guided=False)),
        "rows": [
            {
                "prompt": prompt,
                "guided": guided,
                "thumbs": [
                    _thumb(picture_of(training, step, row, guided=guided)) for step in steps
                ],
            }
            for row, prompt in enumerate(record.prompts)
            for guided in (False, True)
        ],
    }


def _is_small(path: Path) -> bool:
    try:
        return is_exact(read_image(path))
    except ValueError:
        return False


def _thumb(path: Path) -> str | None:
    try:
        return thumbnail(read_image(path))
    except ValueError:
        return None
