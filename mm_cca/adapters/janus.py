"""Janus in transformers' own classes: Janus-1.3B, Janus-Pro-1B and -7B, in either layout.

An image is ``<begin_of_image>`` and then 576 codes, which are not in the text vocabulary: they have
their own embedding with an aligner, and their own head. The stock ``forward`` has no path
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
from transformers import Cache, JanusConfig, JanusForConditionalGeneration, JanusProcessor

from mm_cca.adapters.base import (
    BEYOND_TOKENIZER,
    FREE,
    Defaults,
    EngineServing,
    Grid,
    ImageHead,
    ImageLayout,
)
from mm_cca.adapters.chat_templates import around
from mm_cca.adapters.checkpoint_files import refuse_without_tokenizer
from mm_cca.adapters.common import (
    StandardDecoder,
    from_unit_range,
    last_hidden,
    pad_id_of,
    to_unit_range,
)
from mm_cca.adapters.janus_deepseek import read_deepseek
from mm_cca.adapters.janus_engine import save_folded
from mm_cca.adapters.janus_turn import turn_of
from mm_cca.adapters.loading import (
    CheckpointError,
    expect_family,
    load_module,
    read_config,
    reading_checkpoint,
    refuse_image_tokenizer,
)
from mm_cca.adapters.plain_captions import ids_around
from mm_cca.adapters.text_check import refuse_split_tokens
from mm_cca.errors import UserError


class Janus(StandardDecoder):
    """The adapter named ``janus``."""

    name = "janus"
    # https://github.com/deepseek-ai/Janus, generation_inference.py.
    defaults = Defaults(guidance_scale=5.0, temperature=1.0, top_k=None, top_p=None)
    engine_serving = EngineServing(BEYOND_TOKENIZER, needs_plugin=True)

    def __init__(self, module: JanusForConditionalGeneration, processor: JanusProcessor) -> None:
        self._turn = turn_of(processor)
        refuse_split_tokens(processor.tokenizer, [processor.image_start_token])
        pad_id = _pad_id(module, processor)
        super().__init__(module, processor, module.model.vqmodel, pad_id=pad_id, codes=None)
        self.codebook_size = int(module.model.generation_head.vision_head.out_features)

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, image_tokenizer: str | None) -> "Janus":
        """Read a checkpoint folder or hub name.

        Raises:
            UserError: another family, or a layout that must be converted first.
            CheckpointError: a file is missing or damaged, or a weight is missing.
        """
        refuse_image_tokenizer(image_tokenizer, "janus")
        if expect_family(path, "janus", "janus-deepseek").name == "janus-deepseek":
            return cls(*read_deepseek(path, dtype))
        refuse_without_tokenizer(path)
        with reading_checkpoint():
            config = JanusConfig.from_pretrained(path)
            processor = JanusProcessor.from_pretrained(path)
        module, _ = load_module(
            JanusForConditionalGeneration, path, config, dtype, in_float32="vqmodel"
        )
        if module.lm_head.weight is not module.get_input_embeddings().weight:
            # The hub's configs don't say so, and stock classes then take it for true.
            module.config.tie_word_embeddings = False
        elif _says_untied(read_config(path)):
            raise CheckpointError("it lacks 1 weights, such as lm_head.weight")
        return cls(module, processor)

    def layout(self, grid: Grid) -> ImageLayout:
        side = self._vq.config.num_patches
        if grid != (side, side):
            right = side * self.pixels_per_code
            raise UserError(
                f"data.image_size is {[n * self.pixels_per_code for n in grid]}; allowed for this "
                f"checkpoint: [{right}, {right}], the only size of its image decoder."
            )
        return ImageLayout(np.full(side * side, FREE, dtype=np.int64))

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        start, rows = self._processor.image_start_token, []
        for prompt in prompts:
            before, caption, after = self._turn.parts(prompt)
            rows += self._with_bos(before, [caption], after + start)
        return rows

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        if negative_prompt:
            return self.prompt_ids([negative_prompt], grid)[0]
        # As DeepSeek's code does: all but the first and the last token (BOS and begin-of-image)
        # become padding, which is attended to.
        return [conditional[0], *[self.pad_id] * (len(conditional) - 2), conditional[-1]]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vq = self._vq
        # The VQ's own constants; the folder's image processor is that of the understanding tower.
        images = to_unit_range(pixels)
        latents = vq.quant_conv(vq.encoder(images.to(vq.dtype))).flatten(2).transpose(1, 2)
        # DeepSeek's quantizer compares directions (codebook_l2_norm), and decoding looks entries up
        # normalised; the stock encode compares lengths too, and so can name another code.
        entries = F.normalize(vq.quantize.embedding.weight.float(), dim=-1)
        return (F.normalize(latents.float(), dim=-1) @ entries.T).argmax(dim=-1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        images = self._vq.decode(codes)
        return from_unit_range(images)

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return self._model.prepare_embeddings_for_image_generation(codes)

    def hidden_states(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        position_ids: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        states = super().hidden_states(embeds, mask, position_ids, cache)
        # All of the generation head but its last layer, whose rows score the codes.
        head = self._model.model.generation_head
        return head.activation_fn(head.proj_out(states))

    def image_head(self, *, whole_vocabulary: bool = False) -> ImageHead:
        # The head scores image codes only, so the whole vocabulary is the same rows.
        layer = self._model.model.generation_head.vision_head
        return ImageHead(layer.weight, layer.bias, torch.arange(self.codebook_size))

    def engine_codes(self) -> np.ndarray:
        # They follow the text in the folded embedding table.
        first = len(self._decoder.get_input_embeddings().weight)
        return np.arange(first, first + self.codebook_size)

    def save_for_engine(self, folder: Path) -> None:
        save_folded(self._model, self._processor.tokenizer, folder)

    def chat_template(self, grid: Grid) -> str | None:
        p, bos = self._processor, self._processor.tokenizer.bos_token
        first = "" if self._turn.empty.startswith(bos) else bos
        return around(p.chat_template, first, p.image_start_token)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._with_bos("", texts, "")

    def _with_bos(self, before: str, texts: Sequence[str], after: str) -> list[list[int]]:
        """Whether a tokenizer of Llama's class adds BOS itself depends on transformers' version."""
        tokenizer = self._processor.tokenizer
        bos = tokenizer.bos_token_id
        rows = ids_around(tokenizer, before, texts, after)
        return [ids if ids[:1] == [bos] else [bos, *ids] for ids in rows]

    def text_states(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        # Not hidden_states, which includes the first layers of the image codes' head.
        return last_hidden(self._decoder, self.embed_text(ids), mask, position_ids, None)

    def frozen(self) -> list[nn.Module]:
        model = self._model.model
        parts = [*super().frozen(), model.vision_model, model.aligner]
        # The text head isn't trained here; a tied one is the input embedding, which is.
        if self._model.lm_head.weight is not model.language_model.embed_tokens.weight:
            parts.append(self._model.lm_head)
        return parts


def _says_untied(config: dict[str, Any]) -> bool:
    """Whether config.json says of the text head, and nowhere else, that it has its own weights."""
    text = config.get("text_config", {})
    return "tie_word_embeddings" not in config and text.get("tie_word_embeddings") is False


def _pad_id(module: JanusForConditionalGeneration, processor: JanusProcessor) -> int:
    """What stock ``generate`` replaces tokens with; the tokenizer's own padding may be another."""
    found = module.generation_config.pad_token_id
    return pad_id_of(processor.tokenizer) if found is None else int(found)
