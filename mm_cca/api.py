"""Drawing and scoring from Python; ``docs/python.md`` has examples.

Every function takes as its first argument what ``load_run`` returns, a model of ``load_adapter`` in
eval mode, or a path, which is then loaded for this one call.

Shapes: B images, N codes of an image, h x w grid of codes, K image codes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.prompt_templates import filled
from mm_cca.errors import UserError
from mm_cca.modeling.in_batches import in_batches
from mm_cca.modeling.inputs import right_pad
from mm_cca.modeling.logprobs import CodeLogProbs, Scored
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.draw import draw_here
from mm_cca.sampling.image_model import ImageModel, open_model, wrapped
from mm_cca.sampling.prompts import PROMPTS, Prompt
from mm_cca.sampling.python_inputs import (
    Picture,
    Size,
    count_of,
    device_of,
    grid_for,
    in_words,
    pixels_of,
    refuse_long,
    refuse_scale_and_dial,
    size_of,
    stream_of,
    texts_of,
    to_picture,
)

__all__ = ["ImageModel", "LogProbs", "decode", "encode", "generate", "load_run", "logprobs"]

Model: TypeAlias = ImageModel | UnifiedModel | str | Path


class LogProbs(NamedTuple):
    """log p(image | prompt) in nats, float32, on the CPU.

    Attributes:
        total: [B] of whole images, the sum over their codes.
        per_code: [B, N] of every code, in row order.
    """

    total: torch.Tensor
    per_code: torch.Tensor


def load_run(
    path: str | Path,
    *,
    source: str = "cca",
    adapter: str | None = None,
    dtype: str | None = None,
    image_tokenizer: str | None = None,
    tokenizer: str | None = None,
    device: str | torch.device | None = None,
) -> ImageModel:
    """Load what can draw, to use it for several calls.

    Args:
        path: a run folder, a folder that ``mm-cca export`` or ``save_pretrained`` wrote, a hub
            name, or ``emu3-emoji``. The family of a checkpoint is found by its config.json.
        source: of a run: ``cca`` (what its recipe trained), ``base`` or ``control``.
        adapter: the model family, or ``package.module:Class``; None: as the run, the export or
            the checkpoint says. So also the next three.
        dtype: float32, bfloat16 or float16.
        image_tokenizer: for checkpoints that lack it.
        tokenizer: of texts, for checkpoints that lack it.
        device: such as ``cpu`` or ``cuda:1``; None: a GPU if there is one.

    Raises:
        UserError: nothing there that can draw, a run that is not trained, a damaged checkpoint.
    """
    return open_model(
        path,
        source=source,
        device=device,
        keys={
            "adapter": adapter,
            "dtype": dtype,
            "image_tokenizer": image_tokenizer,
            "tokenizer": tokenizer,
        },
    )


def generate(
    model_or_run: Model,
    prompts: str | Sequence[str],
    *,
    seed: int | Sequence[int],
    guidance_scale: float = 1.0,
    dial: float = 1.0,
    num_images: int = 1,
    image_size: Size | None = None,
    negative_prompt: str | None = None,
    batch_size: int | None = None,
) -> list[Image.Image]:
    """Draw ``num_images`` images of every prompt, as ``mm-cca sample`` does.

    Image number i has the random numbers (seed, i), whatever the batch, guidance or dial: prompts
    of a file give the images that ``mm-cca sample`` draws for ``sample.prompts`` with the same
    ``sample.seed`` and ``sample.images_per_prompt``, up to rounding where batches differ.

    Args:
        model_or_run: see the top of this module.
        prompts: one or more; put into the run's ``sample.prompt_template``.
        seed: a whole number, or the pair in a line of a manifest: seed and number of the first
            image.
        guidance_scale: 1 is without guidance, one forward pass per code; above 1 takes two.
        dial: base + dial * (trained - base): 0 is the base, 1 as trained.
        num_images: of each prompt.
        image_size: height and width in pixels; None: the run's or the family's.
        negative_prompt: what guidance leads away from; None: the run's first one, or the
            unconditional prompt.
        batch_size: images at a time; None: ``sample.batch_size`` of the run, or 64. Where memory
            runs out it is halved.

    Returns:
        all images of the first prompt, then those of the second, and so on.

    Raises:
        UserError: a wrong value, a prompt that is too long, a dial where there is no base.
    """
    texts, (seed, first) = texts_of(prompts), stream_of(seed)
    num_images = count_of("num_images", num_images)
    refuse_scale_and_dial(guidance_scale, dial)
    opened = _opened(model_or_run)
    keys = opened.recipe.sample
    if batch_size is not None:
        keys = replace(keys, batch_size=count_of("batch_size", batch_size))
    model, size = opened.at(dial), size_of(opened, image_size)
    grid_for(model, size)
    refuse_long(opened, model, texts, size)
    recipe = replace(
        opened.recipe,
        sample=replace(keys, seed=seed),
        data=replace(opened.recipe.data, image_size=list(size)),
    )
    negative = keys.negative_prompts[0] if negative_prompt is None else negative_prompt
    arm = Arm("cca", float(guidance_scale), negative, dial=dial)
    repeated = [text for text in texts for _ in range(num_images)]
    todo = [Prompt(first + i, PROMPTS, i, text) for i, text in enumerate(repeated)]
    batches = draw_here(model, recipe, arm, todo)
    return [to_picture(pixels) for drawn in batches for pixels in drawn.pixels]


@torch.no_grad()
def encode(
    model: Model, images: Picture | Sequence[Picture], *, image_size: Size | None = None
) -> torch.Tensor:
    """Images to codes, as ``mm-cca prepare`` does.

    Args:
        model: see the top of this module.
        images: one or more PIL images or files, of any mode, all of one size.
        image_size: height and width that they must have; None: the run's, or for a plain
            checkpoint any that the family draws.

    Returns:
        [B, N] int64 codes in row order, on the CPU.

    Raises:
        UserError: a file that is no image, or an image of another size.
    """
    opened = _opened(model)
    found = opened.at()
    pixels, _ = pixels_of(opened, found, images, image_size)
    device = device_of(found)
    # One by one, so that the codes of an image do not depend on its neighbours.
    return torch.cat([found.encode(one.to(device)).cpu() for one in pixels.split(1)])


@torch.no_grad()
def decode(
    model: Model, codes: torch.Tensor | np.ndarray, *, image_size: Size | None = None
) -> list[Image.Image]:
    """Codes to images.

    Args:
        model: see the top of this module.
        codes: [B, N] or [N] whole numbers from 0 to K - 1, in row order.
        image_size: height and width in pixels; None: the run's or the family's.

    Raises:
        UserError: another number of codes than an image of that size has, or unknown codes.
    """
    opened = _opened(model)
    found = opened.at()
    size = size_of(opened, image_size)
    grid = grid_for(found, size)
    rows = torch.atleast_2d(torch.as_tensor(codes)).long()
    expected = found.layout(grid).num_codes
    if rows.ndim != 2 or rows.shape[1] != expected:
        raise UserError(
            f"codes has the shape {list(rows.shape)}; allowed for images of {in_words(size)} "
            f"pixels: [images, {expected}]."
        )
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < found.codebook_size:
        raise UserError(
            f"codes holds {int(rows.min())} to {int(rows.max())}; allowed: 0 to "
            f"{found.codebook_size - 1}."
        )
    device = device_of(found)
    # One by one, as in encode.
    return [to_picture(found.decode(row.to(device), grid)[0].cpu()) for row in rows.split(1)]


@torch.no_grad()
def logprobs(
    model: Model,
    prompts: str | Sequence[str],
    images: Picture | Sequence[Picture],
    *,
    dial: float = 1.0,
    image_size: Size | None = None,
    batch_size: int = 8,
) -> LogProbs:
    """Log-probabilities of images given prompts, over the image codes only (as in sampling).

    With a run whose ``loss.whole_vocabulary`` is true they are over the whole vocabulary, as it
    was trained. Temperature and truncation play no part. The size of the batch changes no more
    than rounding.

    Args:
        model: see the top of this module.
        prompts: one for every image, or a single text for all; put into ``sample.prompt_template``.
        images: see ``encode``.
        dial: see ``generate``.
        image_size: see ``encode``.
        batch_size: images at a time; halved where memory runs out.

    Raises:
        UserError: other numbers of prompts and images, or what ``encode`` and ``generate`` raise.
    """
    texts, batch_size = texts_of(prompts), count_of("batch_size", batch_size)
    refuse_scale_and_dial(1.0, dial)
    opened = _opened(model)
    found = opened.at(dial)
    pixels, size = pixels_of(opened, found, images, image_size)
    if isinstance(prompts, str):
        texts = texts * len(pixels)
    if len(texts) != len(pixels):
        raise UserError(
            f"there are {len(texts)} prompts and {len(pixels)} images; give one prompt per image, "
            "or a single text for all."
        )
    refuse_long(opened, found, texts, size)
    grid, device = grid_for(found, size), device_of(found)
    whole = opened.recipe.loss.whole_vocabulary
    policy = CodeLogProbs(found, found.layout(grid), whole_vocabulary=whole).eval()
    ids = found.prompt_ids(filled(opened.recipe.sample.prompt_template, texts), grid)

    def score(rows: list[int]) -> torch.Tensor:
        codes = torch.cat([found.encode(pixels[row : row + 1].to(device)) for row in rows])
        scored: Scored = policy(*right_pad([ids[i] for i in rows], found.pad_id).to(device), codes)
        return scored.per_code.cpu()

    per_code = torch.cat(list(in_batches(list(range(len(texts))), batch_size, score)))
    return LogProbs(per_code.sum(dim=1), per_code)


def _opened(model: Model) -> ImageModel:
    if isinstance(model, ImageModel):
        return model
    return load_run(model) if isinstance(model, str | Path) else wrapped(model)
