"""Captions that leave no room for the image among the positions of the decoder."""

from collections.abc import Sequence

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import DataConfig
from mm_cca.data.buckets import sizes_of
from mm_cca.errors import UserError

CAPTIONS_PER_CALL = 1024


def long_captions(
    model: UnifiedModel, captions: Sequence[str], rows: Sequence[int], config: DataConfig
) -> dict[int, str]:
    """Row -> why it can't be used, for every caption that is too long with its template.

    Args:
        model: whose decoder has ``max_tokens`` positions.
        captions: [n] without ``data.caption_template``.
        rows: [n] of the source.
        config: the recipe's ``data``.
    """
    # Of several sizes the one with the longest images: a picture's own is known only once decoded.
    size = max(sizes_of(model, config), key=lambda s: len(model.layout(grid_of(model, s)).tokens))
    grid = grid_of(model, size)
    room = model.max_tokens - len(model.layout(grid).tokens)
    words = "" if config.caption_template is None else " with data.caption_template"
    long = {}
    for start in range(0, len(captions), CAPTIONS_PER_CALL):
        prompts = filled(config.caption_template, captions[start : start + CAPTIONS_PER_CALL])
        for number, ids in enumerate(model.prompt_ids(prompts, grid), start):
            if len(ids) > room:
                long[rows[number]] = (
                    f"caption too long: {len(ids)} tokens{words}, but an image of "
                    f"{list(size)} leaves {room} of {model.max_tokens}"
                )
    return long


def refuse_long_prompts(
    model: UnifiedModel, captions: Sequence[str], rows: Sequence[int], config: DataConfig
) -> None:
    """Raises UserError if a caption is too long; the arguments are those of ``long_captions``."""
    long = long_captions(model, captions, rows, config)
    if long:
        row, why = next(iter(long.items()))
        raise UserError(
            f"{len(long)} captions are too long, such as that of row {row} ({why}). Shorten or "
            "remove these captions, or choose a shorter data.caption_template or a smaller "
            "data.image_size."
        )
