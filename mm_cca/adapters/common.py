"""What most families share: ``StandardDecoder``, an optional base class, and a few functions.

The protocol is ``base.UnifiedModel``; an adapter may implement it without this file.
Shapes: see ``adapters/base.py``.
"""

import math
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Cache, LlamaModel, PreTrainedModel, StaticCache

from mm_cca.adapters.base import EngineServing, Grid, ImageHead
from mm_cca.adapters.vocabulary import CodeTokens
from mm_cca.errors import UserError

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Every linear layer of a block, which a LoRA tunes."""

# transformers 5.40 removes the old name of the first and version 6 that of the second.
CACHE_ARGUMENT = next(
    name
    for name in ("cache", "past_key_values")
    if name in signature(LlamaModel.forward).parameters
)
"""What the installed transformers calls the key-value cache in a decoder's ``forward``."""

_ENABLE_CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    if name in dir(PreTrainedModel)
)


class StandardDecoder:
    """A transformers model whose decoder reads embeddings, with its image tokenizer.

    Implements what families of this kind have in common. Left to the family: ``name``,
    ``defaults``, ``load``, ``layout``, ``prompt_ids``, ``unconditional_ids``, ``text_ids``,
    ``encode`` and ``decode``. Every method may be overridden. A subclass finds the arguments as
    ``_model``, ``_processor``, ``_vq`` and ``_codes``, and the decoder as ``_decoder``.

    Args:
        model: has ``get_decoder`` and ``get_output_embeddings``; ``save`` writes it.
        processor: the tokenizer or processor, whose files ``save`` writes next to the weights.
        image_tokenizer: inside ``module``; the only part in ``frozen``, unless overridden.
        pad_id: vocabulary id of padding.
        codes: the vocabulary ids of the image codes. None for a family whose codes are not in the
            vocabulary: it sets ``codebook_size`` and overrides ``embed_codes`` and ``image_head``.
        module: holds ``model`` and the image tokenizer; None where ``model`` itself does.
    """

    engine_serving = EngineServing()

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        image_tokenizer: nn.Module,
        *,
        pad_id: int,
        codes: CodeTokens | None,
        module: nn.Module | None = None,
    ) -> None:
        self.module: nn.Module = model if module is None else module
        self.pad_id = pad_id
        if codes is not None:
            self.codebook_size = len(codes)
            self._codes = codes
        self._model: Any = model
        self._decoder: Any = model.get_decoder()
        self._processor = processor
        self._vq: Any = image_tokenizer
        if codes is not None:
            codes.refuse_outside(len(self._decoder.get_input_embeddings().weight))
        self._prefix = _name_within(self.module, model)
        for part in self.frozen():
            part.eval().requires_grad_(False)

    @property
    def pixels_per_code(self) -> int:
        # Every level of the image tokenizer but the last halves the height and width.
        return int(2 ** (len(self._vq.config.channel_multiplier) - 1))

    @property
    def max_tokens(self) -> int:
        return int(self._decoder.config.max_position_embeddings)

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        return self._decoder.get_input_embeddings()(ids)

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return self.embed_text(self._codes.of_codes(codes))

    def hidden_states(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        return last_hidden(self._decoder, embeds, mask, position_ids, cache)

    def new_cache(self, max_length: int) -> Cache:
        return StaticCache(config=self._decoder.config, max_cache_len=max_length)

    def image_head(self, *, whole_vocabulary: bool = False) -> ImageHead:
        return self._codes.head(self.text_head(), whole_vocabulary=whole_vocabulary)

    def text_states(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        return self.hidden_states(self.embed_text(ids), mask, position_ids)

    def text_head(self) -> nn.Linear:
        return self._model.get_output_embeddings()

    def frozen(self) -> list[nn.Module]:
        return [self._vq]

    def lora_targets(self) -> list[str]:
        return list(PROJECTIONS)

    def compile(self) -> None:
        # Block by block, so that all share one graph of each kind, and gradient checkpointing goes
        # around it. Masks are made outside: a compiled decoder can't notice that none is needed.
        for block in self._decoder.layers:
            block.compile()

    def enable_gradient_checkpointing(self) -> None:
        getattr(self._model, _ENABLE_CHECKPOINTING)({"use_reentrant": False})

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        if weights is not None:
            start = self._prefix
            weights = {n.removeprefix(start): x for n, x in weights.items() if n.startswith(start)}
        self._model.save_pretrained(folder, state_dict=weights)
        self._processor.save_pretrained(folder)

    def engine_codes(self) -> np.ndarray:
        return self._codes.ids.numpy()

    def save_for_engine(self, folder: Path) -> None:
        self.save(folder)

    def chat_template(self, grid: Grid) -> str | None:
        return None


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
        use_cache=cache is not None,
        **{CACHE_ARGUMENT: cache},
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def pad_id_of(tokenizer: Any) -> int:
    """The id of the padding token. Raises UserError if the tokenizer has none."""
    if tokenizer.pad_token_id is None:
        raise UserError(
            "the checkpoint's tokenizer has no padding token: add pad_token to its "
            "tokenizer_config.json."
        )
    return int(tokenizer.pad_token_id)


def normalised(pixels: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """[B, 3, H, W] uint8 -> float32, as the stock image processor rescales and normalises.

    Raises:
        UserError: its means or deviations can't be used.
    """
    mean, std = _statistics(image_processor, pixels.device)
    return (pixels.float() * image_processor.rescale_factor - mean) / std


def to_uint8(images: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """The inverse of ``normalised``: [B, 3, H, W] any float -> uint8, rounded."""
    mean, std = _statistics(image_processor, images.device)
    pixels = (images.float() * std + mean) / image_processor.rescale_factor
    return pixels.round().clamp(0, 255).to(torch.uint8)


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """[...] uint8 -> [...] float32 from -1 to 1: mean and standard deviation .5.

    A table of the 256 levels, computed as the authors' numpy does, so that every value is theirs to
    the last bit whatever the folder's own image processor says.
    """
    return _LEVELS.to(pixels.device)[pixels.long()]


def rounded_once(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[...] uint8 -> [...] from -1 to 1 in ``dtype``: x / 255 * 2 - 1 in double precision, rounded.

    As Meta's ImageTokenizer for Chameleon, by a table, because Apple's devices have no float64.
    """
    return _DOUBLE_LEVELS.to(dtype).to(pixels.device)[pixels.long()]


def from_unit_range(images: torch.Tensor) -> torch.Tensor:
    """The inverse of ``to_unit_range``: any float -> uint8, rounded."""
    return ((images.float() + 1) / 2 * 255).round().clamp(0, 255).to(torch.uint8)


_DOUBLE_LEVELS = torch.arange(256, dtype=torch.float64) / 255 * 2 - 1
_LEVELS = ((torch.arange(256, dtype=torch.float64) * (1 / 255)).float() - 0.5) / 0.5


def _statistics(image_processor: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    means, deviations = image_processor.image_mean, image_processor.image_std
    for key, values, low in (("mean", means, -math.inf), ("std", deviations, 0.0)):
        numbers = isinstance(values, (list, tuple)) and len(values) == 3
        if not numbers or not all(isinstance(x, (int, float)) and x > low for x in values):
            allowed = "three numbers" + (" above 0" if key == "std" else "")
            raise UserError(
                f"image_{key} of the checkpoint's image processor is {values!r}; it must be "
                f"{allowed}: download preprocessor_config.json or processor_config.json again."
            )
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1) for values in (means, deviations)
    )
    return mean, std


def _name_within(module: nn.Module, part: nn.Module) -> str:
    """What the names of the part's weights start with in ``module``: nothing, or a name and "."."""
    name = next(name for name, inner in module.named_modules() if inner is part)
    return f"{name}." if name else ""
