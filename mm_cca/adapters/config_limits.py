"""What no config.json may say: found before a network is built from it.

Stock classes take nearly anything, then fail without a word on the key, build until memory ends, or
run on with something else than was written.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from transformers.activations import ACT2FN

from mm_cca.adapters.checkpoint_files import CheckpointError

PARTS = (
    "text_config",
    "vision_config",
    "vq_config",
    "language_config",
    "gen_vision_config",
    "rope_parameters",
    "rope_scaling",
)
"""Keys of maps of keys."""
COUNTS = ("num_hidden_layers", "num_res_blocks")
MOST_LAYERS = 1_000
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "num_embeddings",
    "codebook_size",
    "embed_dim",
    "base_channels",
    "ch",
    "latent_channels",
    "z_channels",
    "projection_dim",
    "image_token_embed_dim",
    "num_patches",
    "model_parallel_size",
    "resolution",
)
LARGEST = 10_000_000
"""Far above any width, vocabulary or number of positions."""
MAY_BE_NULL = ("head_dim", "num_key_value_heads", "rope_parameters", "rope_scaling")
LEVELS = ("channel_multiplier", "ch_mult")
MOST_LEVELS, WIDEST_LEVEL = 16, 1_024
POSITIVE = ("rms_norm_eps", "layer_norm_eps", "rope_theta")
QUANTISED = ("quantization_config", "compression_config")
KERNELS = ("attn_implementation", "_attn_implementation")
KNOWN_KERNELS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Those that are code of torch, transformers or an installed package. Another name may be one of a
hub repository, whose code would be downloaded and run."""
AGAIN = "download or copy it again"


def refuse_unusable(config: Mapping[str, Any]) -> None:
    """Look through a config.json.

    Raises:
        CheckpointError: a size that is no whole number from 1 to a limit, heads that don't divide,
            a part that is no map, a quantisation, or an unknown attention kernel.
    """
    for place, held in _parts(config):
        _refuse_quantised(place, held)
        _refuse_kernels(place, held)
        for key in (*COUNTS, *SIZES):
            if key in held and not (held[key] is None and key in MAY_BE_NULL):
                most = MOST_LAYERS if key in COUNTS else LARGEST
                if not _is_whole(held[key], most):
                    _refuse(place, key, held[key], f"a whole number from 1 to {most}")
        for key in LEVELS:
            if key in held and not _are_levels(held[key]):
                allowed = f"1 to {MOST_LEVELS} whole numbers from 1 to {WIDEST_LEVEL}"
                _refuse(place, key, held[key], f"a list of {allowed}")
        for key in POSITIVE:
            if key in held and not _is_positive(held[key]):
                _refuse(place, key, held[key], "a number above 0")
        _refuse_names(place, held)
        _refuse_heads(place, held)


def _parts(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield place, config
    for key in PARTS:
        if key in config and not (config[key] is None and key in MAY_BE_NULL):
            if not isinstance(config[key], dict):
                _refuse(place, key, config[key], "a map of keys")
            yield from _parts(config[key], f"{place}{key}.")


def _refuse(place: str, key: str, value: object, allowed: str) -> NoReturn:
    shown = repr(value)
    shown = shown if len(shown) < 80 else f"{shown[:80]}..."
    raise CheckpointError(f"config.json: {place}{key} is {shown}; it must be {allowed}: {AGAIN}")


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _are_levels(value: object) -> bool:
    whole = isinstance(value, list) and all(_is_whole(n, WIDEST_LEVEL) for n in value)
    return whole and 1 <= len(value) <= MOST_LEVELS  # type: ignore[arg-type]


def _is_positive(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0  # type: ignore[arg-type,operator]


def _refuse_names(place: str, held: Mapping[str, Any]) -> None:
    act = held.get("hidden_act")
    silent = act is None and "hidden_activation" in held  # Gemma's older name for it
    if "hidden_act" in held and not silent and not (isinstance(act, str) and act in ACT2FN):
        _refuse(place, "hidden_act", act, f"one of {', '.join(sorted(ACT2FN))}")
    kind = held.get("model_type", "")
    if not isinstance(kind, str):
        _refuse(place, "model_type", kind, "the name of a family")


def _refuse_heads(place: str, held: Mapping[str, Any]) -> None:
    heads, groups = held.get("num_attention_heads"), held.get("num_key_value_heads")
    width = held.get("hidden_size")
    if heads is None:
        return
    if held.get("head_dim") is None and width is not None and width % heads:
        _refuse(place, "num_attention_heads", heads, f"a divisor of hidden_size, {width}")
    if groups is not None and heads % groups:
        _refuse(place, "num_key_value_heads", groups, f"a divisor of num_attention_heads, {heads}")


def _refuse_quantised(place: str, held: Mapping[str, Any]) -> None:
    for key in QUANTISED:
        if held.get(key) is not None:
            found = held[key]
            method = found.get("quant_method") if isinstance(found, dict) else found
            raise CheckpointError(
                f"config.json has {place}{key} (method {method!r}): quantised weights can't be "
                "used. Set model.path to the original weights that they were made from"
            )


def _refuse_kernels(place: str, held: Mapping[str, Any]) -> None:
    for key in KERNELS:
        kernel = held.get(key)
        if not isinstance(kernel, (str, type(None))) or kernel not in KNOWN_KERNELS:
            raise CheckpointError(
                f"config.json asks for the attention kernel {kernel!r} ({place}{key}), which is "
                f"none of {', '.join(map(repr, KNOWN_KERNELS[1:]))}: delete that key"
            )
