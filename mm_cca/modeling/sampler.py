"""Samples image codes for prompts: with or without guidance, batched, with a key-value cache.

Every image has its own random stream: code t is drawn by inverse-CDF sampling with uniform
``u[t]``, so an image does not depend on its batch.

Shapes: B images, M = B rows without guidance and 2B with it, U distinct prompts among the rows,
P prompt tokens, S slots, N free codes, C tokens that the cache has room for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from transformers import Cache

from mm_cca.adapters.base import Defaults, Grid, ImageLayout, UnifiedModel
from mm_cca.config.schema_eval import SampleConfig
from mm_cca.modeling.compiled_step import StepRunner, has_fixed_shapes
from mm_cca.modeling.draws import draw, fixed_point, image_stream, truncate
from mm_cca.modeling.fixed_buffers import FixedBuffers
from mm_cca.modeling.inputs import left_pad, positions
from mm_cca.modeling.kv_cache import copy_rows, is_plain, with_filled_layers
from mm_cca.modeling.sampling_step import (
    Pick,
    Rules,
    StepTensors,
    draw_code,
    layout_tensors,
    widths,
)

__all__ = ["Sampler", "SamplingSettings", "draw", "image_stream", "sample_codes", "truncate"]

_ROOM = 64
"""A compiled step's cache has room for a multiple of this, so that few lengths need a graph."""

_FEW_FORCED = 0.05
"""Up to this share of forced tokens they are steps of their own: one graph instead of two."""


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn; with ``guidance_scale`` 1.0 the unconditional pass is skipped."""

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    negative_prompt: str = ""

    @property
    def is_guided(self) -> bool:
        """Whether there is an unconditional pass."""
        return self.guidance_scale != 1.0

    @classmethod
    def of(
        cls,
        keys: SampleConfig,
        defaults: Defaults,
        guidance_scale: float,
        negative_prompt: str = "",
        temperature: float | None = None,
    ) -> Self:
        """What is not given is that of the recipe's keys, and of these what is null the family's.

        Args:
            keys: the recipe's ``sample``.
            defaults: of the family.
            guidance_scale: 1.0 for none.
            negative_prompt: "" is the unconditional prompt.
            temperature: None for the recipe's.
        """
        temperature = keys.temperature if temperature is None else temperature
        return cls(
            guidance_scale=guidance_scale,
            temperature=defaults.temperature if temperature is None else temperature,
            top_k=defaults.top_k if keys.top_k is None else keys.top_k,
            top_p=defaults.top_p if keys.top_p is None else keys.top_p,
            negative_prompt=negative_prompt,
        )


class Sampler:
    """Samples batch after batch with one model.

    Args:
        model: in eval mode.
        grid: of the images.
        compiled: run every step as a compiled graph, which takes a while to build and is kept by
            the process. Without effect for an adapter whose cache is not transformers' plain
            static one.
        rows: with ``compiled``, smaller batches are filled up to this many images with copies of
            the last, as another batch size would need another graph; None: they are not.
    """

    def __init__(
        self, model: UnifiedModel, grid: Grid, *, compiled: bool = False, rows: int | None = None
    ) -> None:
        self._model = model
        self._layout: ImageLayout = model.layout(grid)
        self._grid = grid
        self._device = next(model.module.parameters()).device
        self._compiled = compiled and is_plain(model.new_cache(1))
        self._fixed = has_fixed_shapes(self._device, compiled=self._compiled)
        self._rows = rows if self._compiled and rows is not None else 0
        self._runner = StepRunner(model, compiled=self._compiled, fixed=self._fixed)
        self._buffers = FixedBuffers()

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        uniforms: np.ndarray,
        settings: SamplingSettings,
        pick: Pick = draw,
        scales: Sequence[float] | None = None,
    ) -> tuple[torch.Tensor, int]:
        """Sample one image per prompt.

        Args:
            prompts: [B] captions.
            uniforms: [B, N] from ``image_stream``.
            settings: see ``SamplingSettings``.
            pick: maps [B, K] final logits and [B] uniforms of ``fixed_point`` to [B] codes.
            scales: [B] guidance scales in place of that of ``settings``, so that images with and
                without (1.0) guidance share the steps; all of them take two forward passes.

        Returns:
            [B, N] int64 codes on the device, and the number of forward passes per image (a guided
            step counts two).
        """
        count, layout = len(prompts), self._layout
        is_guided = settings.is_guided or scales is not None
        more = max(0, self._rows - count)
        uniforms = np.concatenate([uniforms, uniforms[-1:].repeat(more, axis=0)])
        ids = self._model.prompt_ids([*prompts, *[prompts[-1]] * more], self._grid)
        if is_guided:
            ids += [
                self._model.unconditional_ids(row, self._grid, settings.negative_prompt)
                for row in ids
            ]
        hidden, cache, mask, filled = self._read_prompts(ids)
        scale = torch.tensor(settings.guidance_scale)
        if scales is not None:
            scale = torch.tensor([*scales, *[scales[-1]] * more])[:, None]
        tensors = self._tensors(mask[:, :filled], uniforms, settings, scale)
        if self._fixed:
            tensors, mask = self._buffers.place(tensors, mask)
        has_forced = len(layout.tokens) > layout.num_codes
        has_top_p = settings.top_p is not None and settings.top_p < 1
        rules = Rules(is_guided, settings.top_k, has_top_p, has_forced)
        draw_code(hidden, self._model, tensors, tensors.slot, rules, pick)
        few = len(layout.tokens) <= (1 + _FEW_FORCED) * layout.num_codes
        steps = widths(layout, one_width=self._compiled and few)
        self._runner.run(steps, cache, tensors, mask, filled, rules, pick)
        passes = 2 if is_guided else 1
        codes = tensors.codes[:count].clone() if self._fixed else tensors.codes[:count]
        return codes, layout.num_codes * passes

    def _read_prompts(self, ids: list[list[int]]) -> tuple[torch.Tensor, Cache, torch.Tensor, int]:
        """Read the prompts, each distinct one once.

        Returns:
            [M, D] last hidden states, the filled cache, [M, C] mask of prompts and image, and P.
        """
        model, device, slots = self._model, self._device, len(self._layout.tokens)
        distinct = list(dict.fromkeys(map(tuple, ids)))
        place = {row: number for number, row in enumerate(distinct)}
        filled = max(map(len, ids))
        room = -(-(filled + slots) // _ROOM) * _ROOM if self._compiled else filled + slots
        cache = self._empty_cache(len(ids), room)
        shared = is_plain(model.new_cache(1)) and len(distinct) < len(ids)
        tokens, mask = left_pad(
            [list(row) for row in distinct] if shared else ids, model.pad_id, multiple=1
        ).to(device)
        read = with_filled_layers(model.new_cache(filled)) if shared else cache
        hidden = model.hidden_states(model.embed_text(tokens), mask, positions(mask), read)[:, -1]
        if shared:
            rows = torch.tensor([place[tuple(row)] for row in ids], device=device)
            copy_rows(read, cache, rows)
            hidden, mask = hidden[rows], mask[rows]
        return hidden, cache, torch.cat([mask, mask.new_ones(len(ids), room - filled)], 1), filled

    def _empty_cache(self, rows: int, room: int) -> Cache:
        if self._fixed:
            return self._buffers.cache(self._model, rows, room)
        return with_filled_layers(self._model.new_cache(room))

    def _tensors(
        self,
        prompt_mask: torch.Tensor,
        uniforms: np.ndarray,
        settings: SamplingSettings,
        scale: torch.Tensor,
    ) -> StepTensors:
        """For a batch of which no code is drawn."""
        start = prompt_mask.sum(dim=1, keepdim=True)
        numbers = {
            "scale": scale,
            "temperature": torch.tensor(settings.temperature),
            "top_p": torch.tensor(1.0 if settings.top_p is None else settings.top_p),
        }
        fields = {
            "slot": torch.zeros(1, dtype=torch.long),
            "codes": torch.zeros(uniforms.shape, dtype=torch.long),
            "uniforms": fixed_point(uniforms),
            "row_of_code": self._model.image_head().row_of_code,
            **numbers,
            **layout_tensors(self._layout),
        }
        on_device = {name: tensor.to(self._device) for name, tensor in fields.items()}
        return StepTensors(start=start, **on_device)


def sample_codes(
    model: UnifiedModel,
    prompts: Sequence[str],
    grid: Grid,
    uniforms: np.ndarray,
    settings: SamplingSettings,
    *,
    pick: Pick = draw,
) -> tuple[torch.Tensor, int]:
    """Sample one image per prompt, eagerly; arguments and result as ``Sampler`` has them."""
    return Sampler(model, grid).sample(prompts, uniforms, settings, pick)
