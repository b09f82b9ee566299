"""The pairs of every step: the order of training and its negatives, from a recipe."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mm_cca.config.mixtures import LossTerms, parse_sum
from mm_cca.config.schema import Recipe
from mm_cca.data.token_cache import TokenCache
from mm_cca.errors import UserError
from mm_cca.negatives import KINDS, EpochPlan, NegativeSettings, Planner, write_plan
from mm_cca.negatives.embed import check_installed
from mm_cca.runs.files import atomic_path, write_json


@dataclass(frozen=True)
class Pairs:
    """The pairs of one optimizer step, or of a part of it.

    Attributes:
        start: index of the first pair in the order of training, counted from step 0.
        rows: [B] data row of each image (and of its own caption).
        negatives: [B, m] object array of the negative captions; m is 0 if none are planned.
        variants: [B] which augmented variant of the image.
        dropped: [B] whether all prompts are replaced by the unconditional prompt.
    """

    start: int
    rows: np.ndarray
    negatives: np.ndarray
    variants: np.ndarray
    dropped: np.ndarray

    def part(self, first: int, last: int) -> "Pairs":
        """Pairs ``first`` to ``last``, excluding ``last``."""
        arrays = (self.rows, self.negatives, self.variants, self.dropped)
        return Pairs(self.start + first, *(array[first:last] for array in arrays))


class Schedule:
    """Steps of ``batch_size`` pairs; order and negatives are new in every epoch."""

    def __init__(
        self,
        captions: list[str],
        *,
        batch_size: int,
        num_variants: int,
        uncond_ratio: float,
        planner: Planner | None,
        seed: int,
        on_plan: Callable[[int, EpochPlan], None] | None = None,
    ) -> None:
        """Without a ``planner`` there are no negatives.

        Args:
            on_plan: called with the number and the plan of every new epoch.

        Raises:
            UserError: a batch larger than the data.
        """
        if batch_size > len(captions):
            raise UserError(
                f"train.batch_size is {batch_size}, but there are only {len(captions)} usable "
                f"images; allowed: 1 to {len(captions)}."
            )
        self.batch_size = batch_size
        self._captions = captions
        self._num_variants = num_variants
        self._uncond_ratio = uncond_ratio
        self._planner = planner
        self._seed = seed
        self._on_plan = on_plan
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> Pairs:
        n = len(self._captions)
        stream = np.random.default_rng([self._seed, epoch, 0x6F72])
        order = stream.permutation(n)
        variants = stream.integers(0, self._num_variants, n)
        dropped = stream.random(n) < self._uncond_ratio
        if self._planner is None:
            planned = np.empty((n, 0), dtype=object)
        else:
            plan = self._planner.epoch(epoch)
            planned = plan.negatives
            if self._on_plan is not None:
                self._on_plan(epoch, plan)
        return Pairs(epoch * n, order, planned[order], variants[order], dropped[order])

    def step(self, step: int) -> Pairs:
        """The pairs of step 0, 1, 2, ...; a step may span two epochs."""
        start = step * self.batch_size
        places = np.arange(start, start + self.batch_size)
        epochs, offsets = np.divmod(places, len(self._captions))
        parts = []
        for epoch in np.unique(epochs).tolist():
            inside = offsets[epochs == epoch]
            parts.append(self._epoch(epoch).part(int(inside[0]), int(inside[-1]) + 1))
        return Pairs(
            start,
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("rows", "negatives", "variants", "dropped")
            ),
        )


class PlanWriter:
    """Writes the negatives of every epoch into the folder of the training.

    ``epoch-0000.parquet`` lists them, ``epoch-0000.json`` counts the replaced ones by reason.
    """

    def __init__(self, folder: Path, cache: TokenCache, *, show: bool) -> None:
        self._folder = folder
        self._cache = cache
        self.show = show

    def __call__(self, epoch: int, plan: EpochPlan) -> None:
        """Write the plan of an epoch. Raises UserError on a full disk."""
        if not self.show:  # another rank writes
            return
        path = self._folder / f"epoch-{epoch:04d}.parquet"
        try:
            with atomic_path(path) as temporary:
                write_plan(temporary, plan, self._cache.captions, self._cache.source_rows)
            write_json(path.with_suffix(".json"), plan.replaced)
        except OSError as error:
            raise UserError(f"{path} can't be written: {error}. Free some space.") from error
        if any(plan.replaced.values()):
            counts = [f"{count} {reason}" for reason, count in plan.replaced.items() if count]
            tqdm.write(f"negatives replaced in epoch {epoch}: {', '.join(counts)}", file=sys.stderr)


def negative_settings(recipe: Recipe) -> NegativeSettings:
    """The planner's settings from the recipe's keys."""
    loss = recipe.loss
    return NegativeSettings(
        mixture=parse_sum(loss.negatives, KINDS),
        num_negatives=loss.num_negatives,
        embedding=loss.negatives_embedding,
        candidates=loss.hard_candidates,
        max_similarity=loss.max_similarity,
        words=recipe.data.attribute_words,
    )


def check_plan(recipe: Recipe, captions: list[str]) -> None:
    """Raises UserError if no negatives can be built from these captions.

    The search for similar captions may take minutes and is left to training; only its packages are
    checked here.
    """
    settings = negative_settings(recipe)
    if "hard" in settings.mixture:
        settings = replace(settings, mixture={"shuffle": 1.0})
        check_installed(settings.embedding)
    Planner(captions, replace(settings, embedding="tfidf"), seed=recipe.train.seed)


def training_schedule(
    recipe: Recipe, cache: TokenCache, terms: LossTerms, plan_writer: PlanWriter | None = None
) -> Schedule:
    """The steps of a recipe; negatives are planned only if the loss needs them.

    Args:
        recipe: a validated recipe.
        cache: of the train split.
        terms: of the loss.
        plan_writer: writes the plan of every epoch.

    Raises:
        UserError: a batch larger than the data, or captions from which no negatives can be built.
    """
    planner = None
    if terms.needs_negatives:
        show = plan_writer is not None and plan_writer.show
        planner = Planner(
            cache.captions, negative_settings(recipe), seed=recipe.train.seed, show=show
        )
    return Schedule(
        cache.captions,
        batch_size=recipe.train.batch_size,
        num_variants=cache.num_variants,
        uncond_ratio=recipe.loss.uncond_ratio,
        planner=planner,
        seed=recipe.train.seed,
        on_plan=plan_writer,
    )
