"""Tokenizers of the tiny checkpoints: the families' real special tokens over a small vocabulary."""

from itertools import product

import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from mm_cca.demo.small_emu3 import bpe

CAPTIONS = [
    f"{adjective} {thing}, {style} style"
    for adjective, thing, style in product(
        ("red", "green", "small", "smiling"),
        ("owl", "waving hand", "grinning face with big eyes"),
        ("noto", "twemoji"),
    )
]
TEXT_VOCABULARY = 320
CODEBOOK_SIZE = 64


def chameleon_tokenizer() -> PreTrainedTokenizerFast:
    """Chameleon's special tokens and image tokens by their real names, codes in permuted order."""
    order = torch.randperm(CODEBOOK_SIZE, generator=torch.Generator().manual_seed(0)).tolist()
    reserved = [8706, *range(8799, 8930)]
    names = [
        *("<s>", "<pad>", "</s>", "<unk>"),
        *(_image_token(code) for code in order),
        *("<eoss>", "<racm3:break>", "<image>"),
        *(f"<reserved{number:05d}>" for number in reserved),
    ]
    backend = bpe(CAPTIONS, TEXT_VOCABULARY + len(names), names)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token="<reserved08706>",
        image_token="<image>",
        boi_token="<racm3:break>",
        eoi_token="<eoss>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _image_token(code: int) -> str:
    """``IMGIMG``, the code's digits as letters A to J, ``Z``."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


JANUS_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|User|>: {% else %}"
    "<|Assistant|>: {% endif %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<image_placeholder>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'user' %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)
"""Gives the same result as the template on the hub for one turn of text."""


def janus_tokenizer() -> PreTrainedTokenizerFast:
    """Janus's special tokens by their real names over a small byte-level BPE."""
    named = {
        "bos_token": "<｜begin▁of▁sentence｜>",
        "eos_token": "<｜end▁of▁sentence｜>",
        "pad_token": "<｜▁pad▁｜>",
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    backend = bpe(CAPTIONS, TEXT_VOCABULARY, list(named.values()))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{named['bos_token']} $A", special_tokens=[(named["bos_token"], 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
