"""Prompts to image codes: one path with and without guidance, batched, with a key-value cache.

Every image draws from its own stream: uniform ``u[t]`` turns the distribution of slot t into a code
by its inverse cumulative distribution, so a picture does not depend on its batch.

Shapes: B images, M = B rows without guidance and 2B with it, P prompt tokens, S slots, N free
codes, K image codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm_cca.adapters.base import FREE, Grid, UnifiedModel
from mm_cca.modeling.guidance import guide
from mm_cca.modeling.inputs import left_pad, positions


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn. ``guidance_scale`` 1.0 never runs the second pass."""

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    negative_prompt: str = ""


def image_stream(seed: int, index: int, num_codes: int) -> np.ndarray:
    """[N] float64 uniforms in [0, 1) of image ``index``; the same in every arm."""
    return np.random.default_rng([seed, index]).random(num_codes)


def truncate(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """[B, K] logits with everything outside the top k and the nucleus p at minus infinity."""
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
    # The last sum can fall short of 1 by rounding; scaling keeps every draw inside.
    wanted = uniforms.double()[:, None] * cumulative[:, -1:]
    return (
        torch.searchsorted(cumulative, wanted, right=True)
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
    """Draw one image per prompt.

    Args:
        model: in eval mode.
        prompts: [B] captions.
        grid: of the images.
        uniforms: [B, N] from ``image_stream``.
        settings: see ``SamplingSettings``.
        use_cache: False computes every prefix anew, for tests.
        pick: from [B, K] final logits and [B] uniforms to [B] codes.

    Returns:
        [B, N] int64 codes, and the number of forward passes per image (a guided step counts two).
    """
    layout = model.layout(grid)
    guided = settings.guidance_scale != 1.0
    ids = model.prompt_ids(prompts, grid)
    if guided:
        ids += [model.unconditional_ids(row, grid, settings.negative_prompt) for row in ids]
    device = next(model.module.parameters()).device
    prompt_ids, prompt_mask = (t.to(device) for t in left_pad(ids, model.pad_id, multiple=1))
    stepper = _Stepper(model, prompt_ids, prompt_mask, len(layout.tokens), use_cache)
    head = model.image_head()
    rows = head.row_of_code.to(device)
    codes = torch.empty(len(prompts), layout.num_codes, dtype=torch.long, device=device)
    draws = torch.from_numpy(uniforms).to(device)
    hidden = stepper.start()
    slots, number = list(layout.tokens.tolist()), 0
    steps = 0
    for slot, token in enumerate(slots):
        if token != FREE:
            continue
        steps += 1
        logits = (hidden.to(head.weight.dtype) @ head.weight.T).float()
        if head.bias is not None:
            logits = logits + head.bias.float()
        logits = logits[:, rows]
        if guided:
            cond, uncond = logits.chunk(2)
            logits = guide(cond, uncond, settings.guidance_scale)
        logits = truncate(logits / settings.temperature, settings.top_k, settings.top_p)
        codes[:, number] = pick(logits, draws[:, number])
        if number + 1 < layout.num_codes:
            # The drawn code and the forced tokens right after it go in together.
            chosen = codes[:, number].repeat(2 if guided else 1)
            forced = _forced_after(slots, slot)
            hidden = stepper.feed(_embed(model, chosen, forced))
        number += 1
    return codes, steps * (2 if guided else 1)


def _forced_after(slots: list[int], slot: int) -> list[int]:
    forced = []
    for token in slots[slot + 1 :]:
        if token == FREE:
            break
        forced.append(token)
    return forced


def _embed(model: UnifiedModel, codes: torch.Tensor, forced: list[int]) -> torch.Tensor:
    """[M] codes and the forced tokens after them -> [M, 1 + len(forced), D]."""
    parts = [model.embed_codes(codes)[:, None]]
    if forced:
        after = model.embed_text(torch.tensor(forced, device=codes.device))
        parts.append(after.expand(len(codes), -1, -1).to(parts[0].dtype))
    return torch.cat(parts, dim=1)


class _Stepper:
    """Feeds embeddings and returns the last hidden state [M, D], with or without a cache."""

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
        hidden = self._model.hidden_states(
            self._embeds, self._mask, positions(self._mask), self._cache
        )
        return hidden[:, -1]

    def feed(self, embeds: torch.Tensor) -> torch.Tensor:
        more = self._mask.new_ones(len(embeds), embeds.shape[1])
        self._mask = torch.cat([self._mask, more], dim=1)
        places = positions(self._mask)
        if self._cache is None:
            self._embeds = torch.cat([self._embeds, embeds], dim=1)
            return self._model.hidden_states(self._embeds, self._mask, places)[:, -1]
        new = places[:, -embeds.shape[1] :]
        return self._model.hidden_states(embeds, self._mask, new, self._cache)[:, -1]
