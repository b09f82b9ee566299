"""Which rows a recipe leaves out: pictures that are too small, captions too short or too long."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image as pil

from mm_cca.config.image_sizes import Size
from mm_cca.config.schema import DataConfig
from mm_cca.data.buckets import decode_image_to
from mm_cca.data.pictures import decode_image, image_bytes
from mm_cca.errors import UserError

LEFT_OUT = "left out: "
"""Begins the ``problem`` of a row that the recipe leaves out; it is no bad row."""


class TooSmallError(ValueError):
    """A picture that ``data.min_image_side`` leaves out."""


def decode_large(
    config: DataConfig, sizes: Sequence[Size], cell: dict[str, Any] | None
) -> torch.Tensor:
    """A picture that is not too small, at ``data.image_size`` or the one of ``sizes`` that it fits.

    Raises:
        TooSmallError: it is too small; the message begins with ``LEFT_OUT``.
        ValueError: not a readable image, or it fits no size.
    """
    if config.min_image_side is not None and cell is not None:
        _refuse_small(cell, config.min_image_side)
    if sizes:
        return decode_image_to(cell, sizes)
    height, width = config.image_size
    return decode_image(cell, height, width)


def _refuse_small(cell: dict[str, Any], smallest: int) -> None:
    try:
        with pil.open(io.BytesIO(image_bytes(cell))) as file:  # reads the head only
            width, height = file.size
    except UserError:
        raise
    except Exception:  # told in full when it is decoded
        return
    if min(width, height) < smallest:
        name = f"{cell['path']}: " if cell["path"] else ""
        raise TooSmallError(
            f"{LEFT_OUT}{name}{width} x {height} pixels, data.min_image_side is {smallest}"
        )


def fault_of_length(caption: str, config: DataConfig) -> str:
    """Why a caption is left out for its length; empty if it is not."""
    length, least, most = len(caption), config.min_caption_chars, config.max_caption_chars
    if least is not None and length < least:
        return f"{LEFT_OUT}{length} characters, data.min_caption_chars is {least}"
    if most is not None and length > most:
        return f"{LEFT_OUT}{length} characters, data.max_caption_chars is {most}"
    return ""


def count_by_key(problems: Iterable[str]) -> str:
    """``3 by data.min_image_side, 1 by data.max_caption_chars``."""
    keys = ("data.min_image_side", "data.min_caption_chars", "data.max_caption_chars")
    listed = list(problems)
    counts = {key: sum(key in problem for problem in listed) for key in keys}
    return ", ".join(f"{count:,} by {key}" for key, count in counts.items() if count)
