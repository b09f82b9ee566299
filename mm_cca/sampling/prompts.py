"""The prompts of a run: the same for all its arms."""

from dataclasses import dataclass

import numpy as np

from mm_cca.config.schema import MIN_IMAGES, Recipe
from mm_cca.data.prompt_files import read_prompts
from mm_cca.data.token_cache import open_cache
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
    """

    index: int
    split: str
    row: int
    caption: str


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
    """
    prompts: list[tuple[str, int, str]] = []
    if recipe.sample.prompts is not None:
        texts = read_prompts(recipe.sample.prompts)
        prompts = [(PROMPTS, row, text) for row, text in enumerate(texts)]
    else:
        for split, rows, captions in _splits(recipe, run):
            chosen = rows[: min(recipe.sample.num_images, len(rows) // 2)]
            prompts += [(split, row, captions[row]) for row in chosen.tolist()]
    repeated = [prompt for prompt in prompts for _ in range(recipe.sample.images_per_prompt)]
    return [Prompt(index, *prompt) for index, prompt in enumerate(repeated)]


def refuse_few_prompts(recipe: Recipe, prompts: list[Prompt]) -> None:
    """Raises UserError if a file has fewer prompts than scores need."""
    count = len(prompts)
    if not has_real_images(recipe) and count < MIN_IMAGES:
        raise UserError(
            f"sample.prompts {recipe.sample.prompts!r} gives {count} images; scores need at least "
            f"{MIN_IMAGES}. Add prompts, raise sample.images_per_prompt, or remove eval from "
            "run.stages."
        )


def reference_rows(recipe: Recipe, run: RunFolder, split: str) -> np.ndarray:
    """Shuffled rows of a split that are not used as prompts, ``eval.reference_images`` at most."""
    for name, rows, _ in _splits(recipe, run):
        if name == split:
            rest = rows[min(recipe.sample.num_images, len(rows) // 2) :]
            return rest[: recipe.eval.reference_images]
    raise KeyError(split)


def _splits(recipe: Recipe, run: RunFolder) -> list[tuple[str, np.ndarray, list[str]]]:
    """Name, shuffled rows and captions of each split."""
    splits = []
    for number, name in enumerate(splits_of(recipe)):
        captions = open_cache(run.tokens / name, recipe.data.variants).captions
        stream = np.random.default_rng([recipe.sample.seed, number, 0x7072])
        splits.append((name, stream.permutation(len(captions)), captions))
    return splits
