"""Samples image codes for prompts: with or without guidance, batched, with a key-value cache.

Every image has its own random stream: code t is drawn by inverse-CDF sampling with uniform
``u[t]``, so an image does not depend on its batch.

Shapes: B images, M = B rows without guidance and 2B with it, P prompt tokens, S slots, N free
codes, K image codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm_cca.adapters.base import FREE, Grid, UnifiedModel
from mm_cca.modeling.chunked_head import head_logits
from mm_cca.modeling.guidance import guide
from mm_cca.modeling.inputs import left_pad, positions


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn; with ``guidance_scale`` 1.0 the unconditional pass is skipped."""

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    negative_prompt: str = ""


def image_stream(seed: int, index: int, num_codes: int) -> np.ndarray:
    """[N] float64 uniforms in [0, 1) of image ``index``; the same in every arm."""
    return np.random.default_rng([seed, index]).random(num_codes)


def truncate(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """[B, K] logits with all codes outside the top k or the nucleus p set to minus infinity."""
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF draw: [B, K] logits and [B] uniforms in [0, 1) -> [B] codes."""
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    # The last sum can be below 1 by rounding; scaling keeps every draw inside.
    scaled = uniforms.double()[:, None] * cumulative[:, -1:]
    return (
        torch.searchsorted(cumulative, scaled, right=True)
        .squeeze(1)
        .clamp(max=logits.shape[-1] - 1)
    )


def sample_codes(
    model: UnifiedModel,
    prompts: Sequence[str],
    grid: Grid,
    uniforms: np.ndarray,
    settings: SamplingSettings,
    *,
    use_cache: bool = True,
    pick: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = draw,
) -> tuple[torch.Tensor, int]:
    """Sample one image per prompt.

    Args:
        model: in eval mode.
        prompts: [B] captions.
        grid: of the images.
        uniforms: [B, N] from ``image_stream``.
        settings: see ``SamplingSettings``.
        use_cache: False recomputes every prefix, for tests.
        pick: maps [B, K] final logits and [B] uniforms to [B] codes.

    Returns:
        [B, N] int64 codes, and the number of forward passes per image (a guided step counts two).
    """
    layout = model.layout(grid)
    passes_per_step = 1 if settings.guidance_scale == 1.0 else 2
    prompt_ids, prompt_mask = _prompt_batch(model, prompts, grid, settings)
    stepper = _Stepper(model, prompt_ids, prompt_mask, len(layout.tokens), use_cache)
    head = model.image_head()
    code_rows = head.row_of_code.to(prompt_ids.device)
    codes = torch.empty(len(prompts), layout.num_codes, dtype=torch.long, device=prompt_ids.device)
    draws = torch.from_numpy(uniforms).to(prompt_ids.device)
    slots = layout.tokens.tolist()
    hidden = stepper.start()
    for number, slot in enumerate(layout.free_slots.tolist()):
        logits = head_logits(hidden, head.weight, head.bias)[:, code_rows]
        codes[:, number] = pick(_final_logits(logits, settings), draws[:, number])
        if number + 1 < layout.num_codes:
            # The drawn code and the forced tokens directly after it share one forward pass.
            drawn = codes[:, number].repeat(passes_per_step)
            hidden = stepper.feed(_embed(model, drawn, _forced_after(slots, slot)))
    return codes, layout.num_codes * passes_per_step


def _prompt_batch(
    model: UnifiedModel, prompts: Sequence[str], grid: Grid, settings: SamplingSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, P] ids and mask: the prompts and, with guidance, their unconditional forms after them."""
    ids = model.prompt_ids(prompts, grid)
    if settings.guidance_scale != 1.0:
        ids += [model.unconditional_ids(row, grid, settings.negative_prompt) for row in ids]
    device = next(model.module.parameters()).device
    prompt_ids, prompt_mask = left_pad(ids, model.pad_id, multiple=1)
    return prompt_ids.to(device), prompt_mask.to(device)


def _final_logits(logits: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """[M, K] -> [B, K]: guidance, temperature and truncation."""
    if settings.guidance_scale != 1.0:
        cond, uncond = logits.chunk(2)
        logits = guide(cond, uncond, settings.guidance_scale)
    return truncate(logits / settings.temperature, settings.top_k, settings.top_p)


def _forced_after(slots: list[int], slot: int) -> list[int]:
    """The forced tokens between a free slot and the next one."""
    forced = []
    for token in slots[slot + 1 :]:
        if token == FREE:
            break
        forced.append(token)
    return forced


def _embed(model: UnifiedModel, codes: torch.Tensor, forced: list[int]) -> torch.Tensor:
    """[M] codes and the forced tokens after them -> [M, 1 + len(forced), D] embeddings."""
    parts = [model.embed_codes(codes)[:, None]]
    if forced:
        after = model.embed_text(torch.tensor(forced, device=codes.device))
        parts.append(after.expand(len(codes), -1, -1).to(parts[0].dtype))
    return torch.cat(parts, dim=1)


class _Stepper:
    """Runs the decoder step by step, with or without a cache; returns [M, D] last hidden states."""

    def __init__(
        self,
        model: UnifiedModel,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        num_slots: int,
        use_cache: bool,
    ) -> None:
        self._model = model
        self._embeds = model.embed_text(prompt_ids)
        self._mask = prompt_mask
        length = prompt_ids.shape[1] + num_slots
        self._cache = model.new_cache(length) if use_cache else None

    def start(self) -> torch.Tensor:
        """Process the prompts."""
        hidden = self._model.hidden_states(
            self._embeds, self._mask, positions(self._mask), self._cache
        )
        return hidden[:, -1]

    def feed(self, embeds: torch.Tensor) -> torch.Tensor:
        """Append [M, L, D] embeddings and process them."""
        more = self._mask.new_ones(len(embeds), embeds.shape[1])
        self._mask = torch.cat([self._mask, more], dim=1)
        position_ids = positions(self._mask)
        if self._cache is None:
            self._embeds = torch.cat([self._embeds, embeds], dim=1)
            return self._model.hidden_states(self._embeds, self._mask, position_ids)[:, -1]
        new = position_ids[:, -embeds.shape[1] :]
        return self._model.hidden_states(embeds, self._mask, new, self._cache)[:, -1]
