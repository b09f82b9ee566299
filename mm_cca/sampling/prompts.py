"""The prompts that all arms draw."""

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
    """A caption to draw.

    Attributes:
        index: numbers the random stream and the file.
        split: of the data, or ``PROMPTS``.
        row: of the split's token cache, or of the file of prompts.
        caption: the text.
    """

    index: int
    split: str
    row: int
    caption: str


def splits_of(recipe: Recipe) -> list[str]:
    """The splits that are drawn and scored: those of the data, or one of prompts from a file."""
    if recipe.sample.prompts is not None:
        return [PROMPTS]
    names = (recipe.data.train_split, recipe.data.heldout_split)
    return [name for name in names if name is not None]


def has_real_images(recipe: Recipe) -> bool:
    """Whether every prompt has a real image; prompts from a file have none."""
    return recipe.sample.prompts is None


def prompts_of(recipe: Recipe, run: RunFolder) -> list[Prompt]:
    """``sample.num_images`` captions of each split, drawn by seed, or all of a file of prompts.

    At most half of a split is drawn: the other half's images are what Frechet distances compare
    with, for the arms and for the real-against-real floor alike. With ``sample.images_per_prompt``
    above 1 a prompt comes so many times in a row, each time with a random stream of its own.
    """
    found: list[tuple[str, int, str]] = []
    if recipe.sample.prompts is not None:
        texts = read_prompts(recipe.sample.prompts)
        found = [(PROMPTS, row, text) for row, text in enumerate(texts)]
    else:
        for split, rows, captions in _splits(recipe, run):
            chosen = rows[: min(recipe.sample.num_images, len(rows) // 2)]
            found += [(split, row, captions[row]) for row in chosen.tolist()]
    repeated = [prompt for prompt in found for _ in range(recipe.sample.images_per_prompt)]
    return [Prompt(index, *prompt) for index, prompt in enumerate(repeated)]


def refuse_few_prompts(recipe: Recipe, prompts: list[Prompt]) -> None:
    """Raises UserError where a file holds fewer prompts than scores need."""
    count = len(prompts)
    if not has_real_images(recipe) and count < MIN_IMAGES:
        raise UserError(
            f"sample.prompts {recipe.sample.prompts!r} gives {count} images; scores need at least "
            f"{MIN_IMAGES}. Add prompts, raise sample.images_per_prompt, or take eval out of "
            "run.stages."
        )


def reference_rows(recipe: Recipe, run: RunFolder, split: str) -> np.ndarray:
    """Rows of a split that no prompt was drawn from."""
    for name, rows, _ in _splits(recipe, run):
        if name == split:
            return rows[min(recipe.sample.num_images, len(rows) // 2) :]
    raise KeyError(split)


def _splits(recipe: Recipe, run: RunFolder) -> list[tuple[str, np.ndarray, list[str]]]:
    """Name, shuffled rows and captions of each split."""
    found = []
    for number, name in enumerate(splits_of(recipe)):
        captions = open_cache(run.tokens / name, recipe.data.variants).captions
        stream = np.random.default_rng([recipe.sample.seed, number, 0x7072])
        found.append((name, stream.permutation(len(captions)), captions))
    return found
