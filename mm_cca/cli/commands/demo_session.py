"""Sample one prompt with the base, the guided base and the trained model at any dial; same
random numbers.

A LoRA run keeps one model in memory, whose adapter is scaled or switched off. A full fine-tune
keeps two: the base, and the trained model at the last dial.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.utils import release_memory
from peft import PeftModel
from PIL import Image

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.prompt_templates import filled
from mm_cca.errors import UserError
from mm_cca.modeling.lora import dial_lora
from mm_cca.modeling.sampler import image_stream, sample_codes
from mm_cca.runs.folder import open_run, terms_of_training
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.draw import sampling_settings
from mm_cca.sampling.weights import load_source


@dataclass(frozen=True)
class DemoImage:
    """An image, and the seconds and forward passes it took."""

    name: str
    image: Image.Image
    seconds: float
    forward_passes: int


class DemoSession:
    """The models of a finished run, loaded for sampling."""

    def __init__(self, folder: Path) -> None:
        """Load the models.

        Raises:
            UserError: not a run folder, not trained yet, or a checkpoint that can't be read.
        """
        self.recipe, self._run = open_run(folder)
        self.terms = terms_of_training(self.recipe)
        self._dial = 1.0
        self._trained: UnifiedModel | None = load_source(self.recipe, self._run, "cca")
        is_lora = isinstance(self._trained.module, PeftModel)
        self._base = self._trained if is_lora else load_source(self.recipe, self._run, "base")

    def sample(self, prompt: str, seed: int, scale: float, dial: float) -> list[DemoImage]:
        """Base, guided base and the trained model at ``dial``, in this order.

        The trained model is sampled without guidance, but after plain fine-tuning with it. The
        prompt is put into ``sample.prompt_template``; guidance leads away from the first of
        ``sample.negative_prompts``.

        Raises:
            UserError: an empty prompt, a scale below 1, a dial below 0.
        """
        _check(prompt, seed, scale, dial)
        negative = self.recipe.sample.negative_prompts[0]
        guided = Arm("base", scale, negative, negative_number=1 if negative else 0)
        trained = guided if self.terms.is_finetuning else Arm("base", 1.0)
        return [
            self._sample_arm(self._base, Arm("base", 1.0), prompt, seed),
            self._sample_arm(self._base, guided, prompt, seed),
            self._sample_arm(
                self._trained_at(dial), replace(trained, source="cca", dial=dial), prompt, seed
            ),
        ]

    def _trained_at(self, dial: float) -> UnifiedModel:
        if self._trained is not None and dial != self._dial:
            if isinstance(self._trained.module, PeftModel):
                dial_lora(self._trained.module, dial)
            else:
                self._trained = None
                release_memory()  # never three models on the device
        if self._trained is None:
            self._trained = load_source(self.recipe, self._run, "cca", dial=dial)
        self._dial = dial
        return self._trained

    @torch.no_grad()
    def _sample_arm(self, model: UnifiedModel, arm: Arm, prompt: str, seed: int) -> DemoImage:
        grid = grid_of(model, self.recipe.data.image_size)
        uniforms = image_stream(seed, 0, model.layout(grid).num_codes)[None]
        settings = sampling_settings(self.recipe, arm, model.defaults)
        with _as_source(model, arm.source):
            started = time.perf_counter()
            texts = filled(self.recipe.sample.prompt_template, [prompt])
            codes, passes = sample_codes(model, texts, grid, uniforms, settings)
            pixels = model.decode(codes, grid).cpu()[0]
            seconds = time.perf_counter() - started
        return DemoImage(
            arm.name, Image.fromarray(pixels.permute(1, 2, 0).numpy()), seconds, passes
        )


def _as_source(model: UnifiedModel, source: str) -> AbstractContextManager[None]:
    if source == "base" and isinstance(model.module, PeftModel):
        return model.module.disable_adapter()
    return nullcontext()


def _check(prompt: str, seed: int, scale: float, dial: float) -> None:
    if not prompt.strip():
        raise UserError("the prompt is empty; describe the image.")
    for name, value, lowest in (("seed", seed, 0), ("guidance scale", scale, 1), ("dial", dial, 0)):
        if not value >= lowest:
            raise UserError(f"the {name} is {value:g}; allowed: {lowest} or more.")
