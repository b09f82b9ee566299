"""Classifier-free guidance, and the KL from a guided distribution to the model's own.

The KL is computed in chunks of positions: the logits of all positions are never in memory, and the
backward pass recomputes both distributions.

Shapes: B images, M positions, D hidden size, K image codes.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from mm_cca.modeling.chunked_head import LOGITS_BUDGET, head_gradients, head_logits


def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance on logits, [B, K] each.

    ``uncond + scale * (cond - uncond)`` of log-probabilities, as in transformers'
    ``UnbatchedClassifierFreeGuidanceLogitsProcessor``.
    """
    cond, uncond = cond.log_softmax(dim=-1), uncond.log_softmax(dim=-1)
    return uncond + scale * (cond - uncond)


@dataclass(frozen=True)
class Teacher:
    """The frozen base's hidden states for B images of N codes, with and without their prompts.

    Attributes:
        conditional: [B, N, D] hidden states with the image's own caption.
        unconditional: [B, N, D] hidden states with the unconditional prompt.
        scale: of the guidance.
        weight: [K, D] image rows of the base's head, in the same order as the model's; None if
            the model shares its head with the base (a LoRA).
        bias: [K] or None.
    """

    conditional: torch.Tensor
    unconditional: torch.Tensor
    scale: float
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def with_head(self, weight: torch.Tensor, bias: torch.Tensor | None) -> "Teacher":
        """With the model's head where it has none of its own."""
        if self.weight is not None:
            return self
        return replace(self, weight=weight.detach(), bias=None if bias is None else bias.detach())

    def log_probs(self, chunk: slice) -> torch.Tensor:
        """[m, K] guided log-probabilities of a chunk of the B * N positions, float32."""
        assert self.weight is not None
        cond, uncond = (
            head_logits(states.flatten(0, 1)[chunk], self.weight, self.bias)
            for states in (self.conditional, self.unconditional)
        )
        return guide(cond, uncond, self.scale).log_softmax(dim=-1)


class _ChunkedGuidedKL(torch.autograd.Function):
    """KL(teacher || softmax(hidden @ weight.T + bias)) at every position."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        teacher: Teacher,
        chunk: int,
    ) -> torch.Tensor:
        kls = []
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                guided = teacher.log_probs(part)
                own = head_logits(hidden[part], weight, bias).log_softmax(dim=-1)
                kls.append((guided.exp() * (guided - own)).sum(dim=-1))
        ctx.save_for_backward(hidden, weight, bias)
        ctx.teacher, ctx.chunk = teacher, chunk
        return torch.cat(kls)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors

        def by_logits(part: slice, logits: torch.Tensor) -> torch.Tensor:
            # d KL / d logits = own - teacher
            return (logits.softmax(dim=-1) - ctx.teacher.log_probs(part).exp()) * grad[part, None]

        needs = ctx.needs_input_grad[:3]
        return (*head_gradients(hidden, weight, bias, needs, ctx.chunk, by_logits), None, None)


def guided_kl(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    teacher: Teacher,
    *,
    budget: int = LOGITS_BUDGET,
) -> torch.Tensor:
    """KL(guided base || model) of each image, summed over its codes.

    Args:
        states: [B, N, D] the model's hidden states with the image's own caption.
        weight: [K, D] image rows of the model's head.
        bias: [K] or None.
        teacher: the base at the same positions.
        budget: most logits of one distribution in memory at a time; three distributions are.

    Returns:
        [B] float32 nats per image, differentiable in states, weight and bias.
    """
    teacher = teacher.with_head(weight, bias)
    chunk = max(1, budget // weight.shape[0])
    flat: torch.Tensor = _ChunkedGuidedKL.apply(states.flatten(0, 1), weight, bias, teacher, chunk)
    return flat.view(states.shape[:2]).sum(dim=1)
