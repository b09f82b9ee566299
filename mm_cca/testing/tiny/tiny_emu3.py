"""A tiny Emu3-Gen."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Emu3VQVAE,
    Emu3VQVAEConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from mm_cca.adapters.emu3_tokenizer import RESERVED, emu3_words
from mm_cca.demo import small_emu3
from mm_cca.testing.tiny.shards import old_merges, write_json, write_shards
from mm_cca.testing.tiny.sizes import (
    CAPTIONS,
    CODEBOOK_SIZE,
    TEXT_VOCABULARY,
    Layout,
    hidden_size,
    spread,
)

HUB_CAPTIONS = [
    *CAPTIONS,
    *["a blue-eyed owl", "a red-eyed owl's café", "a 35mm photo\n\nof a café (noto-style)"] * 3,
]
"""What the hub's tokenizer is learned from: hyphens, digits and accents, where GPT-2's words and
Emu3's are not the same."""
BRACKETS = ["<|image token|>", "<|image start|>", "<|image end|>"]


def write_emu3(folder: Path, side: int, layout: Layout, head_size: int | None) -> None:
    hub = layout == "hub"
    vq = Emu3VQVAE(
        Emu3VQVAEConfig(
            codebook_size=CODEBOOK_SIZE,
            embed_dim=4,
            latent_channels=4,
            temporal_downsample_factor=4 if hub else 1,
            base_channels=32,
            channel_multiplier=[1, 1, 2, 2],
            num_res_blocks=1,
            attn_resolutions=[],
            hidden_size=64,
        )
    )
    if hub:
        _write_hub_tokenizer(folder)
        words = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        words = small_emu3.build_tokenizer(CAPTIONS, TEXT_VOCABULARY, CODEBOOK_SIZE)
    positions = side * (side + 1) + 256
    width = hidden_size(2, head_size)
    shape = small_emu3.DecoderShape(width, 2 * width, 2, 2, positions)
    model = small_emu3.assemble(vq, words, shape, seed=int(torch.initial_seed()))
    spread(model.model.text_model, model.lm_head)
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=2048,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        guidance_scale=3.0,
        max_new_tokens=50_000 if hub else None,
    )
    processor = small_emu3.build_processor(words, 8 * side, 8)
    if not hub:
        small_emu3.save(model, processor, folder, torch.float32)
        return
    model.generation_config.save_pretrained(folder)
    write_shards(folder, {_old_name(n): x for n, x in model.state_dict().items()})
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_json(
        folder / "config.json",
        {
            "architectures": ["Emu3ForConditionalGeneration"],
            "image_token_id": vocabulary["vocab"]["<image>"],
            "model_type": "emu3",
            "text_config": _old_text_config(model.model.text_model.config.to_dict()),
            "torch_dtype": "float32",
            "transformers_version": "4.48.0.dev0",
            "vocabulary_map": vocabulary["vocab"],
            "vq_config": vq.config.to_diff_dict()
            | {"model_type": "emu3_vqgan", "temporal_downsample_factor": 4},
        },
    )
    pixels = (8 * side) ** 2
    write_json(
        folder / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Emu3ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_pixels": pixels,
            "min_pixels": pixels,
            "processor_class": "Emu3Processor",
            "resample": 3,
            "rescale_factor": 1 / 255,
            "spatial_factor": 8,
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": small_emu3.CHAT_TEMPLATE})


def _old_name(name: str) -> str:
    """As transformers 4.48 called a weight, when the hub's folders were converted."""
    if name.startswith("lm_head."):
        return f"text_model.{name}"
    name = name.removeprefix("model.")
    if name.startswith("text_model."):
        return name.replace("text_model.", "text_model.model.", 1)
    return name


OLD_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def _old_text_config(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in OLD_TEXT_KEYS} | {
        "attention_dropout": 0.1,
        "hidden_act": "silu",
        "mlp_bias": False,
        "model_type": "emu3_text_model",
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"rope_type": "default"},
        "rope_theta": 1000000.0,
    }


def _write_hub_tokenizer(folder: Path) -> None:
    """Learned with Emu3's own words, but stored as the conversion did: GPT-2's words, no NFC."""
    learned = _emu3_words(HUB_CAPTIONS, TEXT_VOCABULARY)
    names = [RESERVED[0], *RESERVED[1:3], "<image>", *RESERVED[3:], *BRACKETS]
    names += [small_emu3.code_token(code) for code in range(CODEBOOK_SIZE)]
    added = {name: len(learned["vocab"]) + place for place, name in enumerate(names)}
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    vocabulary = learned["vocab"] | added
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": place, "content": name, **flags, "special": True}
                for name, place in added.items()
            ],
            "normalizer": None,
            "pre_tokenizer": words | {"use_regex": True},
            "post_processor": None,
            "decoder": words | {"add_prefix_space": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": old_merges(learned["merges"]),
            },
        },
    )
    named = {n: t for n, t in small_emu3.NAMED_TOKENS.items() if n[:3] not in ("bos", "eos", "pad")}
    plain = {n: t for n, t in small_emu3.NAMED_TOKENS.items() if n not in named}
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *old_merges(learned["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write_json(folder / "special_tokens_map.json", plain | named)
    write_json(
        folder / "tokenizer_config.json",
        plain
        | named
        | {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(place): {"content": name, **flags, "special": True}
                for name, place in added.items()
            },
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": named,
            "model_max_length": 10**30,
            "padding_side": "left",
            "processor_class": "Emu3Processor",
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": "<|endoftext|>",
        },
    )


def _emu3_words(texts: list[str], size: int) -> dict[str, Any]:
    """``vocab`` and ``merges`` of byte pairs within Emu3's words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = emu3_words()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    learned: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return learned
