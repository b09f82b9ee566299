"""log p(image codes | prompt), from hidden states and the image rows of the output head.

No logits tensor of the full length or the full vocabulary is ever kept: positions are worked on in
chunks, and the backward pass computes each chunk's softmax again.

Shapes: B rows, P prompt tokens (left-padded), S slots of the image span, N free codes, D hidden
size, R rows of the head, K image codes.
"""

from typing import Any, Self

import torch
from torch import nn

from mm_cca.adapters.base import ImageLayout, UnifiedModel

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
                logits = _logits(rows, weight, bias)
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
                logits = _logits(hidden[part], weight, bias)
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


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
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


def left_pad(
    ids: list[list[int]], pad_id: int, multiple: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token lists -> [B, P] ids and [B, P] bool mask, padded on the left.

    P is the longest length rounded up to a ``multiple``, so that few shapes occur.
    """
    longest = -(-max(len(row) for row in ids) // multiple) * multiple
    padded = [[pad_id] * (longest - len(row)) + row for row in ids]
    mask = [[False] * (longest - len(row)) + [True] * len(row) for row in ids]
    return torch.tensor(padded), torch.tensor(mask)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """[B, L] mask -> [B, L] position of every token counted from the row's first real one."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def embed_span(model: UnifiedModel, codes: torch.Tensor, layout: ImageLayout) -> torch.Tensor:
    """[B, N] codes -> [B, S, D] input embeddings of the span, forced tokens in their places."""
    tokens = torch.as_tensor(layout.tokens, device=codes.device)
    embedded = model.embed_text(tokens.clamp(min=0)).expand(len(codes), -1, -1)
    free = torch.as_tensor(layout.free_slots, device=codes.device)
    return embedded.index_copy(1, free, model.embed_codes(codes).to(embedded.dtype))


class CodeLogProbs(nn.Module):
    """The forward pass of training: summed log-probabilities of images given prompts.

    It owns ``model.module``, so that accelerate, DDP and FSDP wrap one module whose ``forward`` is
    all that training calls.
    """

    def __init__(self, model: UnifiedModel, layout: ImageLayout, *, whole_vocabulary: bool) -> None:
        super().__init__()
        self.module = model.module
        self._model = (model,)  # in a tuple: the adapter's module must not be registered twice
        self._layout = layout
        self._whole_vocabulary = whole_vocabulary

    @property
    def model(self) -> UnifiedModel:
        return self._model[0]

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, but the frozen parts stay in eval mode."""
        super().train(mode)
        for part in self.model.frozen():
            part.eval()
        return self

    def forward(
        self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, codes: torch.Tensor
    ) -> torch.Tensor:
        """[B, P] ids, [B, P] bool mask and [B, N] codes -> [B] float32 log p, summed over codes."""
        return self.per_code(prompt_ids, prompt_mask, codes).sum(dim=1)

    def per_code(
        self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, codes: torch.Tensor
    ) -> torch.Tensor:
        """As ``forward``, but [B, N]: one log-probability per code."""
        model, layout = self.model, self._layout
        last = layout.free_slots[-1]
        span = embed_span(model, codes, layout)[:, :last]
        embeds = torch.cat([model.embed_text(prompt_ids), span], dim=1)
        span_mask = prompt_mask.new_ones(len(codes), last)
        mask = torch.cat([prompt_mask, span_mask], dim=1)
        hidden = model.hidden_states(embeds, mask, positions(mask))
        # The state before a slot predicts it; the first slot comes right after the prompt.
        before = torch.as_tensor(layout.free_slots, device=codes.device) + prompt_ids.shape[1] - 1
        hidden = hidden.index_select(1, before)
        head = model.image_head(whole_vocabulary=self._whole_vocabulary)
        targets = head.row_of_code.to(codes.device)[codes]
        flat = chunked_logps(hidden.flatten(0, 1), head.weight, head.bias, targets.flatten())
        return flat.view_as(codes)
