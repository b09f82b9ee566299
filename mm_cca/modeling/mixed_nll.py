"""Guidance-free training (GFT, arXiv 2501.15420): likelihood of a mixture with the frozen base.

The cross-entropy of ``softmax(b * theta + (1 - b) * u)``, where theta are the model's logits given
the caption, u the base's without it, and ``b = 1 / scale``. Where the mixture fits the data, theta
is the guided distribution of that scale: ``theta = u + scale * (mixture - u)``.

No logits of the full length are kept; they are computed again in the backward pass.
Shapes: B images, N codes of an image, m positions of a chunk, D hidden size, K image codes.
"""

from typing import Any

import torch

from mm_cca.modeling.chunked_head import LOGITS_BUDGET, head_gradients, head_logits
from mm_cca.modeling.guidance import BaseStates


class _ChunkedMixedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        base: BaseStates,
        codes: torch.Tensor,
        share: float,
        chunk: int,
    ) -> torch.Tensor:
        losses = []
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                mixture = _mixture(head_logits(hidden[part], weight, bias), base, part, share)
                losses.append(-mixture.gather(1, codes[part, None]).squeeze(1))
        ctx.save_for_backward(hidden, weight, bias, codes)
        ctx.base, ctx.share, ctx.chunk = base, share, chunk
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, codes = ctx.saved_tensors

        def by_logits(part: slice, logits: torch.Tensor) -> torch.Tensor:
            # d loss / d theta = share * (mixture - onehot)
            gradient = _mixture(logits, ctx.base, part, ctx.share).exp()
            gradient.scatter_add_(1, codes[part, None], -torch.ones_like(gradient[:, :1]))
            return gradient * (ctx.share * grad[part, None])

        needs = ctx.needs_input_grad[:3]
        of_inputs = head_gradients(hidden, weight, bias, needs, ctx.chunk, by_logits)
        return *of_inputs, None, None, None, None


def _mixture(logits: torch.Tensor, base: BaseStates, part: slice, share: float) -> torch.Tensor:
    """[m, K] log-probabilities of the mixture."""
    return torch.lerp(base.unconditional_logits(part), logits, share).log_softmax(dim=-1)


def mixed_nll(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    base: BaseStates,
    codes: torch.Tensor,
    *,
    scale: float,
    budget: int = LOGITS_BUDGET,
) -> torch.Tensor:
    """Negative log-likelihood of every code under the mixture.

    Args:
        states: [B, N, D] the model's hidden states given the images' own captions.
        weight: [K, D] image rows of the model's head.
        bias: [K] or None.
        base: the frozen base at the same positions; without a head of its own it shares the
            model's.
        codes: [B, N] the images' codes.
        scale: the guidance scale to learn; 1 is the plain likelihood.
        budget: most logits of one distribution alive at a time; two are.

    Returns:
        [B, N] float32 nats, differentiable in states, weight and bias.
    """
    base = base.with_head(weight, bias)
    chunk = max(1, budget // weight.shape[0])
    losses: torch.Tensor = _ChunkedMixedNll.apply(
        states.flatten(0, 1), weight, bias, base, codes.flatten(), 1 / scale, chunk
    )
    return losses.view(codes.shape)
