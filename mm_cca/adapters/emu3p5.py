"""Emu3.5 and Emu3.5-Image (BAAI, 34 billion parameters), in stock classes.

Their decoder is Qwen3 under another name, and their image tokenizer (IBQ) is Chameleon's VQGAN but
for the quantizer: the code is the entry with the largest inner product. An image is ``boi H*W img``
and rows of codes, each but the last closed by an end-of-line token; codes are the end of the
vocabulary. Source: https://github.com/baaivision/Emu3.5, configs/example_config_t2i.py and
src/utils/logits_processor.py. Shapes: see ``adapters/base.py``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from mm_cca.adapters.base import (
    BEYOND_TOKENIZER,
    Defaults,
    EngineServing,
    Grid,
    ImageLayout,
    rows_with_ends,
)
from mm_cca.adapters.chat_templates import PROMPT, filled_in, joined, units
from mm_cca.adapters.common import StandardDecoder, pad_id_of
from mm_cca.adapters.config_limits import refuse_unusable
from mm_cca.adapters.emu3p5_tokenizer import (
    BOS,
    ROW_END,
    first_code,
    read_tokenizer,
    refuse_other_vocabulary,
    refuse_plain_qwen3,
)
from mm_cca.adapters.families import kind_of
from mm_cca.adapters.ibq import IBQ, IMAGE_TOKENIZER, read_ibq
from mm_cca.adapters.loading import (
    expect_family,
    load_module,
    read_config,
    reading_checkpoint,
    refuse_absent_weights,
)
from mm_cca.adapters.plain_captions import ids_around
from mm_cca.adapters.text_check import refuse_split_tokens
from mm_cca.adapters.vocabulary import CodeTokens
from mm_cca.adapters.vqgan import decode_codes
from mm_cca.errors import UserError

TEMPLATE = (
    "<|extra_203|>You are a helpful assistant for t2i task. USER: {prompt} ASSISTANT: <|extra_100|>"
)
UNCONDITIONAL = "<|extra_203|>You are a helpful assistant. USER:  ASSISTANT: <|extra_100|>"
SIZE = "<|image start|>{height}*{width}<|image token|>"
MARKS = (BOS, "<|extra_100|>", "<|image start|>", "<|image token|>")
PRESETS = {
    "1:1": (64, 64),
    "4:3": (55, 73),
    "3:4": (73, 55),
    "3:2": (52, 78),
    "2:3": (78, 52),
    "16:9": (47, 85),
    "9:16": (85, 47),
    "21:9": (41, 97),
}
"""Rows and columns of codes that the authors generate, by width to height."""
LONGEST = 99
"""Most rows or columns: the size was always written with at most two digits."""


class Emu3p5(StandardDecoder):
    """The adapter named ``emu3p5``.

    ``module`` is the stock Qwen3 with the image tokenizer as its part ``vqmodel``, so that plain
    peft reads a LoRA; ``save`` leaves the image tokenizer out, which has a folder of its own.
    """

    name = "emu3p5"
    # configs/example_config_t2i.py; a comment there recommends guidance 2 for Emu3.5 itself.
    defaults = Defaults(guidance_scale=5.0, temperature=1.0, top_k=5120, top_p=None)
    engine_serving = EngineServing(BEYOND_TOKENIZER)

    def __init__(
        self,
        module: Qwen3ForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        vq: IBQ,
        config: dict[str, Any],
    ) -> None:
        codebook, vocabulary = vq.config.num_embeddings, tokenizer.get_vocab()
        self._row_end, first = vocabulary[ROW_END], first_code(vocabulary)
        module.vqmodel = vq
        self._raw_config = config
        super().__init__(
            module,
            tokenizer,
            vq,
            pad_id=pad_id_of(tokenizer),
            codes=CodeTokens.of({code: first + code for code in range(codebook)}),
        )

    @classmethod
    def load(
        cls,
        path: str,
        dtype: torch.dtype,
        image_tokenizer: str | None,
        tokenizer: str | None = None,
    ) -> "Emu3p5":
        """Read a checkpoint.

        Args:
            path: a folder or hub name, such as BAAI/Emu3.5-Image.
            dtype: of the decoder; the image tokenizer stays in float32.
            image_tokenizer: the folder or hub name of Emu3.5-VisionTokenizer.
            tokenizer: the folder of the text tokenizer; None: it is in one of the other two.

        Raises:
            UserError: another family, no image tokenizer or no text tokenizer.
            CheckpointError: a file is missing or damaged, or a weight is missing.
        """
        raw, config = _read_config(path)
        refuse_absent_weights(path)
        if image_tokenizer is None:
            raise UserError(
                "model.image_tokenizer is null; allowed for emu3p5: BAAI/Emu3.5-VisionTokenizer, "
                "or a folder that holds its config.json and model.safetensors."
            )
        words = read_tokenizer([path, image_tokenizer] if tokenizer is None else [tokenizer])
        if raw["model_type"] == "qwen3":
            refuse_plain_qwen3(path, config.vocab_size, words.get_vocab())
        vq = read_ibq(image_tokenizer)  # before reading the large files
        refuse_other_vocabulary(config.vocab_size, words.get_vocab(), vq.config.num_embeddings)
        refuse_split_tokens(words, MARKS)
        module, _ = load_module(Qwen3ForCausalLM, path, config, dtype)
        return cls(module, words, vq, raw)

    def layout(self, grid: Grid) -> ImageLayout:
        if max(grid) > LONGEST:
            side = self.pixels_per_code
            presets = ", ".join(f"[{h * side}, {w * side}]" for h, w in PRESETS.values())
            raise UserError(
                f"data.image_size is [{grid[0] * side}, {grid[1] * side}]; allowed for this "
                f"checkpoint: at most {LONGEST * side} pixels a side, best one of {presets}."
            )
        return rows_with_ends(grid, self._row_end)

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        before, after = TEMPLATE.split("{prompt}")
        return ids_around(self._processor, before, prompts, after + _size(grid))

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        if negative_prompt:
            return self.prompt_ids([negative_prompt], grid)[0]
        return ids_around(self._processor, UNCONDITIONAL, [""], _size(grid))[0]

    def chat_template(self, grid: Grid) -> str | None:
        side, names = self.pixels_per_code, ("height", "width")
        size = {name: units(name, n * side, side) for name, n in zip(names, grid, strict=True)}
        return joined(*filled_in(TEMPLATE + SIZE, size | {"prompt": PROMPT}))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = self._vq.codes_of(pixels)
        return codes

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        return decode_codes(self._vq, codes, grid)

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return ids_around(self._processor, BOS, texts)

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Without the image tokenizer, and with the base's config.json, which BAAI's code reads."""
        weights = self._model.state_dict() if weights is None else weights
        kept = {name: x for name, x in weights.items() if not name.startswith("vqmodel.")}
        self._model.save_pretrained(folder, state_dict=kept)
        self._processor.save_pretrained(folder)
        stored = str(next(iter(kept.values())).dtype).removeprefix("torch.")
        key = "dtype" if "dtype" in self._raw_config else "torch_dtype"
        text = json.dumps(self._raw_config | {key: stored}, indent=2)
        (folder / "config.json").write_text(text + "\n")

    def save_for_engine(self, folder: Path) -> None:
        """As ``save``, with the config.json of stock Qwen3."""
        weights = self._model.state_dict()
        kept = {name: x for name, x in weights.items() if not name.startswith("vqmodel.")}
        self._model.save_pretrained(folder, state_dict=kept)
        self._processor.save_pretrained(folder)


def _size(grid: Grid) -> str:
    return SIZE.format(height=grid[0], width=grid[1])


def _read_config(path: str) -> tuple[dict[str, Any], Qwen3Config]:
    """The checkpoint's own config, and the same for the stock class."""
    raw = read_config(path)
    found = raw.get("model_type")
    if found == IMAGE_TOKENIZER:
        raise UserError(
            f"model.path {path!r} is the image tokenizer: set it as model.image_tokenizer, and "
            "model.path to BAAI/Emu3.5-Image."
        )
    if found == "Emu3" and kind_of(raw).name != "emu3p5":
        raise UserError(
            f"model.path {path!r} is Emu3 (vocabulary {raw.get('vocab_size')}), not Emu3.5: set "
            "model.path to Emu3-community/Emu3-Gen-hf and model.adapter to emu3."
        )
    if found not in ("Emu3", "qwen3"):  # the second is what stock classes call it
        expect_family(path, "emu3p5")
    refuse_unusable(raw)
    raw = {name: value for name, value in raw.items() if not name.startswith("_")}
    # What their class takes for granted where the file is silent.
    theirs = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6}
    known = {} if found == "qwen3" else theirs
    shape = known | raw | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    # Their class ships 0.1, which would move log-probs between the model and its reference.
    with reading_checkpoint():
        return raw, Qwen3Config.from_dict(shape | {"attention_dropout": 0.0})
