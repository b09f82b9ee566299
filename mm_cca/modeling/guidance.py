"""Classifier-free guidance, and the KL from a guided distribution to the model's own.

The KL is computed in chunks of positions: the logits of all positions are never in memory, and the
backward pass recomputes both distributions.

Shapes: B images, M positions, D hidden size, K image codes.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from mm_cca.modeling.chunked_head import LOGITS_BUDGET, head_gradients, head_logits


def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance on logits, [B, K] each.

    ``uncond + scale * (cond - uncond)`` of log-probabilities, as in transformers'
    ``UnbatchedClassifierFreeGuidanceLogitsProcessor``.
    """
    cond, uncond = cond.log_softmax(dim=-1), uncond.log_softmax(dim=-1)
    return uncond + scale * (cond - uncond)


@dataclass(frozen=True)
class BaseStates:
    """The frozen base at the positions of B images of N codes, from which its distributions follow.

    Attributes:
        conditional: [B, N, D] hidden states given the own caption; None where no loss needs them.
        unconditional: [B, N, D] given the unconditional prompt.
        weight: [K, D] image rows of the base's head, in the order of the model's own; None where
            the model shares it (a LoRA).
        bias: [K] or None.
    """

    conditional: torch.Tensor | None
    unconditional: torch.Tensor
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def with_head(self, weight: torch.Tensor, bias: torch.Tensor | None) -> "BaseStates":
        """With the model's head where it has none of its own."""
        if self.weight is not None:
            return self
        return replace(self, weight=weight.detach(), bias=None if bias is None else bias.detach())

    def conditional_logits(self, chunk: slice) -> torch.Tensor:
        """[m, K] float32 logits of a chunk of the B * N positions."""
        assert self.conditional is not None
        return self._logits(self.conditional, chunk)

    def unconditional_logits(self, chunk: slice) -> torch.Tensor:
        """[m, K] float32 logits of a chunk of the B * N positions."""
        return self._logits(self.unconditional, chunk)

    def _logits(self, states: torch.Tensor, chunk: slice) -> torch.Tensor:
        assert self.weight is not None, "with_head comes first"
        return head_logits(states.flatten(0, 1)[chunk], self.weight, self.bias)

    def guided_log_probs(self, chunk: slice, scale: float) -> torch.Tensor:
        """[m, K] log-probabilities guided at ``scale`` of a chunk of the B * N positions."""
        cond, uncond = self.conditional_logits(chunk), self.unconditional_logits(chunk)
        return guide(cond, uncond, scale).log_softmax(dim=-1)


class _ChunkedGuidedKL(torch.autograd.Function):
    """KL(guided base || softmax(hidden @ weight.T + bias)) at every position."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        base: BaseStates,
        scale: float,
        chunk: int,
    ) -> torch.Tensor:
        kls = []
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                guided = base.guided_log_probs(part, scale)
                own = head_logits(hidden[part], weight, bias).log_softmax(dim=-1)
                kls.append((guided.exp() * (guided - own)).sum(dim=-1))
        ctx.save_for_backward(hidden, weight, bias)
        ctx.base, ctx.scale, ctx.chunk = base, scale, chunk
        return torch.cat(kls)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors

        def by_logits(part: slice, logits: torch.Tensor) -> torch.Tensor:
            # d KL / d logits = own - guided
            guided = ctx.base.guided_log_probs(part, ctx.scale).exp()
            return (logits.softmax(dim=-1) - guided) * grad[part, None]

        needs = ctx.needs_input_grad[:3]
        of_inputs = head_gradients(hidden, weight, bias, needs, ctx.chunk, by_logits)
        return *of_inputs, None, None, None


def guided_kl(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    base: BaseStates,
    *,
    scale: float,
    budget: int = LOGITS_BUDGET,
) -> torch.Tensor:
    """KL(guided base || model) of each image, summed over its codes.

    Args:
        states: [B, N, D] the model's hidden states with the image's own caption.
        weight: [K, D] image rows of the model's head.
        bias: [K] or None.
        base: the frozen base at the same positions.
        scale: guidance scale of the base.
        budget: most logits of one distribution in memory at a time; three distributions are.

    Returns:
        [B] float32 nats per image, differentiable in states, weight and bias.
    """
    base = base.with_head(weight, bias)
    chunk = max(1, budget // weight.shape[0])
    flat: torch.Tensor = _ChunkedGuidedKL.apply(
        states.flatten(0, 1), weight, bias, base, scale, chunk
    )
    return flat.view(states.shape[:2]).sum(dim=1)
