"""config.json as a stranger may write it."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.hostile_case import Damage, Hostile, read, write

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
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
    "num_res_blocks",
    "num_patches",
    "projection_dim",
    "image_token_embed_dim",
)
"""Whole numbers that decide the shape of a network."""
NOT_A_SIZE = ("32", "abc", -1, 0, 1.5, None, [], {}, True, 10**9, 10**30, math.nan)
OTHERS = {
    "channel_multiplier": ([], [0], ["1"], None, 2, [-1, 1], [1] * 60, [10**9]),
    "ch_mult": ([], [0], ["1"], None, 2, [-1, 1], [1] * 60, [10**9]),
    "rms_norm_eps": ("x", None, math.nan, -1.0),
    "rope_theta": ("x", 0, -1, math.nan, 1e400),
    "rope_parameters": (None, 5, {}, {"rope_type": "none-such"}, {"rope_theta": "x"}),
    "rope_scaling": (5, {"type": "none-such"}),
    "hidden_act": ("none-such", None, 5, []),
    "model_type": (None, "", 5, [], "no-such-model", "gpt2"),
    "text_config": (None, [], "x", 5, {}),
    "vq_config": (None, [], "x", 5, {}),
    "vision_config": (None, [], "x", 5, {}),
    "language_config": (None, [], "x", 5, {}),
    "gen_vision_config": (None, [], "x", 5),
    "vocabulary_map": (None, [], "x", 5, {}, {"<image>": "x"}),
    "tie_word_embeddings": ("x", None),
    "architectures": (5, "x", [None]),
    "torch_dtype": ("float99", 5),
    "model_parallel_size": ("x", 0, -1, 3, 10**9),
    "attn_resolutions": ("x", [0], [10**9]),
    "resolution": ("x", 0, -1, 10**9),
    "attn_type": ("none-such", 5),
}


def configs(folder: Path) -> Iterator[Hostile]:
    config = read(folder / "config.json")
    places = [("", config), *((k, v) for k, v in config.items() if isinstance(v, dict))]
    for place, held in places:
        for key in held:
            values = NOT_A_SIZE if key in SIZES else OTHERS.get(key, ())
            for value in values:
                yield Hostile(
                    f"config {place}.{key}={value!r}"[:90], _set(place, key, value), False
                )
    for place in ("", "text_config"):
        if place and not isinstance(config.get(place), dict):
            continue
        for kernel in ("none-such", "flash_attention_9", "someone/kernels", 5):
            for key in ("_attn_implementation", "attn_implementation"):
                # Not read from a part's config by every class, and then of no consequence.
                yield Hostile(
                    f"attention {place}.{key}={kernel!r}", _set(place, key, kernel), False
                )
        for number, method in enumerate(QUANTISED):
            name = f"quantised {place} {number}"
            yield Hostile(name, _set(place, "quantization_config", method), place == "")
    yield Hostile("config code of a stranger", _auto_map, False)
    yield Hostile("config a hidden_size that heads do not divide", _odd_heads)
    yield Hostile("config deep", _deep)
    if isinstance(config.get("vocabulary_map"), dict):
        for name, change in _MAPS.items():
            yield Hostile(f"vocabulary {name}", _change_map(change))


QUANTISED: tuple[object, ...] = (
    {"quant_method": "none-such"},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "fp8"},
    {},
    "awq",
)


def _set(place: str, key: str, value: object) -> Damage:
    def damage(folder: Path) -> None:
        config = read(folder / "config.json")
        (config[place] if place else config)[key] = value
        write(folder / "config.json", config)

    return damage


def _auto_map(folder: Path) -> None:
    """Python beside the weights, which transformers may only run if it is asked to."""
    (folder / "modeling_evil.py").write_text(f"open({str(folder / 'RAN')!r}, 'w')\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoProcessor", "AutoTokenizer")
    _set("", "auto_map", dict.fromkeys(names, "modeling_evil.Evil"))(folder)


def _odd_heads(folder: Path) -> None:
    config = read(folder / "config.json")
    for held in (config, config.get("text_config"), config.get("language_config")):
        if isinstance(held, dict) and "num_hidden_layers" in held:
            held["num_attention_heads"] = 3
            held.pop("head_dim", None)
            write(folder / "config.json", config)
            return
    raise AssertionError("no decoder in config.json")


def _deep(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def _last(table: dict[str, Any]) -> str:
    return [name for name in table if "IMGIMG" in name or "visual token" in name][-1]


_MAPS: dict[str, Callable[[dict[str, Any]], None]] = {
    "out of range": lambda table: table.update({_last(table): 10**6}),
    "below zero": lambda table: table.update({_last(table): -1}),
    "a text": lambda table: table.update({_last(table): "5"}),
    "twice": lambda table: table.update({_last(table): table[next(iter(table))]}),
    "one too few": lambda table: table.pop(_last(table)),
    "all far off": lambda table: table.update({name: i + 10**6 for i, name in enumerate(table)}),
}


def _change_map(change: Callable[[dict[str, Any]], None]) -> Damage:
    def damage(folder: Path) -> None:
        config = read(folder / "config.json")
        change(config["vocabulary_map"])
        write(folder / "config.json", config)

    return damage
