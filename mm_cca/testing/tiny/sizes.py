"""What the tiny checkpoints share: sizes, captions, and weights that tell codes apart."""

from itertools import product
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

Layout: TypeAlias = Literal["hub", "transformers", "deepseek"]
"""``hub``: the files, names, shapes and configs of the family's folder on the hub.
``transformers``: what ``save_pretrained`` of today's transformers writes.
``deepseek``: Janus only, as DeepSeek's own code writes it."""

HIDDEN = 32
"""Of the decoder, unless a head size is asked for."""
WEIGHT_SPREAD = 0.3
"""Standard deviation of the weights. With transformers' own, every distribution would be nearly
uniform."""

CAPTIONS = [
    f"{adjective} {thing}, {style} style"
    for adjective, thing, style in product(
        ("red", "green", "small", "smiling"),
        ("owl", "waving hand", "grinning face with big eyes"),
        ("noto", "twemoji"),
    )
]
TEXT_VOCABULARY = 320
CODEBOOK_SIZE = 64


def hidden_size(heads: int, head_size: int | None) -> int:
    """Of a decoder whose heads are as wide as its hidden states together."""
    return HIDDEN if head_size is None else heads * head_size


def spread(*parts: nn.Module) -> None:
    for part in parts:
        for parameter in part.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=WEIGHT_SPREAD)


@torch.no_grad()
def use_many_codes(vq: Any) -> None:
    """Reset the layers, and set the codebook to latents of noise, so that images use many codes."""
    for layer in vq.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    latents = vq.quant_conv(vq.encoder(torch.randn(4, 3, 64, 64)))
    entries = latents.permute(0, 2, 3, 1).flatten(0, 2)
    vq.quantize.embedding.weight.copy_(entries[torch.randperm(len(entries))[:CODEBOOK_SIZE]])
