"""Chameleon in transformers' own classes: Chameleon-7b/30b and Anole, which can draw.

An image is ``boi`` and then its codes; nothing stands between them. Codes are ``IMGIMG...`` tokens
of the text vocabulary in a permuted order. The stock ``forward`` masks every image logit, so hidden
states come from ``.model`` and are scored with ``lm_head`` directly; the stock tokenizer only
encodes, so ``vqgan.py`` brings the decoder. Shapes: see ``adapters/base.py``.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    Cache,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    StaticCache,
)

from mm_cca.adapters.base import FREE, Defaults, Grid, ImageHead, ImageLayout, rows_with_ends
from mm_cca.adapters.decoder import PROJECTIONS, last_hidden
from mm_cca.adapters.loading import expect_family, load_module
from mm_cca.adapters.pixels import normalised
from mm_cca.adapters.vocabulary import CodeTokens
from mm_cca.adapters.vqgan import (
    attach_decoder,
    fill_encoder,
    read_image_tokenizer,
    refuse_without_decoder,
)
from mm_cca.errors import UserError

END_OF_TURN = "<reserved08706>"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """What tells the checkpoints of this family apart: the text and tokens around the codes.

    Attributes:
        template: of the prompt, with ``{prompt}``, ``{width}`` and ``{height}`` (pixels).
        unconditional_has_bos: whether the form that says nothing starts with BOS, or with boi.
        row_end: token after each row of codes, if any.
        size_zero: n units of height or width are the token ``<reserved>`` numbered this plus n;
            height and width stand after boi. None where a checkpoint knows one size only.
        unit: pixels per unit of the size tokens.
    """

    template: str = "{prompt}"
    unconditional_has_bos: bool = True
    row_end: str | None = None
    size_zero: int | None = None
    unit: int = 32


class Chameleon:
    """The adapter named ``chameleon``."""

    name = "chameleon"
    # Anole's text2image: temperature 0.7, top-p 0.9; guidance of text alone 3.0.
    defaults = Defaults(guidance_scale=3.0, temperature=0.7, top_k=None, top_p=0.9)

    def __init__(
        self,
        module: ChameleonForConditionalGeneration,
        processor: ChameleonProcessor,
        span: Span,
    ) -> None:
        self.module: nn.Module = module
        self._chameleon = module
        self._processor = processor
        self._span = span
        self._codes = CodeTokens.of(module.model.vocabulary_mapping.img2bpe)
        self.codebook_size = len(self._codes)
        self._vocabulary: dict[str, int] = processor.tokenizer.get_vocab()
        pad_id = processor.tokenizer.pad_token_id
        self.pad_id = self._id("<pad>") if pad_id is None else int(pad_id)
        for part in self.frozen():
            part.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, image_tokenizer: str | None) -> "Chameleon":
        """Read a checkpoint folder or hub name; ``image_tokenizer`` is Meta's ``vqgan.ckpt``.

        Raises:
            UserError: another family, or no image decoder anywhere.
            ValueError: a weight is missing, besides what transformers raises.
        """
        expect_family(path, "chameleon")
        processor = ChameleonProcessor.from_pretrained(path)
        return read(path, dtype, image_tokenizer, processor, Span())

    @property
    def pixels_per_code(self) -> int:
        return int(2 ** (len(self._chameleon.model.vqmodel.config.channel_multiplier) - 1))

    @property
    def max_tokens(self) -> int:
        return int(self._chameleon.config.max_position_embeddings)

    def layout(self, grid: Grid) -> ImageLayout:
        span, side = self._span, self.pixels_per_code
        height, width = (n * side for n in grid)
        if span.size_zero is not None and (height % span.unit or width % span.unit):
            raise UserError(
                f"data.image_size is [{height}, {width}]; allowed for this checkpoint: multiples "
                f"of {span.unit}, the unit of its size tokens."
            )
        only = round(self._processor.image_seq_length**0.5)
        if span.size_zero is None and grid != (only, only):
            right = only * side
            raise UserError(
                f"data.image_size is [{height}, {width}]; allowed for this checkpoint: "
                f"[{right}, {right}], the only size it was trained on."
            )
        if span.row_end is None:
            return ImageLayout(np.full(grid[0] * grid[1], FREE, dtype=np.int64))
        return rows_with_ends(grid, self._id(span.row_end))

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        height, width = (n * self.pixels_per_code for n in grid)
        texts = [
            self._span.template.format(prompt=p, height=height, width=width) + END_OF_TURN
            for p in prompts
        ]
        tokenizer = self._processor.tokenizer
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        start = self._start(grid)
        return [[tokenizer.bos_token_id, *row, *start] for row in rows]

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        if negative_prompt:
            return self.prompt_ids([negative_prompt], grid)[0]
        bos = [self._processor.tokenizer.bos_token_id] if self._span.unconditional_has_bos else []
        return [*bos, *self._start(grid)]

    def _start(self, grid: Grid) -> list[int]:
        boi = self._processor.image_start_token_id
        if self._span.size_zero is None:
            return [boi]
        units = [n * self.pixels_per_code // self._span.unit for n in grid]
        return [boi, *(self._id(f"<reserved{self._span.size_zero + n:05d}>") for n in units)]

    def _id(self, token: str) -> int:
        if token not in self._vocabulary:
            raise UserError(f"the checkpoint's tokenizer has no token {token!r}.")
        return self._vocabulary[token]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vq = self._chameleon.model.vqmodel
        images = normalised(pixels, self._processor.image_processor)
        codes: torch.Tensor = vq.encode(images.to(vq.dtype)).image_tokens
        return codes.view(len(pixels), -1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        vq: Any = self._chameleon.model.vqmodel
        entries = vq.quantize.embedding(codes.view(-1, *grid)).permute(0, 3, 1, 2)
        images = vq.decoder(vq.post_quant_conv(entries)).float()
        # The decoder was trained on [-1, 1]; the image processor's 0.0078 is a rounded 1/127.5.
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._chameleon.model.embed_tokens(ids)
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
        return last_hidden(self._chameleon.model, embeds, mask, position_ids, cache)

    def new_cache(self, max_length: int) -> Cache:
        return StaticCache(config=self._chameleon.config, max_cache_len=max_length)

    def image_head(self, *, whole_vocabulary: bool = False) -> ImageHead:
        return self._codes.head(self._chameleon.lm_head, whole_vocabulary=whole_vocabulary)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self._processor.tokenizer
        rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[tokenizer.bos_token_id, *row] for row in rows]

    def text_states(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        return self.hidden_states(self.embed_text(ids), mask, position_ids)

    def text_head(self) -> nn.Linear:
        return self._chameleon.lm_head

    def frozen(self) -> list[nn.Module]:
        return [self._chameleon.model.vqmodel]

    def lora_targets(self) -> list[str]:
        return list(PROJECTIONS)

    def compile(self) -> None:
        self._chameleon.model.compile()

    def enable_gradient_checkpointing(self) -> None:
        self._chameleon.gradient_checkpointing_enable({"use_reentrant": False})

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        # The decoder is a part of vqmodel, so it is written under the names that Anole uses.
        self._chameleon.save_pretrained(folder, state_dict=weights)
        self._processor.save_pretrained(folder)


def read(
    path: str,
    dtype: torch.dtype,
    image_tokenizer: str | None,
    processor: ChameleonProcessor,
    span: Span,
) -> Chameleon:
    """A checkpoint with its image decoder; encoder weights too, where the folder lacks them."""
    config = ChameleonConfig.from_pretrained(path)
    config.attention_dropout = 0.0
    source = path if image_tokenizer is None else image_tokenizer
    tensors = read_image_tokenizer(source)
    refuse_without_decoder(tensors, source)  # before the large file is read
    module, lacks_encoder = load_module(
        ChameleonForConditionalGeneration,
        path,
        config,
        dtype,
        may_lack="model.vqmodel.",
        in_float32="vqmodel",
    )
    if lacks_encoder:
        fill_encoder(module.model.vqmodel, tensors, source)
    attach_decoder(module.model.vqmodel, tensors, source)
    model = Chameleon(module, processor, span)
    warn_if_it_cannot_draw(model, path)
    return model


def warn_if_it_cannot_draw(model: Chameleon, path: str) -> None:
    """Say so when the head's image rows were never trained, as in Meta's public weights.

    Rows that hardly differ from one another, or are hardly more than zero, give every code about
    the same probability; text rows of the same head say what is usual.
    """
    rows = model.image_head().weight.detach().float()
    whole = model.image_head(whole_vocabulary=True).weight.detach()[-len(rows) :].float()
    usual = float(whole.std(dim=0).mean())
    found = float(rows.std(dim=0).mean())
    if found < 0.05 * usual:
        log.warning(
            "%s can't draw: the image rows of its output head hardly differ (spread %.2g, text "
            "rows %.2g). Meta's public Chameleon weights are like this; Anole "
            "(leloy/Anole-7b-v0.1-hf) is Chameleon with these rows trained.",
            path,
            found,
            usual,
        )
