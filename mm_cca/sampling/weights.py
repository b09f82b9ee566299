"""Loads the weights of an arm."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import release_memory
from peft import PeftModel

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel
from mm_cca.adapters.quantization import dequantize
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.modeling.dial import dial_full
from mm_cca.modeling.lora import dial_lora
from mm_cca.runs.folder import RunFolder


def load_source(
    recipe: Recipe,
    run: RunFolder,
    source: str,
    *,
    dial: float = 1.0,
    device: torch.device | None = None,
    dequantized: bool = False,
) -> UnifiedModel:
    """Load a model, frozen and in eval mode.

    Args:
        recipe: of the run.
        run: its folder.
        source: one of ``schema.SOURCES``.
        dial: 0 gives the base, 1 the trained weights, values between interpolate, above 1
            extrapolate.
        device: None: that of this process.
        dequantized: a quantised base (``model.quantization``) gets plain layers with the values
            that it is computed with.

    Raises:
        UserError: not trained yet, a checkpoint that can't be read, or a dial without its base.
    """
    trained = None if source == "base" else run.trained_model(source)
    if trained is None:
        model = _base_of(recipe, 1.0, dequantized)
    elif recipe.train.tuning == "lora":
        model = with_lora(_base_of(recipe, dial, dequantized), trained, dial)
    elif dial != 1.0:
        model = _base_of(recipe, dial)
        dial_full(model.module, trained, dial)
    else:
        model = load_checkpoint(recipe.model, str(trained))
    return for_sampling(model, device)


def with_lora(model: UnifiedModel, folder: Path, dial: float) -> UnifiedModel:
    """The base with a LoRA that training or ``mm-cca export`` wrote, scaled by ``dial``."""
    module = PeftModel.from_pretrained(model.module, str(folder))  # type: ignore[arg-type]
    dial_lora(module, dial)
    model.module = module
    return model


def for_sampling(model: UnifiedModel, device: torch.device | None = None) -> UnifiedModel:
    """The model, frozen, in eval mode and on a device (None: that of this process)."""
    device = PartialState().device if device is None else device
    model.module.eval().requires_grad_(False).to(device)
    return model


class DialledModel:
    """A trained model at any point of the dial, of which only one is in memory.

    Args:
        load: gives the model at a dial, as ``load_source`` does.
    """

    def __init__(self, load: Callable[[float], UnifiedModel]) -> None:
        self._load = load
        self._dial = 1.0
        self._model: UnifiedModel | None = None

    def at(self, dial: float) -> UnifiedModel:
        """The model at ``dial``; the one that was returned before must no longer be used."""
        if self._model is not None and dial != self._dial:
            if isinstance(self._model.module, PeftModel):
                dial_lora(self._model.module, dial)
            else:
                self._model = None
                release_memory()  # before the next model, so that the device holds only one
        if self._model is None:
            self._model = self._load(dial)
        self._dial = dial
        return self._model


def load_merged(recipe: Recipe, run: RunFolder, source: str, *, dial: float = 1.0) -> UnifiedModel:
    """As ``load_source``, with the LoRA merged into plain layers in ``model.dtype``.

    A quantised base gives the values that it was computed with. The original weights under the same
    LoRA would be another model than the one that was trained, sampled and scored: a LoRA also makes
    up for what quantisation took away.
    """
    model = load_source(recipe, run, source, dial=dial, dequantized=True)
    if isinstance(model.module, PeftModel):
        model.module = model.module.merge_and_unload()
    return model


def load_image_parts(recipe: Recipe) -> UnifiedModel:
    """The recipe's checkpoint for prompts, layout and ``decode`` only.

    An engine owns the accelerator's memory, so the language model never gets there: it is read into
    the CPU's memory as always, and dropped. What ``frozen`` names, the same in all arms, is on the
    device of this process; all other weights are on torch's meta device.

    Raises:
        UserError: the checkpoint can't be read.
    """
    # Quantised layers would go to the device at once, and take it from the engine.
    model = load_checkpoint(replace(recipe.model, quantization=None))
    model.module.eval().requires_grad_(False)
    kept = {id(module) for part in model.frozen() for module in part.modules()}
    for module in model.module.modules():
        if id(module) not in kept:
            module.to_empty(device="meta", recurse=False)
    for part in model.frozen():
        part.to(PartialState().device)
    return model


def _base_of(recipe: Recipe, dial: float, dequantized: bool = False) -> UnifiedModel:
    try:
        model = load_checkpoint(recipe.model)
        if dequantized:
            dequantize(model.module, getattr(torch, recipe.model.dtype))
        return model
    except UserError as error:
        if dial == 1.0:
            raise
        raise UserError(f"the dial is {dial:g}, which needs the base model too: {error}") from error
