"""Janus in transformers' own classes: Janus-1.3B, Janus-Pro-1B and -7B.

An image is ``<begin_of_image>`` and then 576 codes, which are no tokens of the text vocabulary:
they have their own embedding with an aligner, and their own head. The stock ``forward`` has no path
from codes to that head, and the stock ``generate`` always runs guided; here hidden states come
from ``.model.language_model``. Shapes: see ``adapters/base.py``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    Cache,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    StaticCache,
)

from mm_cca.adapters.base import FREE, Defaults, Grid, ImageHead, ImageLayout
from mm_cca.adapters.decoder import PROJECTIONS, last_hidden
from mm_cca.adapters.loading import expect_family, load_module, refuse_image_tokenizer
from mm_cca.adapters.pixels import normalised, to_uint8
from mm_cca.errors import UserError


class Janus:
    """The adapter named ``janus``."""

    name = "janus"
    # https://github.com/deepseek-ai/Janus, generation_inference.py.
    defaults = Defaults(guidance_scale=5.0, temperature=1.0, top_k=None, top_p=None)

    def __init__(self, module: JanusForConditionalGeneration, processor: JanusProcessor) -> None:
        self.module: nn.Module = module
        self._janus = module
        self._processor = processor
        self.codebook_size = int(module.model.generation_head.vision_head.out_features)
        self.pad_id = _pad_id(module, processor)
        for part in self.frozen():
            part.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, image_tokenizer: str | None) -> "Janus":
        """Read a checkpoint folder or hub name.

        Raises:
            UserError: another family, or a layout that must be converted first.
            ValueError: a weight is missing, besides what transformers raises.
        """
        refuse_image_tokenizer(image_tokenizer, "janus")
        expect_family(path, "janus")
        config = JanusConfig.from_pretrained(path)
        module, _ = load_module(
            JanusForConditionalGeneration, path, config, dtype, in_float32="vqmodel"
        )
        return cls(module, JanusProcessor.from_pretrained(path))

    @property
    def pixels_per_code(self) -> int:
        return int(2 ** (len(self._janus.model.vqmodel.config.channel_multiplier) - 1))

    @property
    def max_tokens(self) -> int:
        return int(self._janus.model.language_model.config.max_position_embeddings)

    def layout(self, grid: Grid) -> ImageLayout:
        side = self._janus.model.vqmodel.config.num_patches
        if grid != (side, side):
            right = side * self.pixels_per_code
            raise UserError(
                f"data.image_size is {[n * self.pixels_per_code for n in grid]}; allowed for this "
                f"checkpoint: [{right}, {right}], the only size its decoder draws."
            )
        return ImageLayout(np.full(side * side, FREE, dtype=np.int64))

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        p = self._processor
        texts = []
        for prompt in prompts:
            turn: Any = {"role": "user", "content": [{"type": "text", "text": prompt}]}
            said = p.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
            texts.append(f"{said}{p.image_start_token}")
        ids: list[list[int]] = p.tokenizer(texts)["input_ids"]
        return ids

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        if negative_prompt:
            return self.prompt_ids([negative_prompt], grid)[0]
        tokenizer = self._processor.tokenizer
        boi = tokenizer.convert_tokens_to_ids(self._processor.image_start_token)
        kept = (tokenizer.bos_token_id, boi)
        # As stock generate does: every other token becomes padding, which is attended to.
        return [token if token in kept else self.pad_id for token in conditional]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vq = self._janus.model.vqmodel
        images = normalised(pixels, self._processor.image_processor)
        latents = vq.quant_conv(vq.encoder(images.to(vq.dtype))).flatten(2).transpose(1, 2)
        # DeepSeek's quantizer compares directions (codebook_l2_norm), and decoding looks entries up
        # normalised; the stock encode compares lengths too, and so can name another code.
        entries = F.normalize(vq.quantize.embedding.weight.float(), dim=-1)
        return (F.normalize(latents.float(), dim=-1) @ entries.T).argmax(dim=-1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        images = self._janus.model.vqmodel.decode(codes)
        return to_uint8(images, self._processor.image_processor)

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._janus.model.language_model.embed_tokens(ids)
        return embedded

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return self._janus.prepare_embeddings_for_image_generation(codes)

    def hidden_states(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        decoder = self._janus.model.language_model
        states = last_hidden(decoder, embeds, mask, position_ids, cache)
        # All of the generation head but its last layer, which is the rows that score the codes.
        head: Any = self._janus.model.generation_head
        hidden: torch.Tensor = head.activation_fn(head.proj_out(states))
        return hidden

    def new_cache(self, max_length: int) -> Cache:
        config = self._janus.model.language_model.config
        return StaticCache(config=config, max_cache_len=max_length)

    def image_head(self, *, whole_vocabulary: bool = False) -> ImageHead:
        # The head scores image codes only, so the whole vocabulary is the same rows.
        layer = self._janus.model.generation_head.vision_head
        return ImageHead(layer.weight, layer.bias, torch.arange(self.codebook_size))

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.tokenizer(list(texts))["input_ids"]
        return ids

    def text_states(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        # Not hidden_states: that goes on into the head of the image codes.
        decoder = self._janus.model.language_model
        return last_hidden(decoder, self.embed_text(ids), mask, position_ids, None)

    def text_head(self) -> nn.Linear:
        return self._janus.lm_head

    def frozen(self) -> list[nn.Module]:
        model = self._janus.model
        parts: list[nn.Module] = [model.vqmodel, model.vision_model, model.aligner]
        # Scores text, which is not trained here; a tied one is the embedding, which is.
        if self._janus.lm_head.weight is not model.language_model.embed_tokens.weight:
            parts.append(self._janus.lm_head)
        return parts

    def lora_targets(self) -> list[str]:
        return list(PROJECTIONS)

    def compile(self) -> None:
        self._janus.model.language_model.compile()

    def enable_gradient_checkpointing(self) -> None:
        self._janus.gradient_checkpointing_enable({"use_reentrant": False})

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        self._janus.save_pretrained(folder, state_dict=weights)
        self._processor.save_pretrained(folder)


def _pad_id(module: JanusForConditionalGeneration, processor: JanusProcessor) -> int:
    """What stock ``generate`` blanks prompts out with; the tokenizer's own may be another."""
    found = module.generation_config.pad_token_id
    return int(processor.tokenizer.pad_token_id if found is None else found)
