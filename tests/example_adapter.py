"""A complete adapter for a model that mm_cca does not know: the walk-through of CONTRIBUTING.md.

The model is a plain ``LlamaForCausalLM`` whose vocabulary was enlarged by image codes, in the style
of Liquid and SimpleAR: code c is the token ``len(tokenizer) + c``. An image is ``<boi>`` and its
codes; a prompt that says nothing is ``<unconditional><boi>``, as Liquid was trained. The folder
holds no image tokenizer: Liquid uses Chameleon's, given by ``model.image_tokenizer``.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    Cache,
    ChameleonVQVAEConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    StaticCache,
)
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from mm_cca.adapters.base import FREE, Defaults, Grid, ImageHead, ImageLayout
from mm_cca.adapters.loading import expect_family, load_module
from mm_cca.adapters.vocabulary import CodeTokens
from mm_cca.adapters.vqgan import attach_decoder, fill_encoder, read_image_tokenizer
from mm_cca.errors import UserError


class WithTokenizer(nn.Module):
    """The language model and its image tokenizer side by side, so that both move to the GPU.

    A LoRA's names then start with ``language.``, which plain peft must be told:
    ``PeftModel.from_pretrained(llama, folder, key_mapping={r"^language\\.": ""})``.
    """

    def __init__(self, language: LlamaForCausalLM, vq: ChameleonVQVAE) -> None:
        super().__init__()
        self.language = language
        self.vq = vq


class AppendedCodes:
    """Named in a recipe as ``model.adapter: tests.example_adapter:AppendedCodes``."""

    name = "appended-codes"
    defaults = Defaults(guidance_scale=7.0, temperature=0.99, top_k=4096, top_p=0.96)

    def __init__(
        self, language: LlamaForCausalLM, vq: ChameleonVQVAE, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self.module: nn.Module = WithTokenizer(language, vq)
        self._language = language
        self._vq = vq
        self._tokenizer = tokenizer
        self.codebook_size = int(vq.config.num_embeddings)
        self._codes = CodeTokens.of({c: len(tokenizer) + c for c in range(self.codebook_size)})
        self.pad_id = int(tokenizer.pad_token_id)
        for part in self.frozen():
            part.eval().requires_grad_(False)

    # 1. Reading and writing.

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, image_tokenizer: str | None) -> "AppendedCodes":
        if image_tokenizer is None:
            raise UserError("set model.image_tokenizer to Chameleon's vqgan.ckpt.")
        expect_family(path, "llama")
        config = LlamaConfig.from_pretrained(path)
        config.attention_dropout = 0.0
        language, _ = load_module(LlamaForCausalLM, path, config, dtype)
        vq = ChameleonVQVAE(ChameleonVQVAEConfig(**config.vq_config))  # float32, whatever dtype is
        tensors = read_image_tokenizer(image_tokenizer)
        fill_encoder(vq, tensors, image_tokenizer)
        attach_decoder(vq, tensors, image_tokenizer)
        return cls(language, vq, AutoTokenizer.from_pretrained(path))

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        if weights is not None:
            part = "language."
            weights = {n.removeprefix(part): x for n, x in weights.items() if n.startswith(part)}
        self._language.save_pretrained(folder, state_dict=weights)
        self._tokenizer.save_pretrained(folder)

    # 2. What a prompt and an image look like.

    @property
    def pixels_per_code(self) -> int:
        return int(2 ** (len(self._vq.config.channel_multiplier) - 1))

    @property
    def max_tokens(self) -> int:
        return int(self._language.config.max_position_embeddings)

    def layout(self, grid: Grid) -> ImageLayout:
        return ImageLayout(np.full(grid[0] * grid[1], FREE, dtype=np.int64))

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer([f"<s>{p}<boi>" for p in prompts])["input_ids"]
        return ids

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        return self.prompt_ids([negative_prompt or "<unconditional>"], grid)[0]

    # 3. Images to codes and back.

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        images = (pixels / 127.5 - 1).to(self._vq.dtype)
        return self._vq.encode(images).image_tokens.view(len(pixels), -1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        entries = self._vq.quantize.embedding(codes.view(-1, *grid)).permute(0, 3, 1, 2)
        images = self._vq.decoder(self._vq.post_quant_conv(entries)).float()
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    # 4. The decoder.

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        return self._language.model.embed_tokens(ids)

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return self.embed_text(self._codes.of_codes(codes))

    def hidden_states(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        return self._language.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def new_cache(self, max_length: int) -> Cache:
        return StaticCache(config=self._language.config, max_cache_len=max_length)

    def image_head(self, *, whole_vocabulary: bool = False) -> ImageHead:
        return self._codes.head(self._language.lm_head, whole_vocabulary=whole_vocabulary)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer([f"<s>{text}" for text in texts])["input_ids"]
        return ids

    def text_states(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        return self.hidden_states(self.embed_text(ids), mask, position_ids)

    def text_head(self) -> nn.Linear:
        return self._language.lm_head

    # 5. What trains.

    def frozen(self) -> list[nn.Module]:
        return [self._vq]

    def lora_targets(self) -> list[str]:
        return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

    def compile(self) -> None:
        self._language.model.compile()

    def enable_gradient_checkpointing(self) -> None:
        self._language.gradient_checkpointing_enable({"use_reentrant": False})
