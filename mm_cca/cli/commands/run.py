"""``mm-cca run``: the stages of a recipe, one after the other, in a locked folder."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from mm_cca.cli.commands.acceptance import accept
from mm_cca.cli.commands.prepare import prepare
from mm_cca.cli.commands.quiet import quiet_libraries
from mm_cca.config.schema import STAGES, AnyRecipe, Recipe, ScorerRecipe, TokenizerRecipe
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder, recipe_of_training
from mm_cca.runs.stage import Stage, locked
from mm_cca.runs.threads import use_free_cores


def run_job(recipe: AnyRecipe, stages: Sequence[str]) -> None:
    """Run the named stages in their order.

    Raises:
        UserError: a user's mistake.
    """
    if isinstance(recipe, Recipe):
        recipe_of_training(recipe)  # raises if run.trained is not a run of this model
        if recipe.run.trained is not None and list(stages) == ["train"]:
            raise UserError(
                f"run.trained is {recipe.run.trained!r}, so nothing is trained here. Leave it out "
                "to train, or run another stage."
            )
    quiet_libraries()
    run = RunFolder.of(recipe)
    if isinstance(recipe, Recipe) and "train" in stages:
        _refuse_previews_of_shards(recipe, run)
    # accelerate would read this variable only after the ranks have failed to connect.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.device.type == "cpu" and state.num_processes == 1:
        use_free_cores(run.root)
    with locked(run.root) if state.is_main_process else nullcontext():
        if isinstance(recipe, Recipe):
            accept(recipe, run, stages)
            state.wait_for_everyone()  # all ranks have read what the main rank may now change
        run_stages(recipe, run, stages)
        if state.is_main_process:
            run.describe(recipe)  # keys that decide no stage may be others
    # The main rank writes scores and report; the others wait for it.
    state.wait_for_everyone()
    state.destroy_process_group()


def _refuse_previews_of_shards(recipe: Recipe, run: RunFolder) -> None:
    """As training itself does, but before ``prepare`` reads weights or encodes images."""
    draws = recipe.sample.every is not None and "cca" in recipe.run.sources
    if not draws or recipe.run.trained is not None or Stage.ended(run.train):
        return
    for kind in ("FSDP", "DeepSpeed"):
        if parse_flag_from_env(f"ACCELERATE_USE_{kind.upper()}"):
            from mm_cca.training.previews import previews_of_shards

            raise previews_of_shards(recipe, kind)


def run_stages(recipe: AnyRecipe, run: RunFolder, stages: Sequence[str]) -> None:
    """Run the named stages in their order, in a folder that the caller has locked.

    Raises:
        UserError: what a stage raises, or a stage that the recipe's job does not have.
    """
    if isinstance(recipe, TokenizerRecipe | ScorerRecipe):
        from mm_cca.demo.jobs import train_demo_part

        if "train" not in stages:
            raise UserError(
                f"a {recipe.job} recipe has only the stage train; use `mm-cca train RECIPE`."
            )
        train_demo_part(recipe, run)
        return
    commands: dict[str, Callable[[Recipe, RunFolder], None]] = {
        "prepare": partial(prepare, stages=stages),
        "train": _train,
        "sample": _sample,
        "eval": _evaluate,
        "report": _report,
    }
    for stage in STAGES:
        if stage in stages:
            commands[stage](recipe, run)


def _train(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.sampling.prompts import preview_prompts
    from mm_cca.training.train import train

    if recipe.run.trained is not None:
        return  # trained there
    if "cca" in recipe.run.sources:
        train(recipe, run, previews=lambda: preview_prompts(recipe, run))
    if recipe.train.control and "control" in recipe.run.sources:
        train(recipe, run, control=True)


def _sample(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.sampling.draw import sample_arms

    sample_arms(recipe, run)


def _evaluate(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.eval.evaluate import evaluate_arms

    scored = evaluate_arms(recipe, run)
    if scored and recipe.train.trackers and PartialState().is_main_process:
        from mm_cca.cli.commands.tracked_scores import track_scores

        try:
            track_scores(recipe, run)
        except Exception as error:  # a server of others; the scores are in the run folder
            first = str(error).partition("\n")[0]
            print(f"the scores did not reach train.trackers: {first}", file=sys.stderr)


def _report(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.eval.report.run_report import write_report

    write_report(recipe, run)
