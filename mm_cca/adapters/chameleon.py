"""Chameleon in transformers' own classes: Chameleon-7b/30b and Anole, which generates images.

An image is ``boi`` and then its codes; nothing is between them. Codes are ``IMGIMG...`` tokens
of the text vocabulary in a permuted order. The stock ``forward`` masks every image logit, so hidden
states come from ``.model`` and are scored with ``lm_head`` directly; the stock tokenizer only
encodes, so the decoder comes from ``vqgan.py``. Shapes: see ``adapters/base.py``.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
)

from mm_cca.adapters.base import (
    FREE,
    Defaults,
    EngineServing,
    Grid,
    ImageLayout,
    rows_with_ends,
)
from mm_cca.adapters.chameleon_files import refuse_other_kind, tokenizer_from
from mm_cca.adapters.chat_templates import PROMPT, filled_in, joined, literal, units
from mm_cca.adapters.common import StandardDecoder, rounded_once
from mm_cca.adapters.headers import reads_headers_only
from mm_cca.adapters.loading import CheckpointError, load_module, reading_checkpoint
from mm_cca.adapters.plain_captions import ids_around
from mm_cca.adapters.text_check import refuse_split_tokens
from mm_cca.adapters.vocabulary import CodeTokens, refuse_without_vocabulary_map
from mm_cca.adapters.vqgan import (
    attach_decoder,
    decode_codes,
    fill_encoder,
    read_image_tokenizer,
    refuse_without_decoder,
)
from mm_cca.errors import UserError

END_OF_TURN = "<reserved08706>"
SIDES = ("height", "width")
MOST_CODES = 2**20
"""Of one image, which processor_config.json may give."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """What differs between the checkpoints of this family: the text and tokens around the codes.

    Attributes:
        template: of the prompt, with ``{prompt}``, ``{width}`` and ``{height}`` (pixels).
        unconditional_has_bos: whether the unconditional prompt starts with BOS, or with boi.
        row_end: token after each row of codes, if any.
        size_zero: n units of height or width are the token ``<reserved>`` numbered this plus n;
            height and width follow boi. None where a checkpoint knows one size only.
        unit: pixels per unit of the size tokens.
    """

    template: str = "{prompt}"
    unconditional_has_bos: bool = True
    row_end: str | None = None
    size_zero: int | None = None
    unit: int = 32


class Chameleon(StandardDecoder):
    """The adapter named ``chameleon``."""

    name = "chameleon"
    span = Span()
    # chameleon/inference/chameleon.py, Options.Image, which Anole's text2image.py uses as it is.
    # Its image guidance of 1.2 has no effect without images in the prompt.
    defaults = Defaults(guidance_scale=3.0, temperature=0.7, top_k=None, top_p=0.9)
    # vLLM's own class, which masked image logits, was removed in 0.28.
    engine_serving = EngineServing(("--model-impl", "transformers"))

    def __init__(
        self, module: ChameleonForConditionalGeneration, processor: ChameleonProcessor
    ) -> None:
        self._vocabulary: dict[str, int] = processor.tokenizer.get_vocab()
        with reading_checkpoint():  # computed from the config's vocabulary_map when first read
            codes = CodeTokens.of(module.model.vocabulary_mapping.img2bpe)
        codes.refuse_other_codebook(module.model.vqmodel.config.num_embeddings)
        refuse_split_tokens(processor.tokenizer, [END_OF_TURN])
        pad_id = processor.tokenizer.pad_token_id
        super().__init__(
            module,
            processor,
            module.model.vqmodel,
            pad_id=self._id("<pad>") if pad_id is None else int(pad_id),
            codes=codes,
        )

    @classmethod
    def load(
        cls,
        path: str,
        dtype: torch.dtype,
        image_tokenizer: str | None,
        tokenizer: str | None = None,
    ) -> "Chameleon":
        """Read a checkpoint folder or hub name; ``image_tokenizer`` is Meta's ``vqgan.ckpt``.

        ``tokenizer`` is a folder or hub name whose tokenizer replaces the checkpoint's.

        Raises:
            UserError: another family, or no image decoder in either place.
            CheckpointError: a file is missing or damaged, or a weight is missing.
        """
        refuse_other_kind(path, lumina=False)
        words = tokenizer_from(path if tokenizer is None else tokenizer, path)
        with reading_checkpoint():
            kept = ChameleonProcessor.get_processor_dict(path)[0].get("image_seq_length", 1024)
            pictures = ChameleonImageProcessor.from_pretrained(path)
        fits = type(kept) is int and 1 <= kept <= MOST_CODES
        if not fits or math.isqrt(kept) ** 2 != kept:
            raise CheckpointError(
                f"processor_config.json: image_seq_length is {kept!r}; it must be the number of "
                "codes of a square image, such as 1024: download the file again"
            )
        processor = ChameleonProcessor(pictures, words, image_seq_length=kept)
        return cls.read(path, dtype, image_tokenizer, processor)

    @classmethod
    def module_class(
        cls, path: str, config: ChameleonConfig
    ) -> type[ChameleonForConditionalGeneration]:
        """The class that has the weights of this checkpoint."""
        return ChameleonForConditionalGeneration

    @classmethod
    def read(
        cls,
        path: str,
        dtype: torch.dtype,
        image_tokenizer: str | None,
        processor: ChameleonProcessor,
    ) -> "Chameleon":
        """A checkpoint with its image decoder; encoder weights too, where the folder lacks them."""
        with reading_checkpoint():
            config = ChameleonConfig.from_pretrained(path)
        refuse_without_vocabulary_map(config.vocabulary_map)
        config.attention_dropout = 0.0
        source = path if image_tokenizer is None else image_tokenizer
        tensors = read_image_tokenizer(source)
        refuse_without_decoder(tensors, source)  # before reading the large file
        module, lacks_encoder = load_module(
            cls.module_class(path, config),
            path,
            config,
            dtype,
            may_lack="model.vqmodel.",
            in_float32="vqmodel",
            used_elsewhere="model.vqmodel.decoder.",  # read above
        )
        if lacks_encoder:
            fill_encoder(module.model.vqmodel, tensors, source)
        # As a part of vqmodel the decoder is saved under the names that Anole's folders use.
        attach_decoder(module.model.vqmodel, tensors, source)
        model = cls(module, processor)
        if not reads_headers_only():
            warn_if_it_cannot_draw(model, path)
        return model

    def layout(self, grid: Grid) -> ImageLayout:
        span, side = self.span, self.pixels_per_code
        height, width = (n * side for n in grid)
        if span.size_zero is not None and (height % span.unit or width % span.unit):
            raise UserError(
                f"data.image_size is [{height}, {width}]; allowed for this checkpoint: multiples "
                f"of {span.unit}, the unit of its size tokens."
            )
        only = math.isqrt(self._processor.image_seq_length)
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
        before, after = (
            part.format(height=height, width=width) for part in self.span.template.split("{prompt}")
        )
        tokenizer = self._processor.tokenizer
        rows = ids_around(tokenizer, before, prompts, after + END_OF_TURN)
        start = self._start(grid)
        return [[tokenizer.bos_token_id, *row, *start] for row in rows]

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        if negative_prompt:
            return self.prompt_ids([negative_prompt], grid)[0]
        bos = [self._processor.tokenizer.bos_token_id] if self.span.unconditional_has_bos else []
        return [*bos, *self._start(grid)]

    def _start(self, grid: Grid) -> list[int]:
        boi = self._processor.image_start_token_id
        if self.span.size_zero is None:
            return [boi]
        units = [n * self.pixels_per_code // self.span.unit for n in grid]
        return [boi, *(self._id(f"<reserved{self.span.size_zero + n:05d}>") for n in units)]

    def chat_template(self, grid: Grid) -> str | None:
        span, tokenizer = self.span, self._processor.tokenizer
        pixels = {name: n * self.pixels_per_code for name, n in zip(SIDES, grid, strict=True)}
        sizes = {name: units(name, n, 1) for name, n in pixels.items()}
        text = filled_in(span.template + END_OF_TURN, sizes | {"prompt": PROMPT})
        boi = literal(tokenizer.convert_ids_to_tokens(self._processor.image_start_token_id))
        if span.size_zero is None:
            return joined(literal(tokenizer.bos_token), *text, boi)
        numbers = (f"{span.size_zero} + {units(name, n, span.unit)}" for name, n in pixels.items())
        size = [f"('<reserved%05d>' | format({number}))" for number in numbers]
        return joined(literal(tokenizer.bos_token), *text, boi, *size)

    def save_for_engine(self, folder: Path) -> None:
        """As ``save``, without the image decoder, which stock classes refuse."""
        self.save_stock(folder, self._model.state_dict())

    def save_stock(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Write weights as the stock class reads them, which knows no image decoder."""
        decoder = "model.vqmodel.decoder."
        kept = {name: x for name, x in weights.items() if not name.startswith(decoder)}
        self._model.save_pretrained(folder, state_dict=kept)
        self._processor.save_pretrained(folder)

    def _id(self, token: str) -> int:
        if token not in self._vocabulary:
            raise UserError(f"the checkpoint's tokenizer has no token {token!r}.")
        return self._vocabulary[token]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        # Not by the image processor on the hub: it says 0.0078 for 1/127.5, which gives 3 % of the
        # codes of a photo another value.
        images = rounded_once(pixels, self._vq.dtype)
        codes: torch.Tensor = self._vq.encode(images).image_tokens
        return codes.view(len(pixels), -1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        return decode_codes(self._vq, codes, grid)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self._processor.tokenizer
        return [[tokenizer.bos_token_id, *row] for row in ids_around(tokenizer, "", texts)]


def warn_if_it_cannot_draw(model: Chameleon, path: str) -> None:
    """Warn if the head's image rows were never trained, as in Meta's public weights.

    Rows that hardly differ give every code about the same probability; the text rows of the same
    head show the usual spread.
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
