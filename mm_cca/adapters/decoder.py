"""What decoders of the Llama kind share. Shapes: B rows, L tokens, D hidden size."""

import torch
from torch import nn
from transformers import Cache

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Every linear layer of a block, which a LoRA tunes."""


def last_hidden(
    decoder: nn.Module,
    embeds: torch.Tensor,
    mask: torch.Tensor,
    position_ids: torch.Tensor,
    cache: Cache | None,
) -> torch.Tensor:
    """[B, L, D] embeddings through a decoder of transformers, with its final norm; [B, L, D]."""
    output = decoder(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden
