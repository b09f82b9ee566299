"""Lumina-mGPT (Alpha-VLLM/Lumina-mGPT-7B-*): Chameleon with another span and fewer norms.

An image is ``boi``, its height and width in units of 32 pixels, and rows of codes each closed by a
new-line token (https://github.com/Alpha-VLLM/Lumina-mGPT, lumina_mgpt/data/item_processor.py). Its
guidance drops everything before ``boi`` and keeps the size (inference_solver.py).

The norms of queries and keys have one row for every rank of the training (1 for 7B, 8 for 34B),
shared by that rank's heads; stock Chameleon has one row per head. The module here keeps the rows,
so that training moves the heads of a rank together and the authors' code reads what is saved.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
)

from mm_cca.adapters.base import Defaults
from mm_cca.adapters.chameleon import Chameleon, Span
from mm_cca.adapters.chameleon_files import refuse_other_kind, rows_of_query_norm, tokenizer_from
from mm_cca.adapters.loading import CheckpointError
from mm_cca.config.shipped import LUMINA_TOKENIZER, has_tokenizer

SPAN = Span(
    template="Generate an image of {width}x{height} according to the following prompt:\n{prompt}",
    unconditional_has_bos=False,
    row_end="<reserved08799>",
    size_zero=8800,
)


class SharedNorm(nn.LayerNorm):
    """[..., heads, head_dim] normalised within each head; ``rows`` scales and shifts for all heads.

    ``weight`` and ``bias`` are [rows, head_dim]; neighbouring heads share a row.
    """

    def __init__(self, rows: int, heads: int, head_dim: int) -> None:
        if heads % rows:
            raise CheckpointError(
                f"config.json has model_parallel_size {rows}, which does not divide {heads} heads"
            )
        super().__init__((rows, head_dim))
        self.heads_per_row = heads // rows

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normal = F.layer_norm(hidden, hidden.shape[-1:], eps=self.eps)
        scale, shift = (
            part.repeat_interleave(self.heads_per_row, dim=0) for part in (self.weight, self.bias)
        )
        return normal * scale + shift


class ChameleonXLLMXForConditionalGeneration(ChameleonForConditionalGeneration):
    """Stock Chameleon with Lumina-mGPT's norms, under the name that its config.json has."""

    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__(config)
        rows = int(config.model_parallel_size or 1)
        for layer in self.model.layers:
            attention = layer.self_attn
            attention.q_norm = SharedNorm(rows, attention.num_heads, attention.head_dim)
            attention.k_norm = SharedNorm(rows, attention.num_key_value_heads, attention.head_dim)


class LuminaMGPT(Chameleon):
    """The adapter named ``lumina-mgpt``."""

    name = "lumina-mgpt"
    span = SPAN
    # README.md of the repository, "Simple Inference": temperature 1.0, cfg 4.0, image_top_k 2000.
    defaults = Defaults(guidance_scale=4.0, temperature=1.0, top_k=2000, top_p=None)

    @classmethod
    def load(
        cls,
        path: str,
        dtype: torch.dtype,
        image_tokenizer: str | None,
        tokenizer: str | None = None,
    ) -> "Chameleon":
        """As ``Chameleon.load``; without ``tokenizer`` and one in the folder, the 768 model's.

        A folder that stock Chameleon wrote, with a row of the norms per head, is read as such.
        """
        refuse_other_kind(path, lumina=True)
        if tokenizer is None:
            tokenizer = path if has_tokenizer(path) else LUMINA_TOKENIZER
        words = tokenizer_from(tokenizer, path)
        processor = ChameleonProcessor(ChameleonImageProcessor(), words)
        return cls.read(path, dtype, image_tokenizer, processor)

    @classmethod
    def module_class(
        cls, path: str, config: ChameleonConfig
    ) -> type[ChameleonForConditionalGeneration]:
        if rows_of_query_norm(path) == config.num_attention_heads:
            return ChameleonForConditionalGeneration
        return ChameleonXLLMXForConditionalGeneration

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """As every adapter; config.json and tokenizer also in the terms of the authors' code."""
        super().save(folder, weights)
        _add(
            folder / "config.json",
            rope_theta=self._model.config.rope_parameters["rope_theta"],
            rope_scaling=None,
        )
        _add(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")

    def save_for_engine(self, folder: Path) -> None:
        """As stock Chameleon, which has a row of the norms for every head, without the decoder."""
        config = self._model.config
        heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
        weights = {
            name: x.repeat_interleave(heads[norm] // len(x), dim=0) if norm in heads else x
            for name, x in self._model.state_dict().items()
            for norm in [name.split(".")[-2]]
        }
        self.save_stock(folder, weights)
        stock = ChameleonForConditionalGeneration.__name__
        _add(folder / "config.json", architectures=[stock], model_parallel_size=1)
        _add(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _add(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=2) + "\n")
