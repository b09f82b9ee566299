"""Assemble a small ``Emu3ForConditionalGeneration`` in the layout of the real checkpoints.

All classes are those of transformers; only the sizes are small. The token names are those of Emu3's
own tokenizer, because ``Emu3Processor`` and ``Emu3ImageVocabularyMapping`` look them up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    Emu3TextConfig,
    Emu3VQVAE,
    PreTrainedTokenizerFast,
)

NAMED_TOKENS = {
    "bos_token": "<|extra_203|>",
    "eos_token": "<|extra_204|>",
    "pad_token": "<|endoftext|>",
    "image_token": "<image>",
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
}
EOL_TOKEN = "<|extra_200|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: "
    "{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of the text-and-image decoder."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int = 512


def code_token(code: int) -> str:
    """The name of an image code in the vocabulary, as Emu3 spells it."""
    return f"<|visual token {code:06d}|>"


def bpe(texts: Iterable[str], vocab_size: int, special_tokens: list[str]) -> Tokenizer:
    """A byte-level BPE of at most ``vocab_size`` entries learned from ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_tokenizer(texts: Iterable[str], vocab_size: int, codes: int) -> PreTrainedTokenizerFast:
    """A tokenizer with Emu3's special tokens and ``codes`` image tokens after ``vocab_size``.

    Text is tokenised by byte-level BPE, so no prompt is ever out of vocabulary: what the captions
    do not contain becomes single bytes.
    """
    backend = bpe(texts, vocab_size, [*NAMED_TOKENS.values(), EOL_TOKEN])
    backend.add_special_tokens([code_token(code) for code in range(codes)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **NAMED_TOKENS,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast, image_size: int, spatial_factor: int
) -> Emu3Processor:
    """An ``Emu3Processor`` for square images of ``image_size`` pixels."""
    image_processor = Emu3ImageProcessor(
        min_pixels=image_size**2,
        max_pixels=image_size**2,
        spatial_factor=spatial_factor,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return Emu3Processor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)


def assemble(
    vq: Emu3VQVAE, tokenizer: PreTrainedTokenizerFast, shape: DecoderShape, seed: int
) -> Emu3ForConditionalGeneration:
    """A model with random decoder weights around an already trained ``vq``."""
    torch.manual_seed(seed)
    text = Emu3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.max_positions,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vq_config = vq.config.to_dict()
    vq_config.pop("_name_or_path", None)  # a path on the machine that trained it
    config = Emu3Config(
        vq_config=vq_config,
        text_config=text.to_dict(),
        vocabulary_map=tokenizer.get_vocab(),
    )
    model = Emu3ForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(vq.state_dict())
    return model


def save(
    model: Emu3ForConditionalGeneration, processor: Emu3Processor, folder: Path, dtype: torch.dtype
) -> None:
    """Write weights, configs and tokenizer files as ``from_pretrained`` reads them."""
    model.to(dtype=dtype).save_pretrained(folder)  # type: ignore[call-arg]
    processor.save_pretrained(folder)
