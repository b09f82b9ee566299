"""A complete adapter for a model that mm_cca does not know: the walk-through of CONTRIBUTING.md.

The model is a plain ``LlamaForCausalLM`` whose vocabulary was enlarged by image codes, in the style
of Liquid and SimpleAR: code c is the token ``len(tokenizer) + c``. An image is ``<boi>`` and its
codes; the unconditional prompt is ``<unconditional><boi>``, as Liquid was trained. The folder holds
no image tokenizer: Liquid uses Chameleon's, given by ``model.image_tokenizer``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    ChameleonVQVAEConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from mm_cca.adapters.base import (
    BEYOND_TOKENIZER,
    FREE,
    Defaults,
    EngineServing,
    Grid,
    ImageLayout,
)
from mm_cca.adapters.chat_templates import PROMPT, joined, literal
from mm_cca.adapters.common import StandardDecoder, pad_id_of
from mm_cca.adapters.loading import expect_family, load_module, reading_checkpoint
from mm_cca.adapters.vocabulary import CodeTokens
from mm_cca.adapters.vqgan import attach_decoder, decode_codes, fill_encoder, read_image_tokenizer
from mm_cca.errors import UserError


class WithTokenizer(nn.Module):
    """The language model and its image tokenizer side by side, so that both move to the GPU."""

    def __init__(self, language: LlamaForCausalLM, vq: ChameleonVQVAE) -> None:
        super().__init__()
        self.language = language  # a saved LoRA's names start with this: see CONTRIBUTING.md
        self.vq = vq


class AppendedCodes(StandardDecoder):
    """Named in a recipe as ``model.adapter: tests.example_adapter:AppendedCodes``."""

    name = "appended-codes"
    defaults = Defaults(guidance_scale=7.0, temperature=0.99, top_k=4096, top_p=0.96)
    engine_serving = EngineServing(BEYOND_TOKENIZER)  # codes are no tokens of its tokenizer

    def __init__(
        self, language: LlamaForCausalLM, vq: ChameleonVQVAE, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        codes = CodeTokens.of({c: len(tokenizer) + c for c in range(vq.config.num_embeddings)})
        module, pad_id = WithTokenizer(language, vq), pad_id_of(tokenizer)
        super().__init__(language, tokenizer, vq, pad_id=pad_id, codes=codes, module=module)

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, image_tokenizer: str | None) -> "AppendedCodes":
        if image_tokenizer is None:
            raise UserError("set model.image_tokenizer to Chameleon's vqgan.ckpt.")
        expect_family(path, "llama")
        with reading_checkpoint():  # of these lines an error means a damaged file
            config, tokenizer = (
                LlamaConfig.from_pretrained(path),
                AutoTokenizer.from_pretrained(path),
            )
        config.attention_dropout = 0.0
        language, _ = load_module(LlamaForCausalLM, path, config, dtype)
        vq = ChameleonVQVAE(ChameleonVQVAEConfig(**config.vq_config))  # float32, whatever dtype is
        tensors = read_image_tokenizer(image_tokenizer)
        fill_encoder(vq, tensors, image_tokenizer)
        attach_decoder(vq, tensors, image_tokenizer)
        return cls(language, vq, tokenizer)

    # What a prompt and an image look like.

    def layout(self, grid: Grid) -> ImageLayout:
        return ImageLayout(np.full(grid[0] * grid[1], FREE, dtype=np.int64))

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        return self._processor([f"<s>{p}<boi>" for p in prompts])["input_ids"]

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        return self.prompt_ids([negative_prompt or "<unconditional>"], grid)[0]

    def chat_template(self, grid: Grid) -> str | None:
        return joined(literal("<s>"), PROMPT, literal("<boi>"))  # for an engine's chat requests

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor([f"<s>{text}" for text in texts])["input_ids"]

    # Images to codes and back.

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        images = (pixels / 127.5 - 1).to(self._vq.dtype)
        return self._vq.encode(images).image_tokens.view(len(pixels), -1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        return decode_codes(self._vq, codes, grid)
