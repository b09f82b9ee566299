"""Models with random weights at real shapes, for benchmarks. Nothing is downloaded or read.

The classes are the project's adapters around transformers' own; only the image tokenizers, which
take no part in a training step, are small. Shapes: see ``adapters/base.py``.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Emu3VQVAEConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from mm_cca.adapters.base import Grid, UnifiedModel
from mm_cca.adapters.chameleon import Chameleon
from mm_cca.adapters.emu3 import Emu3
from mm_cca.adapters.janus import Janus
from mm_cca.demo.small_emu3 import EOL_TOKEN, code_token

EMU3_VOCABULARY, EMU3_CODES = 184_622, 32_768


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder of Llama's kind."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int

    def keys(self, vocabulary: int, positions: int) -> dict[str, Any]:
        """As transformers' configs name them."""
        return {
            "vocab_size": vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": positions,
        }


SMALL = Decoder(128, 384, 4, 4, 4)
EMU3_8B = Decoder(4096, 14336, 32, 32, 8)
JANUS_1B = Decoder(2048, 5632, 24, 16, 16)
JANUS_7B = Decoder(4096, 11008, 30, 32, 32)
CHAMELEON_7B = Decoder(4096, 11008, 32, 32, 32)


def emu3(shape: Decoder) -> Emu3:
    """Emu3 with its real vocabulary of text and codes."""
    first = EMU3_VOCABULARY - EMU3_CODES
    names = {code_token(code): first + code for code in range(EMU3_CODES)}
    text = Emu3TextConfig(
        **shape.keys(EMU3_VOCABULARY, 9216), attention_dropout=0.0, pad_token_id=0
    )
    vq = Emu3VQVAEConfig(
        codebook_size=EMU3_CODES,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1],
        num_res_blocks=1,
        hidden_size=32,
    )
    config = Emu3Config(
        text_config=text.to_dict(),
        vq_config=vq.to_dict(),
        vocabulary_map={**names, EOL_TOKEN: first - 1, "<image>": first - 2},
    )
    return Emu3(Emu3ForConditionalGeneration(config), _words())


def chameleon(shape: Decoder) -> Chameleon:
    """Chameleon-7B's vocabulary of 65,536 with 8,192 codes."""
    names = {_chameleon_token(code): 4 + code for code in range(8192)}
    config = ChameleonConfig(
        **shape.keys(65_536, 4096),
        attention_dropout=0.0,
        vocabulary_map={**names, "<image>": 8711, "<pad>": 1},
        vq_config=ChameleonVQVAEConfig(
            base_channels=32, channel_multiplier=[1, 1, 1, 1, 1], num_res_blocks=1
        ).to_dict(),
    )
    return Chameleon(ChameleonForConditionalGeneration(config), _words(pad_id=1, names=names))


def janus(shape: Decoder) -> Janus:
    """Janus-Pro's vocabulary of 102,400, and 16,384 codes with a head of their own."""
    width = shape.hidden
    config = JanusConfig(
        text_config=LlamaConfig(**shape.keys(102_400, 16_384)).to_dict(),
        vision_config=JanusVisionConfig(num_hidden_layers=1, projection_dim=width).to_dict(),
        vq_config=JanusVQVAEConfig(
            base_channels=32, num_res_blocks=1, projection_dim=width, image_token_embed_dim=width
        ).to_dict(),
        tie_word_embeddings=False,
    )
    config.vq_config.num_patches = 24
    return Janus(JanusForConditionalGeneration(config), _words())


def _chameleon_token(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


class _Tokenizer:
    """In place of a tokenizer: every text is one id, so no prompt can be made of it."""

    special_tokens_map: ClassVar[dict[str, str]] = {}

    def __init__(self, pad_id: int, names: dict[str, int]) -> None:
        self.pad_token_id = pad_id
        self._names = names

    def get_vocab(self) -> dict[str, int]:
        return self._names

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[3] for _ in texts]}


def _words(pad_id: int = 0, names: dict[str, int] | None = None) -> Any:
    """In place of a processor."""
    return SimpleNamespace(
        tokenizer=_Tokenizer(pad_id, names or {}),
        bos_token="<bos>",
        image_start_token="<image>",
        fake_token_around_image="<token>",
        image_seq_length=1024,
        chat_template="{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}",
    )


@dataclass(frozen=True)
class Prompts:
    """Random prompts of different lengths, in the ids of text."""

    shortest: int
    longest: int

    def rows(self, count: int, generator: torch.Generator) -> list[list[int]]:
        """``count`` lists of token ids."""
        lengths = torch.randint(self.shortest, self.longest + 1, (count,), generator=generator)
        return [
            torch.randint(4, 200, (int(n),), generator=generator).tolist() for n in lengths.tolist()
        ]


def random_codes(
    model: UnifiedModel, grid: Grid, count: int, generator: torch.Generator
) -> torch.Tensor:
    """[B, N] codes."""
    num_codes = model.layout(grid).num_codes
    return torch.randint(model.codebook_size, (count, num_codes), generator=generator)
