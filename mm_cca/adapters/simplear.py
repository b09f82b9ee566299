"""SimpleAR (Daniel0724/SimpleAR-0.5B/1.5B-SFT/RL): stock Qwen2 with 64,000 Cosmos codes appended.

A prompt is ``<|t2i|>text<|soi|>``, and 64 x 64 codes follow without anything between them; the
unconditional prompt has no text, which a tenth of the training had. Its authors draw with a
prefix and against a negative prompt (https://github.com/wdrink/SimpleAR, generate.py, docs/PLAY.md,
simpar/train/preprocess.py). The image tokenizer is NVIDIA's Cosmos-1.0-Tokenizer-DV8x16x16, two
TorchScript files of which only the weights are read. Shapes: see ``adapters/base.py``.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from mm_cca.adapters.appended_codes import (
    AppendedCodes,
    read_small_files,
    refuse_other_vocabulary,
    refuse_plain_model,
)
from mm_cca.adapters.base import Defaults, Grid
from mm_cca.adapters.chat_templates import PROMPT, joined, literal
from mm_cca.adapters.checkpoint_files import refuse_without_tokenizer
from mm_cca.adapters.cosmos import PIXELS_PER_CODE, CosmosTokenizer, shape_of
from mm_cca.adapters.cosmos_network import CosmosShape
from mm_cca.adapters.headers import reads_headers_only
from mm_cca.adapters.loading import expect_family, load_module, reading_checkpoint
from mm_cca.adapters.text_check import refuse_split_tokens
from mm_cca.adapters.torchscript import read_torchscript
from mm_cca.errors import UserError

T2I, SOI = "<|t2i|>", "<|soi|>"
FILES = ("encoder.jit", "decoder.jit")
COSMOS = "nvidia/Cosmos-1.0-Tokenizer-DV8x16x16"
_KIND = "DV8x16x16"


class SimpleAR(AppendedCodes):
    """The adapter named ``simplear``."""

    name = "simplear"
    # generate.py; its top-k of 64000 is every code.
    defaults = Defaults(guidance_scale=6.0, temperature=1.0, top_k=None, top_p=None)
    side = 64

    @classmethod
    def load(cls, path: str, dtype: torch.dtype, image_tokenizer: str | None) -> "SimpleAR":
        """Read a checkpoint folder or hub name.

        Args:
            path: the language model.
            dtype: of the language model; the image tokenizer is in float32.
            image_tokenizer: a folder with ``encoder.jit`` and ``decoder.jit``, or a hub name.

        Raises:
            UserError: another family, plain Qwen2, or no image tokenizer or another one.
            CheckpointError: a file is missing or damaged, or a weight is missing.
        """
        if image_tokenizer is None:
            raise UserError(
                "a SimpleAR checkpoint holds no image tokenizer. Set model.image_tokenizer to "
                f"{COSMOS}, or to a folder with its {' and '.join(FILES)}."
            )
        expect_family(path, "qwen2")
        refuse_without_tokenizer(path)
        with reading_checkpoint():
            config = Qwen2Config.from_pretrained(path)
            tokenizer = AutoTokenizer.from_pretrained(path)
        config.attention_dropout = 0.0
        refuse_plain_model(path, config, tokenizer, [T2I, SOI], "Daniel0724/SimpleAR-0.5B-SFT")
        refuse_split_tokens(tokenizer, (T2I, SOI))
        vq = read_cosmos(image_tokenizer)
        refuse_other_vocabulary(path, config, tokenizer, vq.codebook_size)
        module, _ = load_module(Qwen2ForCausalLM, path, config, dtype)
        return cls(module, tokenizer, vq, vq.codebook_size, read_small_files(path))

    @property
    def pixels_per_code(self) -> int:
        return PIXELS_PER_CODE

    def prompt_ids(self, prompts: Sequence[str], grid: Grid) -> list[list[int]]:
        return self.ids_around(T2I, prompts, SOI)

    def unconditional_ids(
        self, conditional: list[int], grid: Grid, negative_prompt: str = ""
    ) -> list[int]:
        return self.prompt_ids([negative_prompt], grid)[0]

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        # Qwen has no BOS; between its documents it was trained with this one.
        return self.ids_around("<|endoftext|>", texts)

    def chat_template(self, grid: Grid) -> str | None:
        return joined(literal(T2I), PROMPT, literal(SOI))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        codes = self._vq.encode((pixels.float() / 255 - 0.5) / 0.5)  # ToTensor and Normalize
        return codes.flatten(1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor:
        images = self._vq.decode(codes.view(-1, *grid))
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def read_cosmos(source: str) -> CosmosTokenizer:
    """The Cosmos tokenizer in a folder or of a hub name, in float32; runs none of its code.

    Raises:
        UserError: a file is missing or damaged, or it is another tokenizer.
    """
    kind = re.search(r"[CD][IV]\d+x\d+(x\d+)?", source)
    if kind is not None and kind.group() != _KIND:
        # DV8x8x8 has the same weights' names and shapes, so only its name tells it apart.
        raise UserError(
            f"model.image_tokenizer is {source!r}, the kind {kind.group()}; allowed for simplear: "
            f"{_KIND}, such as {COSMOS}."
        )
    folder = Path(source)
    if not folder.exists() and source.count("/") == 1:
        if reads_headers_only():  # such files have no headers: taken for NVIDIA's
            with torch.device("meta"):
                return CosmosTokenizer(CosmosShape())
        try:
            folder = Path(snapshot_download(source, allow_patterns=list(FILES)))
        except Exception as error:  # the hub's client has many kinds, among them no connection
            raise UserError(
                f"model.image_tokenizer {source!r} can't be downloaded: {error}"
            ) from error
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(
                f"model.image_tokenizer {source!r} has no {name}; it must be a folder with "
                f"{' and '.join(FILES)}, such as that of {COSMOS}."
            )
    encoder, decoder = (read_torchscript(folder / name) for name in FILES)
    tokenizer = CosmosTokenizer(shape_of(encoder, source))
    tokenizer.fill(encoder | decoder, source)
    return tokenizer
