"""What ``mm-cca run`` does with a recipe: its stages, one after the other, in a locked folder."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict

import datasets
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import STAGES, AnyRecipe, Recipe, ScorerRecipe, TokenizerRecipe
from mm_cca.config.stage_keys import NOT_ABOUT_TOKENS
from mm_cca.data.images import load_split
from mm_cca.data.token_cache import prepare_split
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder, recipe_of_training
from mm_cca.runs.stage import Stage, locked
from mm_cca.sampling.prompts import has_real_images
from mm_cca.training.cached_reference import prepare_reference
from mm_cca.training.schedule import check_plan


def run_job(recipe: AnyRecipe, stages: Sequence[str]) -> None:
    """Do the named stages in their order.

    Raises:
        UserError: a user's mistake, in words.
    """
    if isinstance(recipe, Recipe):
        recipe_of_training(recipe)  # raises where run.trained is no run of this model
        if recipe.run.trained is not None and list(stages) == ["train"]:
            raise UserError(
                f"run.trained is {recipe.run.trained!r}, so nothing is trained here. Leave it out "
                "to train, or name another stage."
            )
    _quiet()
    run = RunFolder.of(recipe)
    # accelerate reads this only later, when the ranks have already failed to find each other.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.is_main_process:
        with locked(run.root):
            run.describe(recipe)
            _dispatch(recipe, run, stages)
    else:
        _dispatch(recipe, run, stages)
    # Scores and report are the main rank's work; the others must not leave before it is done.
    state.wait_for_everyone()
    state.destroy_process_group()


def sweep_job(path_or_name: str, overrides: Sequence[str]) -> None:
    """Train, draw and score every point of a sweep, and write ``sweep.json`` and ``sweep.html``.

    Raises:
        UserError: nothing to sweep, wrong values, or what a stage raises.
    """
    from mm_cca.config.sweep_grid import plan_sweep
    from mm_cca.eval.sweeps import write_sweep
    from mm_cca.sweep import diverged, run_sweep

    sweep = plan_sweep(path_or_name, overrides)
    _quiet()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    with locked(sweep.root) if state.is_main_process else nullcontext():
        run_sweep(sweep, _dispatch)
        if state.is_main_process:
            write_sweep(sweep, diverged(sweep))
    state.wait_for_everyone()
    state.destroy_process_group()


def suggest_constants(recipe: AnyRecipe, num_pairs: int, scale: float | None) -> str:
    """Measure the base and name a beta and a lambda to start with.

    Raises:
        UserError: another job's recipe, no pair to measure on, or what ``prepare`` raises.
    """
    from mm_cca.suggest import explain, measure, suggest

    if not isinstance(recipe, Recipe):
        raise UserError(f"a {recipe.job} recipe has no beta; name a finetune recipe.")
    if num_pairs < 2:
        raise UserError(f"--pairs is {num_pairs}; allowed: 2 or more.")
    if scale is not None and scale <= 1:
        raise UserError(f"--scale is {scale:g}; allowed: more than 1, which is no guidance.")
    _quiet()
    run = RunFolder.of(recipe)
    with locked(run.root):
        _prepare_tokens(recipe, run)
        measured = measure(recipe, run, num_pairs)
    return explain(measured, suggest(measured, scale or measured.usual_scale))


def _quiet() -> None:
    for noisy in ("transformers", "datasets", "accelerate", "open_clip", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # Their bars for reading and writing files would hide ours for the work itself.
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def _dispatch(recipe: AnyRecipe, run: RunFolder, stages: Sequence[str]) -> None:
    if isinstance(recipe, TokenizerRecipe | ScorerRecipe):
        from mm_cca.demo.jobs import train_demo_part

        if "train" not in stages:
            raise UserError(f"a {recipe.job} recipe has one stage, train.")
        train_demo_part(recipe, run)
        return
    todo: dict[str, Callable[[Recipe, RunFolder], None]] = {
        "prepare": prepare,
        "train": _train,
        "sample": _sample,
        "eval": _evaluate,
        "report": _report,
    }
    for stage in STAGES:
        if stage in stages:
            todo[stage](recipe, run)


def prepare(recipe: Recipe, run: RunFolder) -> None:
    """Fill the token cache of every split the recipe names, and the reference cache if wanted."""
    if recipe.run.trained is not None and not has_real_images(recipe):
        return  # nothing is trained, and prompts from a file are drawn
    _prepare_tokens(recipe, run)
    wanted = "cca" in recipe.run.sources and LossTerms.of(recipe.loss).needs_negatives
    # Once training is done the cache has served; whoever deletes it gets no new one.
    if recipe.train.reference == "cached" and wanted and not Stage.ended(run.train):
        with locked(run.reference) if PartialState().is_main_process else nullcontext():
            prepare_reference(recipe, run)


def _trains_on_negatives(recipe: Recipe) -> bool:
    trains = "train" in recipe.run.stages and "cca" in recipe.run.sources
    return trains and LossTerms.of(recipe.loss).needs_negatives


def _prepare_tokens(recipe: Recipe, run: RunFolder) -> None:
    for split in (recipe.data.train_split, recipe.data.heldout_split):
        if split is None:
            continue
        data = asdict(recipe.data)
        for free in NOT_ABOUT_TOKENS:
            del data[free]
        settings = {f"data.{key}": value for key, value in data.items()}
        settings |= {"split": split}
        settings |= {f"model.{key}": value for key, value in asdict(recipe.model).items()}
        stage = Stage(run.tokens / split, settings)
        if stage.is_done():
            continue
        if split == recipe.data.train_split and _trains_on_negatives(recipe):
            # Before hours of work: captions that can't be contrasted, packages that are missing.
            check_plan(recipe, load_split(recipe.data, split).captions)
        # Only the main rank writes; the others find the same answer and follow it.
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
        UserError: it can't be read, or can't draw images of ``data.image_size``.
    """
    model = load_checkpoint(recipe.model)
    model.layout(grid_of(model, recipe.data.image_size))
    model.module.eval().requires_grad_(False).to(PartialState().device)
    return model


def _train(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.training.train import train

    if recipe.run.trained is not None:
        return  # done there
    if "cca" in recipe.run.sources:
        train(recipe, run)
    if recipe.train.control and "control" in recipe.run.sources:
        train(recipe, run, control=True)


def _sample(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.sampling.draw import sample_arms

    sample_arms(recipe, run)


def _evaluate(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.eval.protocol import evaluate_arms

    evaluate_arms(recipe, run)


def _report(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.eval.report import write_report

    write_report(recipe, run)
