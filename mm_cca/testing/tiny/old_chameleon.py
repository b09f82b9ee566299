"""The files that transformers 4.43 wrote for Chameleon, in which the hub still has them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import ChameleonConfig, PreTrainedTokenizerFast

WRITTEN_BY = "4.43.3"
TAMING = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "double_z": "double_latent",
    "n_embed": "num_embeddings",
    "z_channels": "latent_channels",
}
"""Names of Meta's vqgan.yaml, which the conversion leaves in vq_config beside transformers' own."""
VQ_KEYS = ("embed_dim", "resolution", "num_res_blocks", *TAMING.values())
CONFIG_KEYS = (
    "attention_bias",
    "attention_dropout",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "model_parallel_size",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "swin_norm",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
    "vocabulary_map",
)
LUMINA_KEYS = ("dropout", "mask_image_logits", "z_loss_weight")
"""Only Lumina-mGPT's classes write these."""


def write_old_configs(folder: Path, config: ChameleonConfig, *, architecture: str) -> None:
    """config.json and generation_config.json, with the names that have changed since.

    The conversion does not set the special tokens, so they are the class's defaults of then: BOS is
    the id of ``<pad>``, and there is no padding.
    """
    values = config.to_dict()
    kept = {key: values[key] for key in (*CONFIG_KEYS, *LUMINA_KEYS) if key in values}
    vq = {key: values["vq_config"][key] for key in VQ_KEYS}
    old = {name: vq[now] for name, now in TAMING.items()}
    fixed = {"attn_resolutions": [], "model_type": "chameleon_vqgan", "out_ch": 3}
    _write(
        folder / "config.json",
        kept
        | {"architectures": [architecture], "bos_token_id": 1, "eos_token_id": 2}
        | {"rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16"}
        | {"transformers_version": WRITTEN_BY}
        | {"vq_config": vq | old | fixed | {"out_channels": 3}},
    )
    _write(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
        | {"transformers_version": WRITTEN_BY},
    )


def write_old_tokenizer(folder: Path, words: PreTrainedTokenizerFast) -> None:
    """``LlamaTokenizerFast`` by name, but with Chameleon's own splitting in tokenizer.json."""
    words.backend_tokenizer.save(str(folder / "tokenizer.json"))
    special: dict[str, object] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "sep_token": "<reserved08706>",
        "unk_token": "<unk>",
    }
    _write(folder / "special_tokens_map.json", special)
    _write(
        folder / "tokenizer_config.json",
        special
        | {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": 10**30,
            "processor_class": "ChameleonProcessor",
            "tokenizer_class": "LlamaTokenizer",
            "use_default_system_prompt": False,
        },
    )


def write_old_processor(folder: Path, side: int) -> None:
    """Two files, and the rounded scale 0.0078 for 1/127.5."""
    pixels = 16 * side
    _write(
        folder / "preprocessor_config.json",
        {
            "crop_size": {"height": pixels, "width": pixels},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [1.0, 1.0, 1.0],
            "image_processor_type": "ChameleonImageProcessor",
            "image_std": [1.0, 1.0, 1.0],
            "processor_class": "ChameleonProcessor",
            "resample": 1,
            "rescale_factor": 0.0078,
            "size": {"shortest_edge": pixels},
        },
    )
    _write(
        folder / "processor_config.json",
        {"image_seq_length": side * side, "image_token": "<image>"}
        | {"processor_class": "ChameleonProcessor"},
    )


def write_shards(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Two safetensors files of about the same size and their index."""
    total = sum(weight.nbytes for weight in weights.values())
    parts: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    places, size = {}, 0
    for name, weight in weights.items():
        number = int(size > total / 2)
        parts[number][name] = weight.contiguous()
        places[name] = _shard(number)
        size += weight.nbytes
    for number, part in enumerate(parts):
        save_file(part, folder / _shard(number), metadata={"format": "pt"})
    _write(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": places},
    )


def _shard(number: int) -> str:
    return f"model-{number + 1:05d}-of-00002.safetensors"


def _write(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
