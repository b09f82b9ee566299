"""Liquid (Junfeng5/Liquid_V1_7B): stock Gemma with Chameleon's 8,192 image codes appended.

A prompt is ``BOS text instruction <boi>``, and 32 x 32 codes follow without anything between them;
the unconditional prompt is ``BOS <unconditional> <boi>``, which a tenth of the training had
(https://github.com/FoundationVision/Liquid, liquid/train/train.py, evaluation/inference_t2i.py).
The image tokenizer is Meta's ``vqgan.ckpt``. Shapes: see ``adapters/base.py``.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import AutoTokenizer, ChameleonVQVAEConfig, GemmaConfig, GemmaForCausalLM
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from mm_cca.adapters.appended_codes import (
    AppendedCodes,
    read_small_files,
    refuse_other_vocabulary,
    refuse_plain_model,
)
from mm_cca.adapters.base import Defaults, Grid
from mm_cca.adapters.chat_templates import PROMPT, joined, literal
from mm_cca.adapters.checkpoint_files import refuse_without_tokenizer
from mm_cca.adapters.common import rounded_once
from mm_cca.adapters.headers import reads_headers_only
from mm_cca.adapters.loading import expect_family, load_module, reading_checkpoint
from mm_cca.adapters.text_check import refuse_split_tokens
from mm_cca.adapters.vqgan import (
    META,
    attach_decoder,
    decode_codes,
    fill_encoder,
    read_image_tokenizer,
    refuse_without_decoder,
)
from mm_cca.errors import UserError

INSTRUCTION = " Generate an image based on this description."
"""The first of the ten it was trained with, and the one that its authors draw with."""
BOI, UNCONDITIONAL = "<boi>", "<unconditional>"


class Liquid(AppendedCodes):
    """The adapter named ``liquid``."""

    name = "liquid"
    # evaluation/inference_t2i.py
    defaults = Defaults(guidance_scale=7.0, temperature=0.99, top_k=4096, top_p=0.96)
    side = 32

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, image_tokenizer: str | None) -> "Liquid":
        """Read a checkpoint folder or hub name; ``image_tokenizer`` is Meta's ``vqgan.ckpt``.

        Raises:
            UserError: another family, plain Gemma, or no image tokenizer or another one.
            CheckpointError: a file is missing or damaged, or a weight is missing.
        """
        if image_tokenizer is None:
            raise UserError(f"a Liquid checkpoint holds no image tokenizer. {META}")
        expect_family(path, "gemma")
        # tokenizer.model is Gemma's own, without the tokens that Liquid added.
        refuse_without_tokenizer(path, ["tokenizer.json"])
        with reading_checkpoint():
            config = GemmaConfig.from_pretrained(path)
            tokenizer = AutoTokenizer.from_pretrained(path)
        config.attention_dropout = 0.0
        refuse_plain_model(path, config, tokenizer, [BOI, UNCONDITIONAL], "Junfeng5/Liquid_V1_7B")
        refuse_split_tokens(tokenizer, (BOI, UNCONDITIONAL))
        vq = _read_vq(image_tokenizer)
        size = int(vq.config.num_embeddings)
        refuse_other_vocabulary(path, config, tokenizer, size)
        module, _ = load_module(GemmaForCausalLM, path, config, dtype)
        return cls(module, tokenizer, vq, size, read_small_files(path))

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        return self._with_bos(self.ids_around("", prompts, f"{INSTRUCTION}{BOI}"))

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        if negative_prompt:
            return self.prompt_ids([negative_prompt], grid)[0]
        return self._with_bos(self.ids_around(f"{UNCONDITIONAL}{BOI}", [""]))[0]

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._with_bos(self.ids_around("", texts))

    def _with_bos(self, rows: list[list[int]]) -> list[list[int]]:
        return [[self._processor.bos_token_id, *ids] for ids in rows]

    def chat_template(self, grid: Grid) -> str | None:
        bos = literal(self._processor.bos_token)
        return joined(bos, PROMPT, literal(f"{INSTRUCTION}{BOI}"))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        images = rounded_once(pixels, self._vq.dtype)  # as data_process/vqgan/image_tokenizer.py
        codes: torch.Tensor = self._vq.encode(images).image_tokens
        return codes.view(len(pixels), -1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        return decode_codes(self._vq, codes, grid)


def _read_vq(source: str) -> ChameleonVQVAE:
    """Chameleon's image tokenizer from a file alone, in float32; its sizes from the weights."""
    tensors = read_image_tokenizer(source)
    refuse_without_decoder(tensors, source)
    with torch.device("meta") if reads_headers_only() else nullcontext():
        vq = ChameleonVQVAE(_vq_config(tensors, source))
    fill_encoder(vq, tensors, source)
    attach_decoder(vq, tensors, source)
    return vq


def _vq_config(tensors: dict[str, Any], source: str) -> ChameleonVQVAEConfig:
    try:
        codebook, first = tensors["quantize.embedding.weight"], tensors["encoder.conv_in.weight"]
        latent, blocks = tensors["encoder.conv_out.weight"].shape[0], 0
        levels: list[int] = []
        while (name := f"encoder.down.{len(levels)}.block.0.conv1.weight") in tensors:
            levels.append(tensors[name].shape[0] // first.shape[0])
        while f"encoder.down.0.block.{blocks}.conv1.weight" in tensors:
            blocks += 1
    except KeyError as error:
        raise UserError(
            f"{source} is no image tokenizer of Chameleon's: it lacks {error}."
        ) from error
    return ChameleonVQVAEConfig(
        embed_dim=codebook.shape[1],
        num_embeddings=codebook.shape[0],
        latent_channels=latent,
        base_channels=first.shape[0],
        channel_multiplier=levels,
        num_res_blocks=blocks,
    )
