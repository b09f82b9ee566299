"""Emu3 in transformers' own classes (BAAI/Emu3-Gen in the layout ``Emu3ForConditionalGeneration``).

An image is ``boi H*W img`` and then rows of codes, each closed by an end-of-line token
(``Emu3Processor`` and ``Emu3Model.get_image_tokens`` in transformers). Codes share the vocabulary
with text; their rows of ``lm_head`` are contiguous. Shapes: see ``adapters/base.py``.
"""

import logging
from collections.abc import Sequence

import torch
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3Processor

from mm_cca.adapters.base import Defaults, Grid, ImageLayout, rows_with_ends
from mm_cca.adapters.chat_templates import PROMPT, joined, literal, units
from mm_cca.adapters.checkpoint_files import refuse_without_tokenizer
from mm_cca.adapters.common import StandardDecoder, from_unit_range, pad_id_of, to_unit_range
from mm_cca.adapters.emu3_tokenizer import with_emu3_words
from mm_cca.adapters.families import is_emu3_chat, may_be_emu3_chat
from mm_cca.adapters.loading import (
    expect_family,
    load_module,
    read_config,
    reading_checkpoint,
    refuse_image_tokenizer,
)
from mm_cca.adapters.plain_captions import ids_around
from mm_cca.adapters.text_check import refuse_split_tokens
from mm_cca.adapters.vocabulary import CodeTokens, refuse_without_vocabulary_map
from mm_cca.errors import UserError

log = logging.getLogger(__name__)


class Emu3(StandardDecoder):
    """The adapter named ``emu3``."""

    name = "emu3"
    # https://github.com/baaivision/Emu3, image_generation.py: guidance 3.0, top-k 2048.
    defaults = Defaults(guidance_scale=3.0, temperature=1.0, top_k=2048, top_p=None)

    def __init__(self, module: Emu3ForConditionalGeneration, processor: Emu3Processor) -> None:
        mapping = module.vocabulary_mapping
        with reading_checkpoint():  # computed from the config's vocabulary_map when first read
            codes, self._eol_id = CodeTokens.of(mapping.img2bpe), int(mapping.eol_token_id)
        pad_id = pad_id_of(processor.tokenizer)
        marks = (
            processor.bos_token,
            processor.image_start_token,
            processor.fake_token_around_image,
        )
        refuse_split_tokens(processor.tokenizer, marks)
        codes.refuse_other_codebook(module.model.vqmodel.config.codebook_size)
        super().__init__(module, processor, module.model.vqmodel, pad_id=pad_id, codes=codes)

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, image_tokenizer: str | None) -> "Emu3":
        """Read a checkpoint folder or hub name.

        Raises:
            UserError: another family, Emu3-Chat, or a layout that must be converted first.
            CheckpointError: a file is missing or damaged, or a weight is missing.
        """
        refuse_image_tokenizer(image_tokenizer, "emu3")
        expect_family(path, "emu3")
        if is_emu3_chat(path):
            raise UserError(
                f"model.path {path!r} is Emu3-Chat by its name, which was trained to describe "
                "images, not to draw them: set model.path to Emu3-community/Emu3-Gen-hf. If you "
                "have trained this one to draw, give its folder another name."
            )
        if may_be_emu3_chat(read_config(path)):
            log.warning(
                "%s may be Emu3-Chat, which can't draw: config.json has more positions "
                "(max_position_embeddings) than Emu3-Gen, Emu3-Stage1 and what BAAI's scripts "
                "fine-tune. Use Emu3-community/Emu3-Gen-hf, unless you have trained this one to "
                "draw.",
                path,
            )
        refuse_without_tokenizer(path)
        with reading_checkpoint():
            config = Emu3Config.from_pretrained(path)
            processor = Emu3Processor.from_pretrained(path)
            processor.tokenizer = with_emu3_words(processor.tokenizer, path)
        refuse_without_vocabulary_map(config.vocabulary_map)
        # Emu3's configs ship 0.1, which would move log-probs between the model and its reference.
        config.text_config.attention_dropout = 0.0  # type: ignore[union-attr]
        module, _ = load_module(
            Emu3ForConditionalGeneration, path, config, dtype, in_float32="vqmodel"
        )
        return cls(module, processor)

    @property
    def pixels_per_code(self) -> int:
        # Emu3Processor.downsample_ratio is a constant 8; the tokenizer itself knows better.
        return int(self._vq.spatial_scale_factor)

    def layout(self, grid: Grid) -> ImageLayout:
        return rows_with_ends(grid, self._eol_id)

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        p = self._processor
        size = f"{p.image_start_token}{grid[0]}*{grid[1]}{p.fake_token_around_image}"
        return ids_around(p.tokenizer, p.bos_token, prompts, size)

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        # Training dropped the text and kept "boi H*W img"; guidance must ask in the same form.
        return self.prompt_ids([negative_prompt], grid)[0]

    def chat_template(self, grid: Grid) -> str | None:
        p, side = self._processor, self.pixels_per_code
        height, width = (n * side for n in grid)
        return joined(
            literal(p.bos_token),
            PROMPT,
            literal(p.image_start_token),
            units("height", height, side),
            literal("*"),
            units("width", width, side),
            literal(p.fake_token_around_image),
        )

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        # BAAI/Emu3-VisionTokenizer's constants. Stock image processors without a file of their own
        # take CLIP's mean, which gives other codes.
        images = to_unit_range(pixels)
        sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
        codes = self._vq.encode(images.to(self._vq.dtype), sizes).image_tokens
        return torch.stack(list(codes)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        images = self._vq.decode(codes.view(-1, *grid))
        return from_unit_range(images)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        p = self._processor
        return ids_around(p.tokenizer, p.bos_token, texts)
