"""The order of training and its negatives, from a recipe."""

import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from mm_cca.batches import Schedule
from mm_cca.config.mixtures import LossTerms, parse_sum
from mm_cca.config.schema import Recipe
from mm_cca.data.token_cache import TokenCache
from mm_cca.errors import UserError
from mm_cca.negatives import KINDS, EpochPlan, NegativeSettings, Planner, write_plan
from mm_cca.negatives.embed import check_installed
from mm_cca.runs.files import write_json


class PlanKeeper:
    """Writes the plan of every epoch beside the training that uses it.

    ``epoch-0000.parquet`` is what was contrasted with what, ``epoch-0000.json`` how many planned
    negatives were replaced, and why.
    """

    def __init__(self, folder: Path, cache: TokenCache, *, show: bool) -> None:
        self._folder = folder
        self._cache = cache
        self.show = show

    def __call__(self, epoch: int, plan: EpochPlan) -> None:
        """Raises UserError on a full disk."""
        if not self.show:  # another rank writes
            return
        path = self._folder / f"epoch-{epoch:04d}.parquet"
        try:
            write_plan(path, plan, self._cache.captions, self._cache.source_rows)
            write_json(path.with_suffix(".json"), plan.replaced)
        except OSError as error:
            raise UserError(f"{path} can't be written: {error}. Free some space.") from error
        if any(plan.replaced.values()):
            why = ", ".join(f"{count} {reason}" for reason, count in plan.replaced.items() if count)
            tqdm.write(f"negatives replaced in epoch {epoch}: {why}", file=sys.stderr)


def negative_settings(recipe: Recipe) -> NegativeSettings:
    """The recipe's keys as the planner takes them."""
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
    """Raises UserError where no plan can be made of these captions.

    The search for similar ones may take minutes and is left to training; whether its packages are
    there is seen here.
    """
    settings = negative_settings(recipe)
    if "hard" in settings.mixture:
        settings = replace(settings, mixture={"shuffle": 1.0})
        check_installed(settings.embedding)
    Planner(captions, replace(settings, embedding="tfidf"), seed=recipe.train.seed)


def training_schedule(
    recipe: Recipe, cache: TokenCache, terms: LossTerms, keeper: PlanKeeper | None = None
) -> Schedule:
    """The steps of a recipe; negatives are planned only where the loss looks at them.

    Args:
        recipe: a validated recipe.
        cache: of the train split.
        terms: of the loss.
        keeper: writes every plan down.

    Raises:
        UserError: a batch larger than the data, or captions that negatives can't be made of.
    """
    planner = None
    if terms.needs_negatives:
        show = keeper is not None and keeper.show
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
        on_plan=keeper,
    )
