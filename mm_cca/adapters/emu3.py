"""Emu3 in transformers' own classes (BAAI/Emu3-Gen in the layout ``Emu3ForConditionalGeneration``).

An image is ``boi H*W img`` and then rows of codes, each closed by an end-of-line token
(``Emu3Processor`` and ``Emu3Model.get_image_tokens`` in transformers). Codes share the vocabulary
with text; their rows of ``lm_head`` lie together. Shapes: see ``adapters/base.py``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    Cache,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3Processor,
    StaticCache,
)

from mm_cca.adapters.base import FREE, Defaults, Grid, ImageHead, ImageLayout
from mm_cca.errors import UserError


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
        self._ids = torch.tensor([mapping.img2bpe[code] for code in sorted(mapping.img2bpe)])
        self.num_codes = len(self._ids)
        self._eol_id: int = mapping.eol_token_id
        self.pad_id = int(processor.tokenizer.pad_token_id)
        first, last = int(self._ids.min()), int(self._ids.max())
        if last - first + 1 != self.num_codes:
            raise UserError(
                f"the {self.num_codes} image tokens of this vocabulary do not lie together "
                f"(ids {first}..{last}). The checkpoint's vocabulary_map is not Emu3's."
            )
        self._rows = slice(first, last + 1)
        for part in self.frozen():
            part.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: str, dtype: torch.dtype) -> "Emu3":
        """Read a checkpoint folder or hub name.

        Raises:
            ValueError: a weight is missing, besides what transformers raises.
        """
        config = Emu3Config.from_pretrained(path)
        # Emu3's configs ship 0.1, which would move log-probs between the model and its reference.
        config.text_config.attention_dropout = 0.0  # type: ignore[union-attr]
        loaded: Any = Emu3ForConditionalGeneration.from_pretrained(
            path, config=config, dtype=dtype, output_loading_info=True
        )
        module, report = loaded
        # transformers fills these with random numbers and only logs it.
        missing = sorted(set(report["missing_keys"]) & {n for n, _ in module.named_parameters()})
        if missing:
            raise ValueError(f"it lacks {len(missing)} weights, such as {missing[0]}")
        return cls(module, Emu3Processor.from_pretrained(path))

    @property
    def pixels_per_code(self) -> int:
        # Emu3Processor.downsample_ratio is a constant 8; the tokenizer itself knows better.
        return int(self._emu3.model.vqmodel.spatial_scale_factor)

    def layout(self, grid: Grid) -> ImageLayout:
        height, width = grid
        rows = np.full((height, width + 1), FREE, dtype=np.int64)
        rows[:, -1] = self._eol_id
        return ImageLayout(rows.flatten()[:-1])

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        p = self._processor
        size = f"{p.image_start_token}{grid[0]}*{grid[1]}{p.fake_token_around_image}"
        texts = [f"{p.bos_token}{prompt}{size}" for prompt in prompts]
        ids: list[list[int]] = p.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def unconditional_ids(self, grid: Grid, negative_prompt: str = "") -> list[int]:
        # Training dropped the text and kept "boi H*W img"; guidance must ask in the same form.
        return self.prompt_ids([negative_prompt], grid)[0]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vq, image_processor = self._emu3.model.vqmodel, self._processor.image_processor
        mean, std = (
            torch.tensor(values, device=pixels.device).view(3, 1, 1)
            for values in (image_processor.image_mean, image_processor.image_std)
        )
        images = (pixels.float() * image_processor.rescale_factor - mean) / std
        sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
        codes = vq.encode(images.to(vq.dtype), sizes).image_tokens
        return torch.stack(list(codes)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        vq, image_processor = self._emu3.model.vqmodel, self._processor.image_processor
        images = vq.decode(codes.view(-1, *grid)).float()
        mean, std = (
            torch.tensor(values, device=codes.device).view(3, 1, 1)
            for values in (image_processor.image_mean, image_processor.image_std)
        )
        pixels = (images * std + mean) / image_processor.rescale_factor
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._emu3.model.text_model.embed_tokens(ids)
        return embedded

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return self.embed_text(self._ids.to(codes.device)[codes])

    def hidden_states(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        output = self._emu3.model.text_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def new_cache(self, max_length: int) -> Cache:
        config = self._emu3.model.text_model.config
        return StaticCache(config=config, max_cache_len=max_length)

    def image_head(self, *, whole_vocabulary: bool = False) -> ImageHead:
        head = self._emu3.lm_head
        rows = slice(None) if whole_vocabulary else self._rows
        offset = 0 if whole_vocabulary else self._rows.start
        bias = None if head.bias is None else head.bias[rows]
        return ImageHead(head.weight[rows], bias, self._ids - offset)

    def frozen(self) -> list[nn.Module]:
        return [self._emu3.model.vqmodel]

    def lora_targets(self) -> list[str]:
        return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

    def compile(self) -> None:
        self._emu3.model.text_model.compile()

    def enable_gradient_checkpointing(self) -> None:
        self._emu3.gradient_checkpointing_enable({"use_reentrant": False})

    def save(self, folder: Path) -> None:
        # With a LoRA attached ``module`` is the PeftModel, which writes its adapter only.
        self.module.save_pretrained(folder)  # type: ignore[operator]
        self._processor.save_pretrained(folder)
