"""A declared key as text, for ``mm-cca explain``, the reference table and the JSON schema."""

import json
from dataclasses import is_dataclass
from typing import Any, Literal, get_origin, get_type_hints

from mm_cca.config.declarations import Declared, declared
from mm_cca.config.schema import JOBS

SCALARS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def all_keys() -> dict[str, Declared]:
    """Every key of every job, those of ``finetune`` first."""
    keys: dict[str, Declared] = {}
    for schema in JOBS.values():
        keys |= {name: entry for name, entry in declared(schema).items() if name not in keys}
    return keys


def groups() -> dict[str, str]:
    """Groups of keys and their docstrings."""
    docs: dict[str, str] = {}
    for schema in JOBS.values():
        for name, hint in get_type_hints(schema).items():
            if is_dataclass(hint):
                docs[name] = " ".join((hint.__doc__ or "").split()).replace("``", "")
    return docs


def type_text(entry: Declared) -> str:
    """``number``, ``list of texts``, ``text or null``."""
    text = "choice" if get_origin(entry.item) is Literal else SCALARS[entry.item]
    text = " or ".join([text, *entry.rules.words])
    if entry.is_list:
        text = f"list of {text}s"
    return f"{text} or null" if entry.optional else text


def default_text(entry: Declared) -> str:
    """The default, as written in a recipe."""
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


def allowed_text(entry: Declared) -> str:
    """What is allowed, with the type if only a range is declared."""
    text = entry.allowed
    if not text:
        return f"any {type_text(entry)}" if entry.item is not bool else SCALARS[bool]
    if entry.rules.allowed or entry.choices:
        return text
    kind = SCALARS[entry.item]
    return f"{f'{kind}s, each' if entry.is_list else f'a {kind},'} {text}"


def decides_text(entry: Declared) -> str:
    """The stages that the key decides, each with its condition."""
    stages = [
        f"{d.label} (if {d.condition.text})" if d.condition is not None else d.label
        for d in entry.rules.decides
    ]
    return "; ".join(stages) if stages else "no result: it may be changed at any time"
