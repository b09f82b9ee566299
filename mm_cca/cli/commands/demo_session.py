"""Sample a prompt with the base, the guided base and the trained model at any dial; same random
numbers.

A LoRA run keeps one model in memory, whose adapter is scaled or switched off. A full fine-tune
keeps two: the base, and the trained model at the last dial.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from PIL import Image

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.prompt_templates import filled
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import image_stream, sample_codes
from mm_cca.runs.folder import open_run, terms_of_training
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.draw import sampling_settings
from mm_cca.sampling.prompts import prompts_of
from mm_cca.sampling.weights import DialledModel, load_source

NUM_EXAMPLES = 8
MOST_IMAGES = 8


@dataclass(frozen=True)
class DemoImages:
    """An arm's images of one prompt, one per seed, and the seconds and forward passes of each."""

    name: str
    images: list[Image.Image]
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
        self._trained = DialledModel(
            lambda dial: load_source(self.recipe, self._run, "cca", dial=dial)
        )
        trained = self._trained.at(1.0)
        is_lora = isinstance(trained.module, PeftModel)
        self._base = trained if is_lora else load_source(self.recipe, self._run, "base")

    @cached_property
    def examples(self) -> list[str]:
        """Prompts of the run, held-out ones if there are any; empty if its data is gone."""
        try:
            prompts = prompts_of(self.recipe, self._run)
        except UserError:
            return []
        heldout = [each for each in prompts if each.split == self.recipe.data.heldout_split]
        captions = dict.fromkeys(each.caption for each in heldout or prompts)
        return list(captions)[:NUM_EXAMPLES]

    def draw(
        self, prompt: str, seed: int, scale: float, dial: float, count: int = 1
    ) -> Iterator[DemoImages]:
        """Base, guided base and the trained model at ``dial``, in this order, as each is drawn.

        Every arm draws ``count`` images, of the seeds from ``seed`` on. The trained model is
        sampled without guidance, but after plain fine-tuning with it. The prompt is put into
        ``sample.prompt_template``; guidance leads away from the first of
        ``sample.negative_prompts``.

        Raises:
            UserError: an empty prompt, a seed, scale or dial that is too low, too few or too many
                images.
        """
        _check(prompt, seed, scale, dial, count)
        return self._arms(prompt, range(seed, seed + count), scale, dial)

    def _arms(self, prompt: str, seeds: range, scale: float, dial: float) -> Iterator[DemoImages]:
        negative = self.recipe.sample.negative_prompts[0]
        guided = Arm("base", scale, negative, negative_number=1 if negative else 0)
        trained = guided if self.terms.is_finetuning else Arm("base", 1.0)
        yield self._sample_arm(self._base, Arm("base", 1.0), prompt, seeds)
        yield self._sample_arm(self._base, guided, prompt, seeds)
        ours = replace(trained, source="cca", dial=dial)
        yield self._sample_arm(self._trained.at(dial), ours, prompt, seeds)

    @torch.no_grad()
    def _sample_arm(self, model: UnifiedModel, arm: Arm, prompt: str, seeds: range) -> DemoImages:
        grid = grid_of(model, self.recipe.data.image_size)
        num_codes = model.layout(grid).num_codes
        uniforms = np.stack([image_stream(seed, 0, num_codes) for seed in seeds])
        settings = sampling_settings(self.recipe, arm, model.defaults)
        with _as_source(model, arm.source):
            started = time.perf_counter()
            texts = filled(self.recipe.sample.prompt_template, [prompt] * len(seeds))
            codes, passes = sample_codes(model, texts, grid, uniforms, settings)
            # One by one, as the arms of a run are decoded.
            pixels = torch.cat([model.decode(of_one, grid) for of_one in codes.split(1)]).cpu()
            seconds = time.perf_counter() - started
        images = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pixels]
        return DemoImages(arm.name, images, seconds / len(images), passes)


def _as_source(model: UnifiedModel, source: str) -> AbstractContextManager[None]:
    if source == "base" and isinstance(model.module, PeftModel):
        return model.module.disable_adapter()
    return nullcontext()


def _check(prompt: str, seed: int, scale: float, dial: float, count: int) -> None:
    if not prompt.strip():
        raise UserError("the prompt is empty; describe the image.")
    if not 1 <= count <= MOST_IMAGES:
        raise UserError(f"images per arm is {count}; allowed: 1 to {MOST_IMAGES}.")
    for name, value, lowest in (("seed", seed, 0), ("guidance scale", scale, 1), ("dial", dial, 0)):
        if not value >= lowest:
            raise UserError(f"the {name} is {value:g}; allowed: {lowest} or more.")
