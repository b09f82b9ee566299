"""One step of the sampler: the last code and forced tokens go in, the next code comes out.

A step reads and writes tensors on the device only and has the same shapes from the first code to
the last, so that it can be compiled and captured: see ``compiled_step.py``.

Shapes: B images, M = B rows without guidance and 2B with it, S slots, N free codes, D hidden size,
C tokens that the mask covers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
from transformers import Cache

from mm_cca.adapters.base import FREE, ImageLayout, UnifiedModel
from mm_cca.modeling.chunked_head import head_logits
from mm_cca.modeling.draws import truncate
from mm_cca.modeling.guidance import guide
from mm_cca.modeling.kv_cache import set_filled

Pick: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""[B, K] final logits and [B] uniforms of ``fixed_point`` -> [B] codes."""


@dataclass(frozen=True)
class Rules:
    """What decides which operations a step consists of; numbers are in ``StepTensors``."""

    is_guided: bool
    top_k: int | None
    has_top_p: bool
    has_forced_tokens: bool


class StepTensors(NamedTuple):
    """All that a step reads and writes besides weights and cache, on the model's device.

    Attributes:
        slot: [1] int64, the next slot that the decoder reads.
        codes: [B, N] int64; those drawn so far are valid.
        uniforms: [B, N] int64 of ``fixed_point``.
        start: [M, 1] int64, the position of slot 0: how many tokens the row's prompt has.
        forced: [S] int64, the token of each forced slot, 0 elsewhere.
        is_free: [S] bool.
        number: [S] int64, for a free slot the number of its code, for a forced one that of the
            last code before it.
        row_of_code: [K] int64.
        scale: [] float32 of guidance, or [B, 1] with one for each image.
        temperature: [] float32.
        top_p: [] float32, 1 if there is none.
    """

    slot: torch.Tensor
    codes: torch.Tensor
    uniforms: torch.Tensor
    start: torch.Tensor
    forced: torch.Tensor
    is_free: torch.Tensor
    number: torch.Tensor
    row_of_code: torch.Tensor
    scale: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor


def widths(layout: ImageLayout, *, one_width: bool) -> list[int]:
    """How many slots each step reads; the last code is never read.

    A code and the forced tokens after it make one step, which saves forward passes but makes steps
    of two widths where rows have ends. With ``one_width`` every slot is a step of its own; what is
    drawn before a forced token is overwritten by the draw after it.
    """
    free = layout.free_slots.tolist()
    if one_width:
        return [1] * (free[-1] - free[0])
    return [later - earlier for earlier, later in pairwise(free)]


def step(
    model: UnifiedModel,
    cache: Cache,
    tensors: StepTensors,
    mask: torch.Tensor,
    width: int,
    rules: Rules,
    pick: Pick,
) -> None:
    """Read ``width`` slots and draw the code after them, in place.

    Args:
        model: in eval mode.
        cache: filled up to the slots.
        tensors: ``slot`` and ``codes`` change.
        mask: [M, C] bool; C is what is filled after the step, or for transformers' static cache
            its capacity.
        width: slots.
        rules: see ``Rules``.
        pick: usually ``draw``.
    """
    set_filled(cache, mask.shape[1] - width)
    slots = tensors.slot + torch.arange(width, device=tensors.slot.device)
    rows = 2 if rules.is_guided else 1
    embeds = _embed(model, tensors, slots, rules).repeat(rows, 1, 1)
    hidden = model.hidden_states(embeds, mask, tensors.start + slots, cache)[:, -1]
    tensors.slot.add_(width)
    draw_code(hidden, model, tensors, tensors.number[slots[-1:]] + 1, rules, pick)


def draw_code(
    hidden: torch.Tensor,
    model: UnifiedModel,
    tensors: StepTensors,
    number: torch.Tensor,
    rules: Rules,
    pick: Pick,
) -> None:
    """[M, D] last hidden states -> code ``number`` ([1]) of each image, into ``tensors.codes``."""
    head = model.image_head()
    logits = head_logits(hidden, head.weight, head.bias)[:, tensors.row_of_code]
    if rules.is_guided:
        cond, uncond = logits.chunk(2)
        logits = guide(cond, uncond, tensors.scale)
    top_p = tensors.top_p if rules.has_top_p else None
    logits = truncate(logits / tensors.temperature, rules.top_k, top_p)
    drawn = pick(logits, tensors.uniforms.index_select(1, number)[:, 0])
    tensors.codes.index_copy_(1, number, drawn[:, None])


def _embed(
    model: UnifiedModel, tensors: StepTensors, slots: torch.Tensor, rules: Rules
) -> torch.Tensor:
    """[B, W, D] embeddings of W slots: the codes drawn, and the forced tokens."""
    codes = model.embed_codes(tensors.codes[:, tensors.number[slots]])
    if not rules.has_forced_tokens:
        return codes
    forced = model.embed_text(tensors.forced[slots]).to(codes.dtype)
    return torch.where(tensors.is_free[slots][:, None], codes, forced)


def layout_tensors(layout: ImageLayout) -> dict[str, torch.Tensor]:
    """The fields of ``StepTensors`` that depend on the layout alone."""
    tokens = torch.from_numpy(layout.tokens)
    is_free = tokens == FREE
    return {
        "forced": tokens.clamp(min=0),
        "is_free": is_free,
        "number": (is_free.long().cumsum(dim=0) - 1).clamp(min=0),
    }
