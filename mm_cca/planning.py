"""The order of training and its negatives, from a recipe."""

from collections.abc import Callable

from mm_cca.batches import Schedule
from mm_cca.losses import LossTerms
from mm_cca.negatives import KINDS, EpochPlan, NegativeSettings, Planner
from mm_cca.schema import Recipe
from mm_cca.sums import parse_sum
from mm_cca.tokens import TokenCache


def training_schedule(
    recipe: Recipe,
    cache: TokenCache,
    terms: LossTerms,
    on_plan: Callable[[int, EpochPlan], None] | None = None,
) -> Schedule:
    """The steps of a recipe; negatives are planned only where the loss looks at them.

    Args:
        recipe: a validated recipe.
        cache: of the train split.
        terms: of the loss.
        on_plan: told every epoch and its plan when it is made.

    Raises:
        UserError: a batch larger than the data, or captions that negatives can't be made of.
    """
    loss, seed = recipe.loss, recipe.train.seed
    planner = None
    if terms.needs_negatives:
        settings = NegativeSettings(
            mixture=parse_sum(loss.negatives, KINDS),
            num_negatives=loss.num_negatives,
            embedding=loss.negatives_embedding,
            candidates=loss.hard_candidates,
            max_similarity=loss.max_similarity,
            words=recipe.data.attribute_words,
        )
        planner = Planner(cache.captions, settings, seed=seed)
    schedule = Schedule(
        cache.captions,
        batch_size=recipe.train.batch_size,
        num_variants=cache.num_variants,
        uncond_ratio=loss.uncond_ratio,
        planner=planner,
        seed=seed,
        on_plan=on_plan,
    )
    return schedule
