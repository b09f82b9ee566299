"""Negative log-likelihood of plain text: measures what fine-tuning does to the language model.

Shapes: B texts, T tokens (left-padded), D hidden size, V vocabulary.
"""

from collections.abc import Sequence

import torch

from mm_cca.adapters.base import UnifiedModel
from mm_cca.modeling.chunked_head import chunked_logps
from mm_cca.modeling.inputs import PaddedTokens, left_pad, positions

MAX_TOKENS = 512
"""Longer texts are truncated: this is enough to measure a change, at about the cost of a prompt."""


def text_nll(model: UnifiedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, T] ids and bool mask -> [B] float32 mean nats per token, without each text's first."""
    states = model.text_states(ids, mask, positions(mask))[:, :-1]
    head = model.text_head()
    flat = chunked_logps(states.flatten(0, 1), head.weight, head.bias, ids[:, 1:].flatten())
    counts = mask[:, :-1] & mask[:, 1:]
    logps = flat.view_as(counts).masked_fill(~counts, 0.0)
    return -logps.sum(dim=1) / counts.sum(dim=1).clamp(min=1)


def text_batch(model: UnifiedModel, texts: Sequence[str]) -> PaddedTokens:
    """Texts -> [B, T] ids and bool mask, in the family's format of plain text."""
    length = min(MAX_TOKENS, model.max_tokens)
    return left_pad([row[:length] for row in model.text_ids(texts)], model.pad_id)
