"""log softmax of a linear head at given targets, without a logits tensor of full length.

Positions are worked on in chunks, and the backward pass computes each chunk's softmax again.
Shapes: M positions, D hidden size, R rows of the head.
"""

from typing import Any

import torch

LOGITS_BUDGET = 2**24
"""Most float32 logits alive at a time (64 MB); smaller only costs a little speed."""


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
            for rows, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
                logits = head_logits(rows, weight, bias)
                normaliser = logits.logsumexp(dim=-1)
                logps.append(logits.gather(1, wanted[:, None]).squeeze(1) - normaliser)
                normalisers.append(normaliser)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalisers))
        ctx.chunk = chunk
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = (
            torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        )
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                logits = head_logits(hidden[part], weight, bias)
                # d logp / d logits = onehot - softmax
                by_logits = -torch.exp(logits - normalisers[part, None])
                by_logits.scatter_add_(
                    1, targets[part, None], torch.ones_like(targets[part, None], dtype=logits.dtype)
                )
                by_logits *= grad[part, None]
                if grad_hidden is not None:
                    grad_hidden[part] = by_logits.to(weight.dtype) @ weight
                if grad_weight is not None:
                    grad_weight += by_logits.T @ hidden[part].float()
                if grad_bias is not None:
                    grad_bias += by_logits.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
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
    """log p(target) under a linear head, without a logits tensor of full length.

    Args:
        hidden: [M, D] hidden states, any float dtype.
        weight: [R, D] rows of the head; may be a view into a larger matrix.
        bias: [R] or None.
        targets: [M] int64 rows of ``weight``.
        budget: most logits alive at a time; sets how many positions make a chunk.

    Returns:
        [M] float32, differentiable in hidden, weight and bias.
    """
    chunk = max(1, budget // weight.shape[0])
    logps: torch.Tensor = _ChunkedLogProbs.apply(hidden, weight, bias, targets, chunk)
    return logps
