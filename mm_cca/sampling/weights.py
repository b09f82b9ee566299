"""Loads the weights of an arm."""

from accelerate import PartialState
from peft import PeftModel

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.modeling.dial import dial_full
from mm_cca.modeling.lora import dial_lora
from mm_cca.runs.folder import RunFolder


def load_source(recipe: Recipe, run: RunFolder, source: str, *, dial: float = 1.0) -> UnifiedModel:
    """Load a model, frozen, in eval mode and on the device of this process.

    Args:
        recipe: of the run.
        run: its folder.
        source: one of ``schema.SOURCES``.
        dial: 0 gives the base, 1 the trained weights, values between interpolate, above 1
            extrapolate.

    Raises:
        UserError: not trained yet, a checkpoint that can't be read, or a dial without its base.
    """
    trained = None if source == "base" else run.trained_model(source)
    if trained is None:
        model = load_checkpoint(recipe.model)
    elif recipe.train.tuning == "lora":
        model = _base_of(recipe, dial)
        model.module = PeftModel.from_pretrained(model.module, str(trained))  # type: ignore[arg-type]
        dial_lora(model.module, dial)
    elif dial != 1.0:
        model = _base_of(recipe, dial)
        dial_full(model.module, trained, dial)
    else:
        model = load_checkpoint(recipe.model, str(trained))
    model.module.eval().requires_grad_(False).to(PartialState().device)
    return model


def _base_of(recipe: Recipe, dial: float) -> UnifiedModel:
    try:
        return load_checkpoint(recipe.model)
    except UserError as error:
        if dial == 1.0:
            raise
        raise UserError(f"the dial is {dial:g}, which needs the base model too: {error}") from error
