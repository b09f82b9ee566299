"""Names and sizes of Janus's weights in DeepSeek's layout, as those of the stock classes.

Sizes are taken from shapes, since config.json names classes (``VQ-16``,
``siglip_large_patch16_384``) in place of numbers.
"""

import pickle
import re
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import JanusConfig, LlamaConfig

from mm_cca.adapters.checkpoint_files import (
    NOT_ONLY_TENSORS,
    SINGLE,
    TORCH_SINGLE,
    read_file,
    read_index,
    refuse_without_headers,
)
from mm_cca.adapters.headers import reads_headers_only
from mm_cca.adapters.loading import SAFE_INDEX, TORCH_INDEX, CheckpointError, reading_checkpoint

Weights: TypeAlias = dict[str, torch.Tensor]

VISION_HEADS = 16
"""Of every SigLIP in DeepSeek's code; the only size that no shape tells."""

RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^language_model\.lm_head\.", r"lm_head."),
    (r"^language_model\.model\.", r"model.language_model."),
    (r"^gen_embed\.", r"model.generation_embeddings."),
    (r"^gen_head\.output_mlp_projector\.", r"model.generation_head.proj_out."),
    (r"^gen_head\.", r"model.generation_head."),
    (r"^gen_aligner\.", r"model.generation_aligner."),
    (r"^aligner\.", r"model.aligner."),
    (r"(aligner)\.layers\.0\.", r"\1.fc1."),
    (r"(aligner)\.layers\.(\d+)\.", lambda m: f"{m[1]}.hidden_layers.{int(m[2]) // 2 - 1}."),
    (r"^gen_vision_model\.", r"model.vqmodel."),
    (r"(vqmodel\.encoder)\.conv_blocks\.", r"\1.down."),
    (r"(vqmodel\.decoder)\.conv_blocks\.", r"\1.up."),
    (r"(vqmodel\..*)\.res\.", r"\1.block."),
    (r"(vqmodel\..*)\.mid\.0\.", r"\1.mid.block_1."),
    (r"(vqmodel\..*)\.mid\.1\.", r"\1.mid.attn_1."),
    (r"(vqmodel\..*)\.mid\.2\.", r"\1.mid.block_2."),
    (r"^vision_model\.vision_tower\.", r"model.vision_model."),
    (r"vision_model\.pos_embed$", r"vision_model.embeddings.position_embedding.weight"),
    (r"vision_model\.patch_embed\.proj\.", r"vision_model.embeddings.patch_embedding."),
    (r"vision_model\.norm\.", r"vision_model.post_layernorm."),
    (r"vision_model\.blocks\.", r"vision_model.encoder.layers."),
    (r"(vision_model\.encoder\.layers\.\d+)\.norm", r"\1.layer_norm"),
    (r"(vision_model\.encoder\.layers\.\d+)\.attn\.proj\.", r"\1.self_attn.projection_layer."),
    (r"(vision_model\.encoder\.layers\.\d+)\.attn\.", r"\1.self_attn."),
]
"""Applied one after the other to every name."""
UNUSED = re.compile(r"\.attn_pool\.|\.codebook_used$")
"""Weights that DeepSeek's own forward never reads either."""


_TEXT_KEYS = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "attention_bias",
    "mlp_bias",
}
"""Keys of ``language_config`` that say something of the decoder."""


def stock_weights(stored: Weights) -> Weights:
    """Weights by DeepSeek's names -> by those of ``JanusForConditionalGeneration``."""
    weights: Weights = {}
    for stored_name, value in stored.items():
        if UNUSED.search(stored_name):
            continue
        name = _stock_name(stored_name)
        if ".qkv." in name:
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                weights[name.replace(".qkv.", f".{part}_proj.")] = chunk
        elif name.endswith("position_embedding.weight"):
            weights[name] = value.squeeze(0)
        else:
            weights[name] = value
    return weights


def _stock_name(name: str) -> str:
    for old, new in RENAMES:
        name = re.sub(old, new, name)
    return name


def stored_weights(folder: Path) -> Weights:
    """All weights of a local folder by their stored names, from safetensors where it has them."""
    refuse_without_headers(str(folder))
    for index, single in ((SAFE_INDEX, SINGLE), (TORCH_INDEX, TORCH_SINGLE)):
        files = [single]
        if (folder / index).exists():
            files = sorted(set(read_index(folder / index).values()))
        if (folder / files[0]).exists():
            weights: Weights = {}
            for file in files:
                weights |= _read(folder / file)
            return weights
    raise CheckpointError(
        f"it holds neither {SINGLE} nor {TORCH_SINGLE} (or an index): download the folder again"
    )


def _read(file: Path) -> Weights:
    if file.suffix == ".safetensors":
        return read_file(file)
    place, mapped = ("meta", False) if reads_headers_only() else ("cpu", True)
    try:
        loaded: Weights = torch.load(file, map_location=place, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(NOT_ONLY_TENSORS.format(file.name)) from error
    except Exception as error:  # torch raises nearly anything for a damaged file
        raise CheckpointError(
            f"{file.name} is damaged ({type(error).__name__}: {error}): download it again"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(x, torch.Tensor) for x in loaded.values()
    ):
        raise CheckpointError(f"{file.name} holds something else than weights: download it again")
    return loaded


def config_of(stored: dict[str, Any], weights: Weights, tokenizer: Any) -> JanusConfig:
    """The stock config, from DeepSeek's and from the shapes of weights with stock names.

    Raises:
        CheckpointError: a weight that says a size is missing, or ``language_config`` is damaged.
    """

    def size(name: str, axis: int = 0) -> int:
        if name not in weights:
            raise CheckpointError(f"it lacks the weight that DeepSeek's layout has as {name}")
        return int(weights[name].shape[axis])

    def count(start: str) -> int:
        found = re.compile(re.escape(start) + r"\.(\d+)\.")
        return len({m[1] for m in map(found.match, weights) if m})

    vision, vq = "model.vision_model", "model.vqmodel"
    patch = size(f"{vision}.embeddings.patch_embedding.weight", -1)
    positions = size(f"{vision}.embeddings.position_embedding.weight")
    width = size(f"{vision}.embeddings.position_embedding.weight", 1)
    base, levels = size(f"{vq}.encoder.conv_in.weight"), count(f"{vq}.encoder.down")
    with reading_checkpoint():
        text = LlamaConfig(
            **{n: x for n, x in stored["language_config"].items() if n in _TEXT_KEYS},
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    return JanusConfig(
        text_config=text.to_dict(),
        vision_config={
            "hidden_size": width,
            "num_hidden_layers": count(f"{vision}.encoder.layers"),
            "num_attention_heads": VISION_HEADS,
            "mlp_ratio": size(f"{vision}.encoder.layers.0.mlp.fc1.weight") / width,
            "image_size": patch * isqrt(positions),
            "patch_size": patch,
            "num_image_tokens": positions,
            "projection_dim": size("model.aligner.fc1.weight"),
            "depth": 1 + count("model.aligner.hidden_layers"),
        },
        vq_config={
            "embed_dim": size(f"{vq}.quantize.embedding.weight", 1),
            "num_embeddings": size(f"{vq}.quantize.embedding.weight"),
            "latent_channels": size(f"{vq}.encoder.conv_out.weight"),
            "base_channels": base,
            "channel_multiplier": [
                size(f"{vq}.encoder.down.{level}.block.0.conv1.weight") // base
                for level in range(levels)
            ],
            "num_res_blocks": count(f"{vq}.encoder.down.0.block"),
            "projection_dim": size("model.generation_head.proj_out.weight"),
            "image_token_embed_dim": size("model.generation_head.proj_out.weight", 1),
            "num_hidden_layers": 1 + count("model.generation_aligner.hidden_layers"),
        },
        image_token_id=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        tie_word_embeddings="lm_head.weight" not in weights,
    )
