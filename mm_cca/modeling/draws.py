"""From logits to a code: truncation, and inverse-CDF draws in exact integer arithmetic.

Shapes: B images, K image codes, N codes of an image.
"""

import numpy as np
import torch

_WEIGHT_BITS = 32
_UNIFORM_BITS = 48
_DIGIT_BITS = 12
"""A sum of 2^18 weights times one digit stays below 2^63."""


def image_stream(seed: int, index: int, num_codes: int) -> np.ndarray:
    """[N] float64 uniforms in [0, 1) of image ``index``; the same in every arm."""
    return np.random.default_rng([seed, index]).random(num_codes)


def fixed_point(uniforms: np.ndarray) -> torch.Tensor:
    """[...] float64 in [0, 1) -> [...] int64, the first 48 bits after the point."""
    return torch.from_numpy(np.floor(uniforms * 2.0**_UNIFORM_BITS).astype(np.int64))


def truncate(
    logits: torch.Tensor, top_k: int | None, top_p: float | torch.Tensor | None
) -> torch.Tensor:
    """[B, K] logits with all codes outside the top k or the nucleus p set to minus infinity."""
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p is not None and not (isinstance(top_p, float) and top_p >= 1):
        ordered, order = logits.sort(dim=-1, descending=True)
        likely = ordered.softmax(dim=-1)
        outside = torch.zeros_like(likely, dtype=torch.bool).scatter(
            1, order, likely.cumsum(dim=-1) - likely >= top_p
        )
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF draw: [B, K] float32 logits and [B] uniforms of ``fixed_point`` -> [B] codes.

    Each code's weight is its probability relative to the most likely code, rounded down to a
    multiple of 2^-32; weights are added up and compared as integers. So a draw depends neither on
    the order of the sum, nor on the batch, nor on whether the device has float64. A code less
    likely than 2^-32 times the most likely one is never drawn. At most 2^18 codes.
    """
    relative = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    cumulative = (relative * 2.0**_WEIGHT_BITS).long().cumsum(dim=-1)
    threshold = _portion(cumulative[:, -1], uniforms)
    return (cumulative <= threshold[:, None]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def _portion(total: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """floor(total * uniforms / 2^48) of int64, digit by digit, as the product needs 98 bits."""
    portion = torch.zeros_like(total)
    for shift in range(0, _UNIFORM_BITS, _DIGIT_BITS):
        digit = (uniforms >> shift) & (2**_DIGIT_BITS - 1)
        portion = (portion + total * digit) >> _DIGIT_BITS
    return portion
