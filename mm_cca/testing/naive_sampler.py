"""A sampler to compare with: it recomputes every prefix, row by row, without cache or padding.

Draws are inverse-CDF in float64, straight from the definition.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from mm_cca.adapters.base import FREE, Grid, UnifiedModel
from mm_cca.modeling.sampler import SamplingSettings


@torch.no_grad()
def sample_naively(
    model: UnifiedModel,
    prompts: Sequence[str],
    grid: Grid,
    uniforms: np.ndarray,
    settings: SamplingSettings,
    pick: Callable[[np.ndarray, float], int] | None = None,
) -> torch.Tensor:
    """[B, N] codes of B prompts, with the uniforms [B, N] of ``image_stream``.

    ``pick`` maps [K] final logits, float64, and a uniform to a code; None: by inverse CDF.
    """
    rows = []
    for prompt, stream in zip(prompts, uniforms, strict=True):
        conditional = model.prompt_ids([prompt], grid)[0]
        contexts = [conditional]
        if settings.guidance_scale != 1.0:
            contexts.append(model.unconditional_ids(conditional, grid, settings.negative_prompt))
        codes: list[int] = []
        for uniform in stream:
            logits = [_logits(model, grid, context, codes) for context in contexts]
            final = _final(logits, settings)
            codes.append((pick or _inverse_cdf)(final, float(uniform)))
        rows.append(codes)
    return torch.tensor(rows)


def _logits(model: UnifiedModel, grid: Grid, prompt: list[int], codes: list[int]) -> np.ndarray:
    """[K] logits of the code after ``codes``, float64."""
    embedded = [model.embed_text(torch.tensor(token)) for token in prompt]
    number = 0
    for token in model.layout(grid).tokens.tolist():
        if token != FREE:
            embedded.append(model.embed_text(torch.tensor(token)).to(embedded[0].dtype))
        elif number == len(codes):
            break
        else:
            embedded.append(model.embed_codes(torch.tensor(codes[number])).to(embedded[0].dtype))
            number += 1
    embeds = torch.stack(embedded)[None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    hidden = model.hidden_states(embeds, mask, torch.arange(embeds.shape[1])[None])[0, -1]
    head = model.image_head()
    logits = head.weight.float() @ hidden.float()
    if head.bias is not None:
        logits = logits + head.bias
    picked: np.ndarray = logits[head.row_of_code].double().numpy()
    return picked


def _final(logits: list[np.ndarray], settings: SamplingSettings) -> np.ndarray:
    """Guidance, temperature, the top k codes, the nucleus."""
    logps = [row - _log_sum_exp(row) for row in logits]
    final = logps[0]
    if len(logps) == 2:
        final = logps[1] + settings.guidance_scale * (logps[0] - logps[1])
    final = final / settings.temperature
    if settings.top_k is not None and settings.top_k < len(final):
        final = np.where(final < np.sort(final)[-settings.top_k], -np.inf, final)
    if settings.top_p is not None:
        order = np.argsort(-final, kind="stable")
        likely = np.exp(final - _log_sum_exp(final))[order]
        outside = order[likely.cumsum() - likely >= settings.top_p]
        final = final.copy()
        final[outside] = -np.inf
    return final


def _log_sum_exp(row: np.ndarray) -> float:
    highest = row.max()
    return float(highest + np.log(np.exp(row - highest).sum()))


def _inverse_cdf(final: np.ndarray, uniform: float) -> int:
    cumulative = np.exp(final - _log_sum_exp(final)).cumsum()
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
