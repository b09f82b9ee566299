"""A tiny Janus-Pro, in transformers' layout or DeepSeek's."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, decoders, pre_tokenizers, processors
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

from mm_cca.adapters.janus_deepseek import NAMED_TOKENS, PRO_ROLES, janus_template
from mm_cca.demo.small_emu3 import bpe
from mm_cca.testing.tiny.deepseek_names import deepseek_config, deepseek_weights
from mm_cca.testing.tiny.shards import old_merges, write_json, write_shards
from mm_cca.testing.tiny.sizes import (
    CAPTIONS,
    CODEBOOK_SIZE,
    TEXT_VOCABULARY,
    Layout,
    hidden_size,
    spread,
    use_many_codes,
)

VISION_WIDTH = 64
"""16 heads of 4."""


def write_janus(folder: Path, side: int, layout: Layout, head_size: int | None) -> None:
    tokenizer = janus_tokenizer(roles=layout != "transformers")
    model = _model(tokenizer, side, hidden_size(2, head_size))
    if layout == "transformers":
        model.save_pretrained(folder)
        size = {"height": 16 * side, "width": 16 * side}
        JanusProcessor(
            JanusImageProcessor(size=size),  # with CLIP's mean, which must not reach the VQ
            tokenizer,
            chat_template=janus_template(PRO_ROLES),
            num_image_tokens=side * side,
        ).save_pretrained(folder)
        return
    _write_hub_tokenizer(folder, tokenizer, bos_by_flag=layout == "deepseek")
    stored = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    pictures: dict[str, Any] = {
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "min_size": 14,
        "rescale_factor": 1 / 255,
    }
    if layout == "deepseek":
        write_json(folder / "config.json", deepseek_config(model.config))
        torch.save(deepseek_weights(stored), folder / "pytorch_model.bin")
        own = {"processor_class": "VLChatProcessor", "sft_format": "deepseek"}
        write_json(
            folder / "processor_config.json",
            own
            | {
                "add_special_token": False,
                "ignore_id": -100,
                "image_tag": "<image_placeholder>",
                "mask_prompt": True,
                "num_image_tokens": side * side,
            },
        )
        kind = {"image_processor_type": "VLMImageProcessor", "processor_class": "VLChatProcessor"}
        shape = {"image_size": 16 * side, "background_color": [127, 127, 127]}
        write_json(folder / "preprocessor_config.json", pictures | kind | shape)
        return
    write_shards(folder, stored)
    model.generation_config.save_pretrained(folder)
    config = model.config.to_dict()
    for part in ("text_config", "vision_config", "vq_config"):
        config[part] = {
            n: x for n, x in config[part].items() if n not in ("dtype", "_name_or_path")
        }
    del config["tie_word_embeddings"], config["dtype"]  # as transformers 4.52 left them out
    write_json(folder / "config.json", config | {"torch_dtype": "bfloat16"})
    kind = {"image_processor_type": "JanusImageProcessor", "processor_class": "JanusProcessor"}
    square = {"size": {"height": 16 * side, "width": 16 * side}}
    steps = {"do_resize": True, "resample": 3, "do_rescale": True}
    write_json(folder / "preprocessor_config.json", pictures | kind | square | steps)
    write_json(
        folder / "processor_config.json",
        {
            "num_image_tokens": side * side,
            "processor_class": "JanusProcessor",
            "use_default_system_prompt": True,
        },
    )
    (folder / "chat_template.jinja").write_text(janus_template(PRO_ROLES), encoding="utf-8")


def _model(
    tokenizer: PreTrainedTokenizerFast, side: int, hidden: int
) -> JanusForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=side * side + 256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = JanusVisionConfig(
        hidden_size=VISION_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=16,
        image_size=16 * side,
        patch_size=16,
        projection_dim=hidden,
        num_image_tokens=side * side,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODEBOOK_SIZE,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        projection_dim=hidden,
        image_token_embed_dim=hidden,
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
    return model


def janus_tokenizer(*, roles: bool = True) -> PreTrainedTokenizerFast:
    """Janus's special tokens by their real names over a small byte-level BPE.

    Args:
        roles: with Janus-Pro's ``<|User|>`` and ``<|Assistant|>`` as tokens of their own.
    """
    special = [*NAMED_TOKENS.values(), *(PRO_ROLES if roles else ())]
    backend = bpe(CAPTIONS, TEXT_VOCABULARY, special)
    bos = NAMED_TOKENS["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **NAMED_TOKENS,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _write_hub_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, bos_by_flag: bool
) -> None:
    """A byte-level BPE under the name of Llama's class, which in DeepSeek's folder adds BOS."""
    backend = tokenizer.backend_tokenizer
    words = pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated")
    digits = pre_tokenizers.Digits(individual_digits=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, digits, level])
    if bos_by_flag:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    state = json.loads(backend.to_str())
    state["model"]["merges"] = old_merges(state["model"]["merges"])
    write_json(folder / "tokenizer.json", state)
    named = {n: NAMED_TOKENS[n] for n in ("bos_token", "eos_token", "pad_token")}
    others = [t["content"] for t in state["added_tokens"] if t["content"] not in named.values()]
    write_json(folder / "special_tokens_map.json", named | {"additional_special_tokens": others})
    write_json(
        folder / "tokenizer_config.json",
        named
        | {n: t for n, t in NAMED_TOKENS.items() if n not in named}
        | {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                str(token["id"]): {n: x for n, x in token.items() if n != "id"}
                for token in state["added_tokens"]
            },
            "additional_special_tokens": others,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": 16384,
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizerFast",
            "unk_token": None,
            "use_default_system_prompt": False,
        },
    )
