"""What a declared key is, in words: for ``mm-cca explain`` and the tables made from the schema."""

import json
from dataclasses import is_dataclass
from typing import Any, Literal, get_origin, get_type_hints

from mm_cca.config.declarations import Declared, declared
from mm_cca.config.schema import JOBS

SCALARS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def all_keys() -> dict[str, Declared]:
    """Every key of every job, those of ``finetune`` first."""
    found: dict[str, Declared] = {}
    for schema in JOBS.values():
        found |= {name: entry for name, entry in declared(schema).items() if name not in found}
    return found


def groups() -> dict[str, str]:
    """Groups of keys and the first sentence of their docstrings."""
    found: dict[str, str] = {}
    for schema in JOBS.values():
        for name, hint in get_type_hints(schema).items():
            if is_dataclass(hint):
                found[name] = " ".join((hint.__doc__ or "").split()).replace("``", "")
    return found


def type_words(entry: Declared) -> str:
    """``number``, ``list of texts``, ``text or null``."""
    word = "word" if get_origin(entry.item) is Literal else SCALARS[entry.item]
    if entry.is_list:
        word = f"list of {word}s"
    return f"{word} or null" if entry.optional else word


def default_words(entry: Declared) -> str:
    """As a recipe spells it."""
    return "none: a recipe must set it" if entry.required else yaml_of(entry.default)


def yaml_of(value: Any) -> str:
    """A default on one line of YAML."""
    if isinstance(value, list):
        return f"[{', '.join(yaml_of(item) for item in value)}]"
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return f"{value:g}" if value != int(value) else f"{value:.1f}"
    return json.dumps(value)


def allowed_words(entry: Declared) -> str:
    """What is allowed, with the type where only a range is declared."""
    words = entry.allowed
    if not words:
        return f"any {type_words(entry)}" if entry.item is not bool else SCALARS[bool]
    if entry.rules.words or entry.choices:
        return words
    kind = SCALARS[entry.item]
    return f"{f'{kind}s, each' if entry.is_list else f'a {kind},'} {words}"


def decides_words(entry: Declared) -> str:
    """The stages, each with its condition."""
    found = [
        f"{d.words} (if {d.condition.words})" if d.condition is not None else d.words
        for d in entry.rules.decides
    ]
    return "; ".join(found) if found else "no result: it may be changed at any time"
