"""Which family a checkpoint's config.json belongs to, and what to do if the adapter reads another.

``model_type`` alone does not say: BAAI calls Emu3 and Emu3.5 the same, DeepSeek calls Janus,
JanusFlow and DeepSeek-VL the same. A new family adds its ``Kind`` to ``KINDS``; nothing else looks
at a config to tell families apart. Nothing here imports torch, so it is quick.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Config: TypeAlias = Mapping[str, Any]
"""A config.json."""

EMU3_POSITIONS = 10_240
"""The most of what draws: Emu3-Stage1 has 5,120, Emu3-Gen 9,216, and BAAI's scripts/t2i_sft.sh
writes 10,240 into a fine-tune."""
EMU3_CHAT = re.compile(r"(^|/|--)emu3-chat(-hf)?(/snapshots/[^/]+)?/?$", re.IGNORECASE)
"""Ends of a path: BAAI's name of it, as a hub name, a folder, or in the hub's cache."""
EMU3_VOCABULARY = 184_622
EMU3P5_VOCABULARY = 282_926


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint folder.

    Attributes:
        name: what adapters ask for with ``expect_family``.
        what: for messages, "a checkpoint of ..." or the like.
        advice: what to do with such a folder if the chosen adapter doesn't read it.
        matches: whether a config.json is of this kind.
        adapter: the one that reads such a folder; None: there is none, or more than one.
    """

    name: str
    what: str
    advice: str
    matches: Callable[[Config], bool]
    adapter: str | None = None


def _is_emu3p5(config: Config) -> bool:
    """Emu3's configs have no ``head_dim``, and a vocabulary of 184,622."""
    kind = config.get("model_type")
    if kind == "Emu3":
        return "head_dim" in config or _size(config) > EMU3_VOCABULARY
    return kind in ("emu3", "qwen3") and _size(config) >= EMU3P5_VOCABULARY


def _size(config: Config) -> int:
    text = config.get("text_config")
    held = text if isinstance(text, Mapping) else config
    found = held.get("vocab_size")
    return found if isinstance(found, int) else 0


def _is(model_type: str) -> Callable[[Config], bool]:
    return lambda config: config.get("model_type") == model_type


KINDS: list[Kind] = [
    Kind("emu3p5", "Emu3.5", "set model.adapter to emu3p5", _is_emu3p5, "emu3p5"),
    Kind(
        "emu3-baai",
        "Emu3 in BAAI's own layout",
        "use Emu3-community/Emu3-Gen-hf, or convert it with transformers' "
        "src/transformers/models/emu3/convert_emu3_weights_to_hf.py "
        "(--vq_model_id BAAI/Emu3-VisionTokenizer --llm_model_id BAAI/Emu3-Gen --output_dir DIR)",
        _is("Emu3"),
    ),
    Kind("emu3", "Emu3", "set model.adapter to emu3", _is("emu3"), "emu3"),
    Kind(
        "janus-deepseek",
        "Janus in DeepSeek's own layout",
        "set model.adapter to janus",
        lambda config: _is("multi_modality")(config) and "gen_vision_config" in config,
        "janus",
    ),
    Kind(
        "multi_modality",
        "JanusFlow or DeepSeek-VL (multi_modality without gen_vision_config)",
        "it has no image codes (JanusFlow draws by rectified flow, DeepSeek-VL draws nothing), so "
        "no adapter reads it; use deepseek-ai/Janus-Pro-1B, Janus-Pro-7B or Janus-1.3B",
        _is("multi_modality"),
    ),
    Kind("janus", "Janus", "set model.adapter to janus", _is("janus"), "janus"),
    Kind(
        "chameleon",
        "Chameleon",
        "set model.adapter to chameleon or lumina-mgpt",
        _is("chameleon"),
    ),
    Kind(
        "gemma",
        "Gemma, as Liquid is",
        "if it is Liquid, set model.adapter to liquid",
        _is("gemma"),
        "liquid",
    ),
    Kind(
        "qwen2",
        "Qwen2, as SimpleAR is",
        "if it is SimpleAR, set model.adapter to simplear",
        _is("qwen2"),
        "simplear",
    ),
    Kind(
        "qwen3",
        "Qwen3",
        "no adapter reads that family; Emu3.5, which stock classes call Qwen3 too, has a "
        f"vocabulary of {EMU3P5_VOCABULARY}",
        _is("qwen3"),
    ),
]
"""Looked through in this order: the first that matches decides."""


def kind_of(config: Config) -> Kind:
    """The kind of a config.json; an unknown ``model_type`` is a kind of that name."""
    for kind in KINDS:
        if kind.matches(config):
            return kind
    name = str(config.get("model_type"))
    return Kind(name, f"model_type {name!r}", "no adapter reads that family", _is(name))


def is_emu3_chat(path: str) -> bool:
    """By its published name: it has Emu3-Gen's classes, vocabulary and shapes."""
    return EMU3_CHAT.search(path) is not None


def may_be_emu3_chat(config: Config) -> bool:
    """More positions than any Emu3 that draws. No weight depends on them, so it is no proof."""
    text = config.get("text_config")
    positions = text.get("max_position_embeddings") if isinstance(text, Mapping) else None
    return isinstance(positions, int) and positions > EMU3_POSITIONS
