"""``prepare``: fill the token cache of every split, draw pictures for ddo, fill the reference
cache."""

from contextlib import nullcontext
from dataclasses import replace

from accelerate import PartialState

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.keys import SHARDS, TOKENS
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import STEPS_DONE, settings_of, training_settings
from mm_cca.data.images import load_split
from mm_cca.data.token_cache import open_cache, prepare_split
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage, locked
from mm_cca.sampling.prompts import has_real_images
from mm_cca.training.cached_reference import prepare_reference
from mm_cca.training.drawn_pictures import drawn_folder, prepare_drawn
from mm_cca.training.schedule import check_plan, training_schedule


def prepare(recipe: Recipe, run: RunFolder) -> None:
    """Fill the token cache of every split the recipe names and, if needed, the base's pictures
    (``ddo``) and the reference cache.
    """
    if recipe.run.trained is not None and not has_real_images(recipe):
        return  # nothing is trained, and the prompts come from a file
    prepare_tokens(recipe, run)
    terms, trains = LossTerms.of(recipe.loss), "cca" in recipe.run.sources
    needs_cache = recipe.train.reference == "cached" and terms.needs_reference
    # After training neither is needed any longer; deleted ones are not made again.
    if not (trains and (needs_cache or terms.needs_drawn)) or _has_trained(recipe, run):
        return
    if terms.needs_drawn:
        _prepare_drawn(recipe, run)
    if needs_cache:
        with locked(run.reference) if PartialState().is_main_process else nullcontext():
            prepare_reference(recipe, run)


def _prepare_drawn(recipe: Recipe, run: RunFolder) -> None:
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    # The order of the images does not depend on their negative captions.
    schedule = training_schedule(recipe, cache, LossTerms.of(replace(recipe.loss, objective="nll")))
    folder = drawn_folder(recipe, run)
    with locked(folder) if PartialState().is_main_process else nullcontext():
        prepare_drawn(recipe, run, schedule, lambda: frozen_model(recipe))
    PartialState().wait_for_everyone()


def _trains_on_negatives(recipe: Recipe) -> bool:
    trains = "train" in recipe.run.stages and "cca" in recipe.run.sources
    return trains and LossTerms.of(recipe.loss).needs_negatives


def prepare_tokens(recipe: Recipe, run: RunFolder) -> None:
    """Fill the token cache of every split the recipe names.

    Raises:
        UserError: unreadable data, captions without possible negatives, a changed recipe.
    """
    for split in (recipe.data.train_split, recipe.data.heldout_split):
        if split is None:
            continue
        stage = Stage(
            run.tokens / split,
            settings_of(TOKENS, recipe) | {"split": split},
            until_done=settings_of(SHARDS, recipe),
        )
        if stage.is_done():
            continue
        if split == recipe.data.train_split and _trains_on_negatives(recipe):
            # Fail before hours of encoding if no negatives can be built or packages are missing.
            check_plan(recipe, load_split(recipe.data, split).captions)
        # Only the main rank writes stage.json; all ranks reach the same decisions.
        with locked(stage.folder) if PartialState().is_main_process else nullcontext():
            if PartialState().is_main_process:
                stage.begin()
            prepare_split(
                lambda: frozen_model(recipe), recipe.data, split, stage.folder / "shards", 0
            )
            if PartialState().is_main_process:
                stage.finish()
        PartialState().wait_for_everyone()


def frozen_model(recipe: Recipe) -> UnifiedModel:
    """The recipe's checkpoint for encoding and sampling, on this rank's device.

    Raises:
        UserError: it can't be read, or does not support ``data.image_size``.
    """
    model = load_checkpoint(recipe.model)
    model.layout(grid_of(model, recipe.data.image_size))
    model.module.eval().requires_grad_(False).to(PartialState().device)
    return model


def _has_trained(recipe: Recipe, run: RunFolder) -> bool:
    """Whether training is finished, here or in ``run.trained``."""
    if recipe.run.trained is not None:
        return True
    stage = Stage(run.train, training_settings(recipe), grows=STEPS_DONE)
    # Refuse a changed recipe before the reference of additional steps is computed.
    return stage.is_done() if stage.is_extended() else Stage.ended(run.train)
