"""log softmax of a linear head at given targets, without the logits of all positions in memory.

Positions are processed in chunks, and the backward pass recomputes each chunk's softmax.
Shapes: M positions, D hidden size, R rows of the head.
"""

from collections.abc import Callable
from typing import Any

import torch

LOGITS_BUDGET = 2**24
"""Most float32 logits in memory at a time (64 MB); a smaller budget is only a little slower."""


class _ChunkedLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias)[target], chunk by chunk over positions."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        logps, normalisers = [], []
        with torch.autocast(hidden.device.type, enabled=False):
            for states, target in zip(hidden.split(chunk), targets.split(chunk), strict=True):
                logits = head_logits(states, weight, bias)
                normaliser = logits.logsumexp(dim=-1)
                logps.append(logits.gather(1, target[:, None]).squeeze(1) - normaliser)
                normalisers.append(normaliser)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalisers))
        ctx.chunk = chunk
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors

        def by_logits(part: slice, logits: torch.Tensor) -> torch.Tensor:
            # d logp / d logits = onehot - softmax
            gradient = -torch.exp(logits - normalisers[part, None])
            ones = torch.ones_like(targets[part, None], dtype=gradient.dtype)
            return gradient.scatter_add_(1, targets[part, None], ones) * grad[part, None]

        needs = ctx.needs_input_grad[:3]
        return (*head_gradients(hidden, weight, bias, needs, ctx.chunk, by_logits), None, None)


def head_gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    needs: tuple[bool, bool, bool],
    chunk: int,
    by_logits: Callable[[slice, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients through ``head_logits``, chunk by chunk, recomputing the logits.

    Args:
        hidden: [M, D].
        weight: [R, D].
        bias: [R] or None.
        needs: which of these three need a gradient.
        chunk: positions at a time.
        by_logits: maps a chunk and its [m, R] logits to the gradient with respect to the logits.

    Returns:
        gradients of hidden, weight and bias, each None if not needed. Sums over positions are
        accumulated in float32.
    """
    of_hidden = torch.empty_like(hidden) if needs[0] else None
    of_weight = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
    of_bias = torch.zeros_like(bias, dtype=torch.float32) if needs[2] and bias is not None else None
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            gradient = by_logits(part, head_logits(hidden[part], weight, bias))
            if of_hidden is not None:
                of_hidden[part] = gradient.to(weight.dtype) @ weight
            if of_weight is not None:
                of_weight += gradient.T @ hidden[part].float()
            if of_bias is not None:
                of_bias += gradient.sum(0)
    return (
        of_hidden,
        None if of_weight is None else of_weight.to(weight.dtype),
        None if of_bias is None or bias is None else of_bias.to(bias.dtype),
    )


def head_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """[M, D] hidden states of any float dtype -> [M, R] float32 logits."""
    logits = (hidden.to(weight.dtype) @ weight.T).float()
    return logits if bias is None else logits + bias.float()


def chunked_logps(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    budget: int = LOGITS_BUDGET,
) -> torch.Tensor:
    """log p(target) under a linear head, without the logits of all positions in memory.

    Args:
        hidden: [M, D] hidden states, any float dtype.
        weight: [R, D] rows of the head; may be a view into a larger matrix.
        bias: [R] or None.
        targets: [M] int64 rows of ``weight``.
        budget: most logits in memory at a time; determines the number of positions per chunk.

    Returns:
        [M] float32, differentiable in hidden, weight and bias.
    """
    chunk = max(1, budget // weight.shape[0])
    logps: torch.Tensor = _ChunkedLogProbs.apply(hidden, weight, bias, targets, chunk)
    return logps
