"""Draws the pictures of previews with the model in training, without changing the training.

Every picture has its own stream of random numbers, so that what changes from preview to preview is
the model; where the prompts are those of the run's arms, the streams are too. Pictures with and
without guidance are drawn in one batch, as on a GPU a step of the sampler takes hardly longer for
more rows.

Shapes: R prompts, B images of a batch, N codes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.modeling.decode import decode_one_by_one
from mm_cca.modeling.in_batches import in_batches
from mm_cca.modeling.sampler import Sampler, SamplingSettings, draw, image_stream
from mm_cca.training.setup import TrainingSetup


class Stopped(Exception):
    """A signal to stop came while pictures were drawn."""


@dataclass(frozen=True)
class _Wanted:
    """One picture: the number of its random stream, its prompt in the template, its scale."""

    index: int
    text: str
    scale: float


class PreviewArtist:
    """Draws the same pictures of whatever weights the model has.

    Attributes:
        settings: of the guided pictures: the first scale and negative prompt of the base's guided
            arms.
        num_pictures: of one preview.
    """

    def __init__(
        self, recipe: Recipe, setup: TrainingSetup, prompts: Sequence[tuple[int, str]]
    ) -> None:
        """See ``Previews.of``."""
        keys, self._setup = recipe.sample, setup
        defaults = setup.model.defaults
        scale = keys.guidance_scales[0] if keys.guidance_scales else defaults.guidance_scale
        self.settings = SamplingSettings.of(keys, defaults, scale, keys.negative_prompts[0])
        self._grid = grid_of(setup.model, recipe.data.image_size)
        self._seed, self._at_once = keys.seed, keys.batch_size_without_auto
        self._compiled = bool(keys.compile)
        texts = filled(keys.prompt_template, (text for _, text in prompts))
        self._wanted = [
            _Wanted(index, text, scale)
            for (index, _), text in zip(prompts, texts, strict=True)
            for scale in (1.0, self.settings.guidance_scale)
        ]
        self.num_pictures = len(self._wanted)

    def draw(
        self, weights: AbstractContextManager[None], stopped: Callable[[], bool]
    ) -> list[list[Image.Image]]:
        """[R][2] pictures, without and with guidance.

        Args:
            weights: inside it the model has the weights to draw with.
            stopped: whether a signal to stop has come.

        Raises:
            Stopped: it has.
            UserError: the memory does not suffice.
        """
        policy, device = self._setup.policy, self._setup.accelerator.device
        with ExitStack() as meanwhile:
            meanwhile.enter_context(weights)
            # The sampler needs no generator of torch, but someone's own adapter might.
            devices = [device] if device.type == "cuda" else []
            meanwhile.enter_context(torch.random.fork_rng(devices))
            if self._setup.train.compile:  # graphs of whole images, not of single codes
                meanwhile.enter_context(torch.compiler.set_stance("force_eager"))
            meanwhile.callback(policy.train, policy.training)
            policy.eval()
            drawn = list(
                in_batches(self._wanted, self._at_once, lambda batch: self._sample(batch, stopped))
            )
        images = [Image.fromarray(pixels) for pixels in np.concatenate(drawn)]
        return [images[start : start + 2] for start in range(0, len(images), 2)]

    @torch.no_grad()
    def _sample(self, batch: list[_Wanted], stopped: Callable[[], bool]) -> np.ndarray:
        """[B, H, W, 3] uint8."""

        def pick(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
            if stopped():  # which must not wait for thousands of codes
                raise Stopped
            return draw(logits, uniforms)

        model, grid = self._setup.model, self._grid
        num_codes = model.layout(grid).num_codes
        rows = min(self._at_once, self.num_pictures)
        sampler = Sampler(model, grid, compiled=self._compiled, rows=rows)
        codes, _ = sampler.sample(
            [wanted.text for wanted in batch],
            np.stack([image_stream(self._seed, wanted.index, num_codes) for wanted in batch]),
            self.settings,
            draw if self._compiled else pick,
            scales=[wanted.scale for wanted in batch],
        )
        return decode_one_by_one(model, codes, grid).permute(0, 2, 3, 1).numpy()


def refuse_long(recipe: Recipe, model: UnifiedModel, prompts: Sequence[str]) -> None:
    """Raises UserError if a prompt of the previews leaves no room for the image."""
    keys, size = recipe.sample, list(recipe.data.image_size)
    grid = grid_of(model, size)
    room = model.max_tokens - len(model.layout(grid).tokens)
    every_ids = model.prompt_ids(filled(keys.prompt_template, prompts), grid)
    template = "" if keys.prompt_template is None else " in sample.prompt_template"
    for prompt, ids in zip(prompts, every_ids, strict=True):
        if len(ids) > room:
            raise UserError(
                f"the preview prompt {prompt[:80]!r} has {len(ids)} tokens{template}, but an image "
                f"of {size} leaves {room} of {model.max_tokens}. Shorten it, or name others in "
                "sample.preview_prompts."
            )
    negative = model.unconditional_ids(every_ids[0], grid, keys.negative_prompts[0])
    if len(negative) > room:
        raise UserError(
            f"the first of sample.negative_prompts has {len(negative)} tokens, but an image of "
            f"{size} leaves {room} of {model.max_tokens}. Shorten it, or use sample.every=null."
        )
