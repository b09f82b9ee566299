"""Negative log-likelihood of plain text: measures what fine-tuning does to the language model.

Shapes: B texts, T tokens (padded), D hidden size, V vocabulary.
"""

from collections.abc import Sequence

import torch

from mm_cca.adapters.base import UnifiedModel
from mm_cca.modeling.chunked_head import chunked_logps
from mm_cca.modeling.inputs import PaddedTokens, every_position, padding_last, right_pad

MAX_TOKENS = 512
"""Longer texts are truncated: this is enough to measure a change, at about the cost of a prompt."""


def text_nll(model: UnifiedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, T] ids and bool mask -> [B] float32 mean nats per token, without each text's first.

    Texts may be padded on either side; the decoder gets them with the padding last, without a mask.
    """
    order = padding_last(mask)
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    states = model.text_states(ids, *every_position(ids))[:, :-1]
    head = model.text_head()
    flat = chunked_logps(states.flatten(0, 1), head.weight, head.bias, ids[:, 1:].flatten())
    counts = mask[:, :-1] & mask[:, 1:]
    logps = flat.view_as(counts).masked_fill(~counts, 0.0)
    return -logps.sum(dim=1) / counts.sum(dim=1).clamp(min=1)


def text_batch(model: UnifiedModel, texts: Sequence[str]) -> PaddedTokens:
    """Texts -> [B, T] ids and bool mask, in the family's format of plain text."""
    length = min(MAX_TOKENS, model.max_tokens)
    return right_pad([row[:length] for row in model.text_ids(texts)], model.pad_id)
