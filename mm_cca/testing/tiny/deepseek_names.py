"""Janus's weights and config as DeepSeek's own code writes them, for the tiny checkpoint."""

import re
from typing import Any

import torch
from transformers import JanusConfig

RENAMES = [
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.", "gen_head."),
    (r"^model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"^model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"^model\.aligner\.fc1\.", "aligner.layers.0."),
    (r"^model\.aligner\.hidden_layers\.0\.", "aligner.layers.2."),
    (r"^model\.vqmodel\.encoder\.down\.", "gen_vision_model.encoder.conv_blocks."),
    (r"^model\.vqmodel\.decoder\.up\.", "gen_vision_model.decoder.conv_blocks."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
    (r"^(gen_vision_model.*)\.block\.", r"\1.res."),
    (r"^(gen_vision_model.*)\.mid\.block_1\.", r"\1.mid.0."),
    (r"^(gen_vision_model.*)\.mid\.attn_1\.", r"\1.mid.1."),
    (r"^(gen_vision_model.*)\.mid\.block_2\.", r"\1.mid.2."),
    (r"^model\.vision_model\.embeddings\.position_embedding\.weight$", "vision.pos_embed"),
    (r"^model\.vision_model\.embeddings\.patch_embedding\.", "vision.patch_embed.proj."),
    (r"^model\.vision_model\.post_layernorm\.", "vision.norm."),
    (r"^model\.vision_model\.encoder\.layers\.", "vision.blocks."),
    (r"^(vision\.blocks\.\d+)\.layer_norm", r"\1.norm"),
    (r"^(vision\.blocks\.\d+)\.self_attn\.projection_layer\.", r"\1.attn.proj."),
    (r"^(vision\.blocks\.\d+)\.self_attn\.", r"\1.attn."),
    (r"^vision\.", "vision_model.vision_tower."),
]

LANGUAGE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)


def deepseek_weights(stock: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the weights that only DeepSeek's folders hold: those its forward never reads."""
    weights: dict[str, torch.Tensor] = {}
    for stock_name, value in stock.items():
        name = _deepseek_name(stock_name)
        weights[name] = value[None] if name.endswith("pos_embed") else value.clone()
    for name in [name for name in weights if ".q_proj." in name and name.startswith("vision")]:
        parts = [weights.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        weights[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    width = weights["vision_model.vision_tower.pos_embed"].shape[-1]
    weights["vision_model.vision_tower.attn_pool.latent"] = torch.zeros(1, 1, width)
    weights["gen_vision_model.quantize.codebook_used"] = torch.zeros(65536)
    return weights


def _deepseek_name(name: str) -> str:
    for old, new in RENAMES:
        name = re.sub(old, new, name)
    return name


def deepseek_config(config: JanusConfig) -> dict[str, Any]:
    text: Any = config.text_config
    vq: Any = config.vq_config
    vision: Any = config.vision_config
    hidden = text.hidden_size

    def part(kind: str, cls: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"cls": cls, "model_type": kind, "params": params}

    mlp = {"depth": 2, "n_embed": hidden, "projector_type": "mlp_gelu"}
    tower = {"image_size": vision.image_size, "model_name": "siglip_large_patch16_384"}
    codes = {"image_token_size": vq.num_embeddings}
    return {
        "aligner_config": part("aligner", "MlpProjector", mlp | {"input_dim": vision.hidden_size}),
        "architectures": ["MultiModalityCausalLM"],
        "gen_aligner_config": part(
            "gen_aligner", "MlpProjector", mlp | {"input_dim": vq.embed_dim}
        ),
        "gen_head_config": part(
            "gen_head", "vision_head", codes | {"image_token_embed": hidden, "n_embed": hidden}
        ),
        "gen_vision_config": part("gen_vision", "VQ-16", codes | {"n_embed": vq.embed_dim}),
        "language_config": {name: getattr(text, name) for name in LANGUAGE_KEYS}
        | {"model_type": "llama", "torch_dtype": "bfloat16", "_attn_implementation": "sdpa"},
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "vision_config": part(
            "vision",
            "CLIPVisionTower",
            tower | {"select_feature": "same", "select_layer": -1},
        ),
    }
