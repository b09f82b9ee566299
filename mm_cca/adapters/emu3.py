"""Emu3 in transformers' own classes (BAAI/Emu3-Gen in the layout ``Emu3ForConditionalGeneration``).

An image is ``boi H*W img`` and then rows of codes, each closed by an end-of-line token
(``Emu3Processor`` and ``Emu3Model.get_image_tokens`` in transformers). Codes share the vocabulary
with text; their rows of ``lm_head`` lie together. Shapes: see ``adapters/base.py``.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import (
    Cache,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3Processor,
    StaticCache,
)

from mm_cca.adapters.base import Defaults, Grid, ImageHead, ImageLayout, rows_with_ends
from mm_cca.adapters.decoder import PROJECTIONS, last_hidden
from mm_cca.adapters.loading import expect_family, load_module, refuse_image_tokenizer
from mm_cca.adapters.pixels import normalised, to_uint8
from mm_cca.adapters.vocabulary import CodeTokens


class Emu3:
    """The adapter named ``emu3``."""

    name = "emu3"
    # https://github.com/baaivision/Emu3, image_generation.py: guidance 3.0, top-k 2048.
    defaults = Defaults(guidance_scale=3.0, temperature=1.0, top_k=2048, top_p=None)

    def __init__(self, module: Emu3ForConditionalGeneration, processor: Emu3Processor) -> None:
        self.module: nn.Module = module
        self._emu3 = module
        self._processor = processor
        mapping = module.vocabulary_mapping
        self._codes = CodeTokens.of(mapping.img2bpe)
        self.codebook_size = len(self._codes)
        self._eol_id: int = mapping.eol_token_id
        self.pad_id = int(processor.tokenizer.pad_token_id)
        for part in self.frozen():
            part.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, image_tokenizer: str | None) -> "Emu3":
        """Read a checkpoint folder or hub name.

        Raises:
            UserError: another family, or a layout that must be converted first.
            ValueError: a weight is missing, besides what transformers raises.
        """
        refuse_image_tokenizer(image_tokenizer, "emu3")
        expect_family(path, "emu3")
        config = Emu3Config.from_pretrained(path)
        # Emu3's configs ship 0.1, which would move log-probs between the model and its reference.
        config.text_config.attention_dropout = 0.0  # type: ignore[union-attr]
        module, _ = load_module(
            Emu3ForConditionalGeneration, path, config, dtype, in_float32="vqmodel"
        )
        return cls(module, Emu3Processor.from_pretrained(path))

    @property
    def pixels_per_code(self) -> int:
        # Emu3Processor.downsample_ratio is a constant 8; the tokenizer itself knows better.
        return int(self._emu3.model.vqmodel.spatial_scale_factor)

    @property
    def max_tokens(self) -> int:
        return int(self._emu3.model.text_model.config.max_position_embeddings)

    def layout(self, grid: Grid) -> ImageLayout:
        return rows_with_ends(grid, self._eol_id)

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        p = self._processor
        size = f"{p.image_start_token}{grid[0]}*{grid[1]}{p.fake_token_around_image}"
        texts = [f"{p.bos_token}{prompt}{size}" for prompt in prompts]
        ids: list[list[int]] = p.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        # Training dropped the text and kept "boi H*W img"; guidance must ask in the same form.
        return self.prompt_ids([negative_prompt], grid)[0]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vq = self._emu3.model.vqmodel
        images = normalised(pixels, self._processor.image_processor)
        sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
        codes = vq.encode(images.to(vq.dtype), sizes).image_tokens
        return torch.stack(list(codes)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        images = self._emu3.model.vqmodel.decode(codes.view(-1, *grid))
        return to_uint8(images, self._processor.image_processor)

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._emu3.model.text_model.embed_tokens(ids)
        return embedded

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return self.embed_text(self._codes.of_codes(codes))

    def hidden_states(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        return last_hidden(self._emu3.model.text_model, embeds, mask, position_ids, cache)

    def new_cache(self, max_length: int) -> Cache:
        config = self._emu3.model.text_model.config
        return StaticCache(config=config, max_cache_len=max_length)

    def image_head(self, *, whole_vocabulary: bool = False) -> ImageHead:
        return self._codes.head(self._emu3.lm_head, whole_vocabulary=whole_vocabulary)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        p = self._processor
        rows = [f"{p.bos_token}{text}" for text in texts]
        ids: list[list[int]] = p.tokenizer(rows, add_special_tokens=False)["input_ids"]
        return ids

    def text_states(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        return self.hidden_states(self.embed_text(ids), mask, position_ids)

    def text_head(self) -> nn.Linear:
        return self._emu3.lm_head

    def frozen(self) -> list[nn.Module]:
        return [self._emu3.model.vqmodel]

    def lora_targets(self) -> list[str]:
        return list(PROJECTIONS)

    def compile(self) -> None:
        self._emu3.model.text_model.compile()

    def enable_gradient_checkpointing(self) -> None:
        self._emu3.gradient_checkpointing_enable({"use_reentrant": False})

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        self._emu3.save_pretrained(folder, state_dict=weights)
        self._processor.save_pretrained(folder)
