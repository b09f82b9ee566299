"""A stock language model whose vocabulary was enlarged by image codes: Liquid and SimpleAR.

Code c is the token ``len(tokenizer) + c``. The image tokenizer lies in files of its own, which
``model.image_tokenizer`` names. Shapes: see ``adapters/base.py``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from mm_cca.adapters.base import BEYOND_TOKENIZER, FREE, EngineServing, Grid, ImageLayout
from mm_cca.adapters.common import StandardDecoder, pad_id_of
from mm_cca.adapters.loading import reading_checkpoint
from mm_cca.adapters.plain_captions import ids_around
from mm_cca.adapters.vocabulary import CodeTokens
from mm_cca.errors import UserError

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""Everything but the weights. Training changes none of it."""


@reading_checkpoint()
def read_small_files(path: str) -> dict[str, bytes]:
    """Those of ``SMALL_FILES`` that a folder or hub name has."""
    found = {}
    for name in SMALL_FILES:
        place = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        if place is not None:
            found[name] = Path(place).read_bytes()
    return found


class AppendedCodes(StandardDecoder):
    """Left to the family: ``name``, ``defaults``, ``side``, ``load``, prompts and codes."""

    engine_serving = EngineServing(BEYOND_TOKENIZER)
    side: int
    """Codes along each side of the images that the checkpoints were trained on."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        image_tokenizer: nn.Module,
        codebook_size: int,
        small_files: dict[str, bytes],
    ) -> None:
        first = len(tokenizer)
        self._small_files = small_files
        # Inside the model, so that it is on its device and a LoRA has the names of the model alone.
        model.vqmodel = image_tokenizer
        super().__init__(
            model,
            tokenizer,
            image_tokenizer,
            pad_id=pad_id_of(tokenizer),
            codes=CodeTokens.of({code: first + code for code in range(codebook_size)}),
        )

    def layout(self, grid: Grid) -> ImageLayout:
        height, width = grid
        if height != width or height > self.side:
            pixels = self.pixels_per_code
            raise UserError(
                f"data.image_size is {[n * pixels for n in grid]}; allowed for this checkpoint: "
                f"squares of up to [{self.side * pixels}, {self.side * pixels}], the size it was "
                "trained on (nothing in the sequence tells it the shape)."
            )
        return ImageLayout(np.full(height * width, FREE, dtype=np.int64))

    def ids_around(self, before: str, texts: Sequence[str], after: str = "") -> list[list[int]]:
        """Token ids of ``before + text + after``; control tokens in a text are plain text."""
        return ids_around(self._processor, before, texts, after)

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """As the authors' folder, for their code: it needs transformers 4, whose files differ.

        The image tokenizer stays in its own files.
        """
        weights = self.module.state_dict() if weights is None else weights
        own = {name: x for name, x in weights.items() if not name.startswith("vqmodel.")}
        super().save(folder, own)
        dtype = json.loads((folder / "config.json").read_text())["dtype"]
        for name, content in self._small_files.items():
            (folder / name).write_bytes(content)
        config = json.loads(self._small_files["config.json"])
        config["dtype" if "dtype" in config else "torch_dtype"] = dtype
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def save_for_engine(self, folder: Path) -> None:
        """As ``save``, with the files of today's stock classes."""
        weights = self._model.state_dict()
        own = {name: x for name, x in weights.items() if not name.startswith("vqmodel.")}
        super().save(folder, own)


def refuse_plain_model(
    path: str, config: PreTrainedConfig, tokenizer: Any, special: list[str], right: str
) -> None:
    """Raises UserError for a folder of the language model that the family was trained from.

    Args:
        special: tokens that the family has added to it.
        right: hub name of a checkpoint of the family.
    """
    lacks = [token for token in special if token not in tokenizer.get_vocab()]
    if lacks:
        raise UserError(
            f"model.path {path!r} can't draw: its tokenizer has no {', '.join(lacks)}. This is "
            f"the plain {config.model_type} (vocabulary of {config.vocab_size}) or another "
            f"fine-tune of it: set model.path to {right} or a fine-tune of that."
        )


def refuse_other_vocabulary(
    path: str, config: PreTrainedConfig, tokenizer: Any, codebook_size: int
) -> None:
    """Raises UserError for another codebook than the folder was trained with."""
    rows = int(config.vocab_size)
    if rows != len(tokenizer) + codebook_size:
        raise UserError(
            f"model.path {path!r} has a vocabulary of {rows} tokens, but its tokenizer's "
            f"{len(tokenizer)} and the image tokenizer's {codebook_size} codes are "
            f"{len(tokenizer) + codebook_size}: the one given by model.image_tokenizer is not "
            "the family's."
        )
