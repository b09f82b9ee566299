"""A tiny Janus-Pro."""

from pathlib import Path

from tokenizers import processors
from torch import nn
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from mm_cca.demo.small_emu3 import bpe
from mm_cca.testing.tiny.sizes import (
    CAPTIONS,
    CODEBOOK_SIZE,
    HIDDEN,
    TEXT_VOCABULARY,
    Layout,
    spread,
    use_many_codes,
)


def write_janus(folder: Path, side: int, layout: Layout) -> None:
    tokenizer = janus_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=side * side + 256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = JanusVisionConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16 * side,
        patch_size=16,
        projection_dim=HIDDEN,
        num_image_tokens=side * side,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODEBOOK_SIZE,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        projection_dim=HIDDEN,
        image_token_embed_dim=HIDDEN,
    )
    config = JanusConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        vq_config=vq.to_dict(),
        image_token_id=tokenizer.get_vocab()["<image_placeholder>"],
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config)
    inner = model.model
    spread(inner.language_model, inner.generation_aligner, inner.generation_head)
    nn.init.normal_(inner.generation_embeddings.weight, std=1.0)
    use_many_codes(inner.vqmodel)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        guidance_scale=5.0,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")},
    )
    model.save_pretrained(folder)
    pictures = JanusImageProcessor(size={"height": 16 * side, "width": 16 * side})
    JanusProcessor(
        pictures, tokenizer, chat_template=JANUS_TEMPLATE, num_image_tokens=side * side
    ).save_pretrained(folder)


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
