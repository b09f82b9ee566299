"""Emu3's text tokenizer as its authors wrote it, made of what the hub's converted folders hold.

The conversion to transformers kept the vocabulary of https://github.com/baaivision/Emu3
(emu3/mllm/tokenization_emu3.py) but gave it GPT-2's way of cutting text into words, and dropped the
normalisation to NFC. "a blue-eyed owl" then gets ids that Emu3 never saw in training.
"""

import json
import logging
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of words before byte pairs are merged: Qwen's, which Emu3's vocabulary is from."""

EXTRAS = [f"<|extra_{number}|>" for number in range(1, 205)]
"""The conversion gave the place of ``<|extra_0|>`` to ``<image>``."""
RESERVED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *EXTRAS]
"""Only Emu3's own vocabulary reserves all of these; that of ``emu3-emoji`` has five of them."""


def with_emu3_words(tokenizer: Any, path: str) -> Any:
    """The tokenizer itself if it is right or not Emu3's, else one that cuts text as Emu3 does.

    The result is a class that is saved and loaded with its own words; ``GPT2Tokenizer``, which the
    hub's folder names, would replace them by GPT-2's again. What was repaired is logged once.
    """
    vocabulary = tokenizer.get_vocab()
    if not all(name in vocabulary for name in RESERVED):
        return tokenizer
    backend: Tokenizer = tokenizer.backend_tokenizer
    wrong = _differences(backend)
    if not wrong:
        return tokenizer
    _warn(path, " and ".join(wrong))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = emu3_words()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def emu3_words() -> pre_tokenizers.PreTokenizer:
    """How Emu3 cuts text into words of bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _differences(backend: Tokenizer) -> list[str]:
    wrong = []
    if backend.pre_tokenizer is None or _state(backend.pre_tokenizer) != _state(emu3_words()):
        wrong.append("the split into words (GPT-2's in place of Qwen's)")
    if not isinstance(backend.normalizer, normalizers.NFC):
        wrong.append("the normalisation to NFC (absent)")
    return wrong


def _state(words: pre_tokenizers.PreTokenizer) -> dict[str, Any]:
    """As tokenizer.json holds it."""
    blank = Tokenizer(models.BPE())
    blank.pre_tokenizer = words
    state: dict[str, Any] = json.loads(blank.to_str())["pre_tokenizer"]
    return state


@cache
def _warn(path: str, wrong: str) -> None:
    log.warning(
        "%s: its tokenizer has Emu3's vocabulary; repaired %s. Prompts now get the ids of Emu3's "
        "own tokenizer, and folders saved by mm-cca hold the repaired one.",
        path,
        wrong,
    )
