"""Loading a decoder in 4 or 8 bits a weight, by bitsandbytes through transformers' own config.

Within ``quantized(kind)``, ``loading.load_module`` hands transformers a ``BitsAndBytesConfig``, so
an adapter's ``load`` needs no further parameter. Only linear layers of the decoder's blocks are
quantised: codes of the image tokenizer would change, embeddings are looked up, and heads are
multiplied row by row (``modeling/chunked_head.py``).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from mm_cca.errors import UserError

INSTALL = 'pip install "mm-cca[quantization]"'
_KIND: ContextVar[str | None] = ContextVar("quantization", default=None)


@contextmanager
def quantized(kind: str | None) -> Iterator[None]:
    """Within it, checkpoints are loaded as ``model.quantization`` says; None changes nothing.

    Raises:
        UserError: bitsandbytes is not installed, or does not know this process's device.
    """
    if kind is not None:
        refuse_without_bitsandbytes("model.quantization", kind, "null")
        refuse_device(kind)
    token = _KIND.set(kind)
    try:
        yield
    finally:
        _KIND.reset(token)


def refuse_without_bitsandbytes(key: str, value: str, instead: str) -> None:
    """Raises UserError if a key's value needs bitsandbytes, which is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"{key} is {value}, which needs bitsandbytes, and that is not installed: {INSTALL}, or "
            f"use {key}={instead}."
        )


def refuse_device(kind: str) -> None:
    """Raises UserError if bitsandbytes has no kernels for the device of this process."""
    import bitsandbytes  # noqa: PLC0415 (optional)

    device, known = PartialState().device.type, sorted(bitsandbytes.supported_torch_devices)
    if device not in known:
        raise UserError(
            f"model.quantization is {kind}, but the device is {device}; bitsandbytes quantises on "
            f"{', '.join(known)}. Use model.quantization=null there."
        )


def loading_options(
    cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype
) -> dict[str, Any]:
    """What ``from_pretrained`` needs in addition; nothing outside of ``quantized``."""
    kind = _KIND.get()
    if kind is None:
        return {}
    with torch.device("meta"):
        module = cls(copy.deepcopy(config))
    settings = BitsAndBytesConfig(
        load_in_4bit=kind == "nf4",
        load_in_8bit=kind == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_kept(module),
    )
    # Quantised while it is read, so that the whole weights are never on the device together.
    return {"quantization_config": settings, "device_map": {"": PartialState().device}}


def blocks_of(module: PreTrainedModel) -> nn.Module:
    """The decoder's blocks, whose linear layers are quantised."""
    blocks: nn.Module = module.get_decoder().layers
    return blocks


def _kept(module: PreTrainedModel) -> list[str]:
    """Names of all linear layers outside of the decoder's blocks."""
    inside = {id(layer) for layer in blocks_of(module).modules()}
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and id(layer) not in inside
    ]


def quantized_part(module: nn.Module) -> PreTrainedModel | None:
    """The transformers model in an adapter's module that was quantised; None: there is none."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and getattr(part, "is_quantized", False):
            return part
    return None


def mark_quantized(module: nn.Module, name: str, kind: str) -> None:
    """Tell peft, which asks the outermost module, and refuse an adapter that did not quantise.

    In eval mode on some CPUs, bitsandbytes would pack 4-bit weights anew, with scales rounded to
    bfloat16: sampling would draw from another model than the one that is trained. Switched off.

    Raises:
        UserError: the adapter ``name`` does not load its model by ``load_module``.
    """
    if quantized_part(module) is None:
        raise UserError(
            f"model.quantization is {kind}, but the adapter {name!r} can't quantise: its load does "
            "not read the model by mm_cca.adapters.loading.load_module. Use "
            "model.quantization=null."
        )
    for layer in module.modules():
        if type(layer).__name__ == "Linear4bit":
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    module.is_loaded_in_4bit = kind == "nf4"  # type: ignore[assignment]
    module.is_loaded_in_8bit = kind == "int8"  # type: ignore[assignment]


def dequantize(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace quantised layers by plain ones with the values that they were computed with, in
    place."""
    part = quantized_part(module)
    if part is not None:
        part.dequantize(dtype)
        module.is_loaded_in_4bit = module.is_loaded_in_8bit = False  # type: ignore[assignment]
