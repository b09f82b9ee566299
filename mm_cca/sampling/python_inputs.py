"""Checks what a caller from Python gives, and turns it into what the sampler reads."""

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from mm_cca.adapters.base import Grid, UnifiedModel, grid_of
from mm_cca.config.keys import MAX_SEED
from mm_cca.data.long_captions import long_captions
from mm_cca.data.pictures import open_image, rgb_of
from mm_cca.errors import UserError
from mm_cca.sampling.image_model import ImageModel

Picture: TypeAlias = Image.Image | str | Path
Size: TypeAlias = Sequence[int]
"""Height and width in pixels."""


def texts_of(prompts: str | Sequence[str]) -> list[str]:
    """One or more prompts as a list. Raises UserError for none, an empty one, or no text."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise UserError("prompts is empty; give at least one text.")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"prompt {number} is {text!r}; allowed: a text that says something.")
    return texts


def stream_of(seed: int | Sequence[int]) -> tuple[int, int]:
    """The seed and the number of the first image. Raises UserError for anything else."""
    parts = list(seed) if isinstance(seed, Sequence) else [seed]
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) and n >= 0 for n in parts)
    if len(parts) not in (1, 2) or not whole or parts[0] > MAX_SEED:
        raise UserError(
            f"seed is {seed!r}; allowed: a whole number from 0 to {MAX_SEED}, or the pair (seed, "
            "number of the first image) of a manifest's line."
        )
    return int(parts[0]), int(parts[1]) if len(parts) > 1 else 0


def count_of(name: str, value: int) -> int:
    """A number of images. Raises UserError below 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UserError(f"{name} is {value!r}; allowed: a whole number of 1 or more.")
    return int(value)


def refuse_scale_and_dial(guidance_scale: float, dial: float) -> None:
    """Raises UserError for guidance below 1 or a dial below 0."""
    if not 1 <= guidance_scale < math.inf:
        raise UserError(f"guidance_scale is {guidance_scale:g}; allowed: 1 (no guidance) or more.")
    if not 0 <= dial < math.inf:
        raise UserError(f"dial is {dial:g}; allowed: 0 (the base) or more; 1 is as trained.")


def size_of(opened: ImageModel, image_size: Size | None) -> tuple[int, int]:
    """Height and width to draw at. Raises UserError where neither caller nor model says one."""
    size = opened.image_size if image_size is None else image_size
    if size is None:
        raise UserError(
            f"image_size is not given, and {opened.name} does not say one; give (height, width)."
        )
    pair = tuple(size) if isinstance(size, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(n, Integral) and n > 0 for n in pair):
        raise UserError(f"image_size is {image_size!r}; allowed: (height, width) in pixels.")
    return int(pair[0]), int(pair[1])


def grid_for(model: UnifiedModel, size: tuple[int, int]) -> Grid:
    """The grid of codes of a size. Raises UserError for one that the model can't draw."""
    try:
        grid = grid_of(model, size)
        model.layout(grid)
    except UserError as error:
        raise UserError(str(error).replace("data.image_size", "image_size")) from error
    return grid


def refuse_long(
    opened: ImageModel, model: UnifiedModel, texts: list[str], size: tuple[int, int]
) -> None:
    """Raises UserError for a prompt that leaves no room for the image."""
    template = opened.recipe.sample.prompt_template
    data = replace(opened.recipe.data, image_size=list(size), caption_template=template)
    for row, why in long_captions(model, texts, range(len(texts)), data).items():
        told = why.replace("data.caption_template", "sample.prompt_template")
        raise UserError(f"prompt {row}: {told}; shorten it.")


def pixels_of(
    opened: ImageModel,
    model: UnifiedModel,
    images: Picture | Sequence[Picture],
    image_size: Size | None,
) -> tuple[torch.Tensor, tuple[int, int]]:
    """[B, 3, H, W] uint8 of images, on the CPU, and their height and width.

    Args:
        image_size: that all must have; None: the run's, or for a plain checkpoint that of the
            first image.

    Raises:
        UserError: no image, a file that is none, or one of another size.
    """
    given = [images] if isinstance(images, Image.Image | str | Path) else list(images)
    if not given:
        raise UserError("images is empty; give at least one.")
    opened_images = [_rgb(number, image) for number, image in enumerate(given)]
    if image_size is None and opened.is_any_size:
        image_size = opened_images[0].size[::-1]
    size = size_of(opened, image_size)
    grid_for(model, size)
    for number, image in enumerate(opened_images):
        if image.size != size[::-1]:
            wanted = in_words(size)
            raise UserError(
                f"image {number} is {in_words(image.size[::-1])} pixels (width x height); allowed "
                f"here: {wanted}. Resize it, for instance with "
                f"PIL.ImageOps.fit(image, {size[::-1]})."
            )
    pixels = torch.from_numpy(np.stack([np.array(image) for image in opened_images]))
    return pixels.permute(0, 3, 1, 2), size


def _rgb(number: int, image: Picture) -> Image.Image:
    try:
        if isinstance(image, Image.Image):
            return rgb_of(image)
        if isinstance(image, str | Path):
            return open_image({"bytes": None, "path": str(image)})
    except ValueError as error:
        raise UserError(f"image {number} can't be read: {error}") from error
    raise UserError(
        f"image {number} is a {type(image).__name__}; allowed: a PIL image or the path of a file."
    )


def in_words(size: Size) -> str:
    """Height and width as width x height, which is what image programs say."""
    return f"{size[1]} x {size[0]}"


def to_picture(pixels: torch.Tensor) -> Image.Image:
    """[3, H, W] uint8 on the CPU -> a PIL image."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def device_of(model: UnifiedModel) -> torch.device:
    """Where a model's weights are."""
    return next(model.module.parameters()).device
