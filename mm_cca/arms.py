"""The arms that are compared, and the prompts that all of them draw."""

from dataclasses import dataclass

import numpy as np

from mm_cca.run import RunFolder
from mm_cca.schema import Recipe
from mm_cca.tokens import open_cache

SOURCES = ("base", "cca", "control")


@dataclass(frozen=True)
class Arm:
    """One way of drawing: which weights, with how much guidance."""

    source: str
    guidance_scale: float

    @property
    def name(self) -> str:
        if self.guidance_scale == 1.0:
            return self.source
        return f"{self.source}+cfg{self.guidance_scale:g}"


@dataclass(frozen=True)
class Prompt:
    """A caption to draw; ``index`` also numbers the random stream and the file."""

    index: int
    split: str
    row: int
    caption: str


def arms_of(recipe: Recipe) -> list[Arm]:
    """Every arm of a recipe, base first."""
    arms = [Arm("base", 1.0), *(Arm("base", s) for s in recipe.sample.guidance_scales)]
    arms.append(Arm("cca", 1.0))
    if recipe.train.control:
        arms += [Arm("control", 1.0), *(Arm("control", s) for s in recipe.sample.control_scales)]
    return arms


def prompts_of(recipe: Recipe, run: RunFolder) -> list[Prompt]:
    """``sample.num_images`` captions of each split, drawn by seed.

    At most half of a split is drawn: the other half's images are what Frechet distances compare
    with, for the arms and for the real-against-real floor alike.
    """
    prompts: list[Prompt] = []
    for split, rows, captions in _splits(recipe, run):
        chosen = rows[: min(recipe.sample.num_images, len(rows) // 2)]
        for row in chosen.tolist():
            prompts.append(Prompt(len(prompts), split, row, captions[row]))
    return prompts


def reference_rows(recipe: Recipe, run: RunFolder, split: str) -> np.ndarray:
    """Rows of a split that no prompt was drawn from."""
    for name, rows, _ in _splits(recipe, run):
        if name == split:
            return rows[min(recipe.sample.num_images, len(rows) // 2) :]
    raise KeyError(split)


def _splits(recipe: Recipe, run: RunFolder) -> list[tuple[str, np.ndarray, list[str]]]:
    """Name, shuffled rows and captions of each split."""
    found = []
    names = [recipe.data.train_split, recipe.data.heldout_split]
    for number, name in enumerate(n for n in names if n is not None):
        captions = open_cache(run.tokens / name, recipe.data.variants).captions
        stream = np.random.default_rng([recipe.sample.seed, number, 0x7072])
        found.append((name, stream.permutation(len(captions)), captions))
    return found
