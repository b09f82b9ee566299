"""``mm-cca run``: the stages of a recipe, one after the other, in a locked folder."""

from collections.abc import Callable, Sequence

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from mm_cca.cli.commands.prepare import prepare
from mm_cca.cli.commands.quiet import quiet_libraries
from mm_cca.config.schema import STAGES, AnyRecipe, Recipe, ScorerRecipe, TokenizerRecipe
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder, recipe_of_training
from mm_cca.runs.stage import locked


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
    # accelerate would read this variable only after the ranks have failed to connect.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.is_main_process:
        with locked(run.root):
            run.describe(recipe)
            run_stages(recipe, run, stages)
    else:
        run_stages(recipe, run, stages)
    # The main rank writes scores and report; the others wait for it.
    state.wait_for_everyone()
    state.destroy_process_group()


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
        "prepare": prepare,
        "train": _train,
        "sample": _sample,
        "eval": _evaluate,
        "report": _report,
    }
    for stage in STAGES:
        if stage in stages:
            commands[stage](recipe, run)


def _train(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.training.train import train

    if recipe.run.trained is not None:
        return  # trained there
    if "cca" in recipe.run.sources:
        train(recipe, run)
    if recipe.train.control and "control" in recipe.run.sources:
        train(recipe, run, control=True)


def _sample(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.sampling.draw import sample_arms

    sample_arms(recipe, run)


def _evaluate(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.eval.evaluate import evaluate_arms

    evaluate_arms(recipe, run)


def _report(recipe: Recipe, run: RunFolder) -> None:
    from mm_cca.eval.report.run_report import write_report

    write_report(recipe, run)
