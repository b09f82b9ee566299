"""The prompts of a run: the same for all its arms."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.image_sizes import Size, size_text
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import MIN_IMAGES, Recipe
from mm_cca.data.buckets import sizes_of
from mm_cca.data.prompt_files import read_prompts, read_sizes
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder

PROMPTS = "prompts"
"""The split of prompts that come from a file."""


@dataclass(frozen=True)
class Prompt:
    """A caption to draw an image of.

    Attributes:
        index: number of the image: of its file and its random stream.
        split: name of the split of the data, or ``PROMPTS``.
        row: row in the split's token cache, or in the file of prompts.
        caption: the text.
        size: height and width to draw; None: ``data.image_size``.
    """

    index: int
    split: str
    row: int
    caption: str
    size: Size | None = None


def splits_of(recipe: Recipe) -> list[str]:
    """The splits that are sampled and scored: those of the data, or ``PROMPTS``."""
    if recipe.sample.prompts is not None:
        return [PROMPTS]
    names = (recipe.data.train_split, recipe.data.heldout_split)
    return [name for name in names if name is not None]


def has_real_images(recipe: Recipe) -> bool:
    """Whether the prompts have real images; prompts from a file have none."""
    return recipe.sample.prompts is None


def prompts_of(recipe: Recipe, run: RunFolder) -> list[Prompt]:
    """A seeded sample of ``sample.num_images`` captions per split, or all prompts of a file.

    At most half of a split is used: the images of the other half are the reference of Fréchet
    distances, both for the arms and for the distance between real images. Every prompt is repeated
    ``sample.images_per_prompt`` times in a row, each time with its own index and random stream.
    With buckets a caption is drawn at the size of its own picture.
    """
    prompts: list[tuple[str, int, str, Size | None]] = []
    if recipe.sample.prompts is not None:
        texts = read_prompts(recipe.sample.prompts)
        sizes: list[Size | None] = [None] * len(texts)
        if recipe.data.buckets:
            sizes = read_sizes(recipe.sample.prompts)
        found = zip(texts, sizes, strict=True)
        prompts = [(PROMPTS, row, *prompt) for row, prompt in enumerate(found)]
    else:
        for split, rows, cache in _splits(recipe, run):
            chosen = rows[: min(recipe.sample.num_images, len(rows) // 2)].tolist()
            prompts += [(split, row, cache.captions[row], _size(cache, row)) for row in chosen]
    repeated = [prompt for prompt in prompts for _ in range(recipe.sample.images_per_prompt)]
    return [Prompt(index, *prompt) for index, prompt in enumerate(repeated)]


def preview_prompts(recipe: Recipe, run: RunFolder) -> list[tuple[int, str]]:
    """Number of the random stream and text of every prompt of the previews; empty without previews.

    Prompts that are sampled have the random numbers of their arms' images.
    """
    keys = recipe.sample
    if keys.every is None:
        return []
    if keys.preview_prompts:
        return list(enumerate(keys.preview_prompts))
    prompts = prompts_of(recipe, run)[:: keys.images_per_prompt]
    heldout = [prompt for prompt in prompts if prompt.split == recipe.data.heldout_split]
    return [(prompt.index, prompt.caption) for prompt in (heldout or prompts)[: keys.num_previews]]


def refuse_few_prompts(recipe: Recipe, prompts: list[Prompt]) -> None:
    """Raises UserError if a file has fewer prompts than scores need."""
    count = len(prompts)
    if not has_real_images(recipe) and count < MIN_IMAGES:
        raise UserError(
            f"sample.prompts {recipe.sample.prompts!r} gives {count} images; scores need at least "
            f"{MIN_IMAGES}. Add prompts, raise sample.images_per_prompt, or remove eval from "
            "run.stages."
        )


def by_size(prompts: Sequence[Prompt], recipe: Recipe) -> dict[Size, list[Prompt]]:
    """The prompts of every image size, in the order in which sizes appear."""
    height, width = recipe.data.image_size
    found: dict[Size, list[Prompt]] = {}
    for prompt in prompts:
        found.setdefault(prompt.size or (height, width), []).append(prompt)
    return found


def refuse_unfit_prompts(model: UnifiedModel, recipe: Recipe, prompts: list[Prompt]) -> None:
    """Raises UserError if a prompt has a size that is none of the recipe's, or leaves no room for
    the image among the decoder's positions."""
    sizes = sizes_of(model, recipe.data)
    for size, of_size in by_size(prompts, recipe).items():
        if size not in sizes:
            listed = ", ".join(map(size_text, sizes))
            raise UserError(
                f"{recipe.sample.prompts}: the prompt of row {of_size[0].row} wants an image of "
                f"{size_text(size)} pixels (height x width), but data.image_size and data.buckets "
                f"are {listed}."
            )
        _refuse_long(model, recipe, of_size, size)


def _refuse_long(model: UnifiedModel, recipe: Recipe, prompts: list[Prompt], size: Size) -> None:
    grid = grid_of(model, size)
    room = model.max_tokens - len(model.layout(grid).tokens)
    distinct = list({prompt.caption: prompt for prompt in prompts}.values())
    texts = filled(recipe.sample.prompt_template, (prompt.caption for prompt in distinct))
    lengths = [len(ids) for ids in model.prompt_ids(texts, grid)]
    longest = int(np.argmax(lengths))
    if lengths[longest] > room:
        where = recipe.sample.prompts or f"split {distinct[longest].split!r}"
        raise UserError(
            f"{sum(length > room for length in lengths)} prompts are too long, such as that of row "
            f"{distinct[longest].row} of {where}: {lengths[longest]} tokens, but an image of "
            f"{list(size)} leaves {room} of {model.max_tokens}. Shorten or remove them."
        )


def refuse_few_rows(split: str, usable: int) -> None:
    """Raises UserError if a split has fewer rows than its scores need prompts and references."""
    if usable < 2 * MIN_IMAGES:
        raise UserError(
            f"split {split!r} has {usable} usable images; scores need at least {MIN_IMAGES} "
            f"prompts and as many images to compare with, so {2 * MIN_IMAGES}. Add images, or "
            "leave eval and report out of run.stages."
        )


def reference_rows(recipe: Recipe, run: RunFolder, split: str) -> np.ndarray:
    """Shuffled rows of a split that are not used as prompts, ``eval.reference_images`` at most."""
    for name, rows, _ in _splits(recipe, run):
        if name == split:
            rest = rows[min(recipe.sample.num_images, len(rows) // 2) :]
            return rest[: recipe.eval.reference_images]
    raise KeyError(split)


def _size(cache: TokenCache, row: int) -> Size | None:
    if cache.sizes is None:
        return None
    height, width = cache.sizes[row].tolist()
    return height, width


def _splits(recipe: Recipe, run: RunFolder) -> list[tuple[str, np.ndarray, TokenCache]]:
    """Name, shuffled rows and token cache of each split."""
    splits = []
    for number, name in enumerate(splits_of(recipe)):
        cache = open_cache(run.tokens / name, recipe.data.variants)
        stream = np.random.default_rng([recipe.sample.seed, number, 0x7072])
        splits.append((name, stream.permutation(len(cache)), cache))
    return splits
