"""Reads YAML as recipes need it: plain values only, and nothing that grows or guesses.

A recipe may come from a stranger: tags, anchors, deep nesting and files that never end are refused.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from mm_cca.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 8

_PLAIN = ("null", "bool", "int", "float", "seq", "map", "str")
_RESOLVED = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    # Neither 12:30 nor 010 is a number, as they are in YAML 1.1.
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}


class _Loader(yaml.SafeLoader):
    """Plain values; only true and false are booleans, so that ``mixed_precision: no`` is text."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag in {f"tag:yaml.org,2002:{name}" for name in _PLAIN}
    }
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases are not read; write the value out", mark
            )
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "nested too deeply", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be one word", name.start_mark
                )
            if name.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name.value} appears twice", name.start_mark
                )
            seen.add(name.value)
        return super().construct_mapping(node, deep=deep)


for _name, (_pattern, _first) in _RESOLVED.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError, with the reason, for anything not plain."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: not a readable file of text, too large, not a mapping, or not plain YAML.
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes, so it is not a recipe")
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}, not a mapping of keys to values.")
    return raw
