"""Before a command writes anything: does every stage accept the recipe, and can it work?"""

from collections.abc import Sequence
from importlib.util import find_spec

from mm_cca.adapters.quantization import refuse_device, refuse_without_bitsandbytes
from mm_cca.cli.commands.data_checks import data_splits, refuse_changed_data
from mm_cca.cli.commands.prepare import needs_tokens, tokens_stage
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage, recorded
from mm_cca.sampling.prompts import has_real_images
from mm_cca.training.optimizer import refuse_bitsandbytes_optimizer
from mm_cca.training.train import training_stage

TRACKERS = {
    "tensorboard": ("tensorboard", "pip install tensorboard"),
    "wandb": ("wandb", 'pip install "mm-cca[wandb]"'),
    "trackio": ("trackio", 'pip install "mm-cca[trackio]"'),
}
"""Tracker -> module that it needs, and how to install it."""


def accept(recipe: Recipe, run: RunFolder, stages: Sequence[str]) -> None:
    """Ask every stage that is to be run, and every training that there is, before any work.

    Nothing is written. What needs the token cache or a trained model is checked when it is there.

    Raises:
        UserError: a stage was made with another recipe, the data have changed, a tracker or
            bitsandbytes is not installed, or a judge can't be loaded.
    """
    trainings = _trainings(recipe, run, stages)
    open_stages = [not stage.is_done() for stage in trainings.values()]
    to_train = "train" in stages and any(open_stages)
    if needs_tokens(recipe):
        tokens = [tokens_stage(recipe, run, split) for split in data_splits(recipe)]
        prepared = [stage.is_done() for stage in tokens]
        if "prepare" not in stages and (has_real_images(recipe) or to_train):
            refuse_changed_data(recipe, run)
        open_stages += [not done for done in prepared]
    if to_train:
        _refuse_missing_trackers(recipe)
        refuse_bitsandbytes_optimizer(recipe.train)
    if recipe.model.quantization is not None and (to_train or any(open_stages)):
        refuse_without_bitsandbytes("model.quantization", recipe.model.quantization, "null")
        refuse_device(recipe.model.quantization)
    planned = {
        source: stage.settings
        for source, stage in trainings.items()
        if "train" in stages and stage.is_extended()
    }
    if "sample" in stages or "eval" in stages:
        _accept_scores(recipe, run, stages, planned, busy=any(open_stages))


def _trainings(recipe: Recipe, run: RunFolder, stages: Sequence[str]) -> dict[str, Stage]:
    """The trainings of a recipe, by source; an average of trainings has none of its own."""
    stored = recorded(run.train)
    is_average = stored is not None and "averaged" in stored["settings"]
    if recipe.run.trained is not None or (is_average and "train" not in stages):
        return {}
    trainings = {}
    if "cca" in recipe.run.sources:
        trainings["cca"] = training_stage(recipe, run)
    if recipe.train.control and "control" in recipe.run.sources:
        trainings["control"] = training_stage(recipe, run, control=True)
    return trainings


def _accept_scores(
    recipe: Recipe,
    run: RunFolder,
    stages: Sequence[str],
    planned: dict[str, dict[str, object]],
    *,
    busy: bool,
) -> None:
    from mm_cca.sampling.arm_settings import sample_stages

    arms = sample_stages(recipe, run, planned=planned)
    if "sample" in stages:
        drawn = [stage.is_done() for stage in arms.values()]
        busy = busy or not all(drawn)
    if "eval" not in stages:
        return
    from mm_cca.eval.evaluate import eval_stage, refuse_unloadable

    scored = False
    if recorded(run.eval) is not None:
        scored = eval_stage(recipe, run, list(arms), arms if "sample" in stages else None).is_done()
    if busy and not scored:
        refuse_unloadable(recipe)


def _refuse_missing_trackers(recipe: Recipe) -> None:
    for name in recipe.train.trackers:
        module, install = TRACKERS[name]
        if find_spec(module) is None:
            raise UserError(
                f"train.trackers has {name}, which is not installed: {install}, or leave it out "
                "(train.trackers=[] logs to metrics.jsonl only)."
            )
