"""Which attention trains fastest on a CPU; on other devices PyTorch's own choice is right.

Measured as processor time of forward and backward passes (one thread, heads of size 32):
PyTorch's flash kernel against its plain matrix products is 1.5 to 2.2 times as fast in float32 and,
in bfloat16, 2 times at 320 tokens and 5 times at 1,088; but at 96 tokens its backward pass in
bfloat16 takes twice as long. So short images in half precision are trained with matrix products.

Shapes: B rows, H heads, L tokens, d size of a head.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SHORT = 128
"""Codes of an image up to which matrix products are faster in half precision."""


def training_attention(
    device: torch.device, num_codes: int, *, half: bool
) -> AbstractContextManager[None]:
    """A context with the attention to train with, also for the passes of the frozen base.

    Gaps start at 0 only if the model and its base are computed by the same kernel, so the choice
    depends on nothing that differs between their passes.

    Args:
        device: of the model.
        num_codes: of an image.
        half: whether the passes run in bfloat16 or float16.
    """
    if device.type == "cpu" and half and num_codes <= SHORT:
        return _causal_products()
    return nullcontext()


def matrix_products(device: torch.device) -> AbstractContextManager[None]:
    """A context with plain matrix products on a CPU, for small networks that are not causal."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


@contextmanager
def _causal_products() -> Iterator[None]:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = causal_attention
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before


def causal_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for attention: [B, H, L, d] each -> [B, L, H, d].

    Equal to the last bit to PyTorch's plain matrix products, which compute in float32, but without
    their search for tokens that see nothing: 10 % less time for a step of the demo. With a mask, a
    cache, dropout, or fewer heads of keys it is PyTorch's.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or not causal or dropout or query.shape != key.shape:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    length, size = query.shape[-2:]
    # Both factors of the product are scaled, by the root of the scale.
    root = (size**-0.5 if scaling is None else scaling) ** 0.5
    later = torch.full((length, length), -torch.inf, device=query.device).triu(1)
    with torch.autocast(kind, enabled=False):
        q, k, v = (x.to(dtype).float() for x in (query, key, value))
        scores = (q * root) @ (k.transpose(-2, -1) * root)
        scores += later
        seen = (scores.softmax(dim=-1) @ v).to(dtype)
    return seen.transpose(1, 2).contiguous(), None
