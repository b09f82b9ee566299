"""Builds the chat templates of engine folders: Jinja text that gives the ids of ``prompt_ids``.

Such a template is one expression, because transformers' Jinja drops line breaks around blocks. Size
in it comes from ``height`` and ``width``, in pixels, with defaults.
"""

import json
from string import Formatter

SAID = (
    "{%- set said = messages[-1]['content'] -%}"
    # An engine may give a message's content as its parts.
    "{%- if said is not string -%}{%- set said = said | map(attribute='text') | join -%}"
    "{%- endif -%}"
)
PROMPT = "said"
"""The expression for the last message's text."""


def joined(*parts: str) -> str:
    """The template of expressions that follow each other, such as ``literal("<s>"), PROMPT``."""
    return f"{SAID}{{{{- {' ~ '.join(parts)} -}}}}"


def literal(text: str) -> str:
    """A text as an expression."""
    return json.dumps(text)


def units(name: str, default: int, unit: int) -> str:
    """``height`` or ``width``, ``default`` pixels unless given, in units of ``unit`` pixels."""
    return f"(({name} | default({default})) // {unit})"


def filled_in(template: str, fields: dict[str, str]) -> list[str]:
    """A text with ``{name}`` fields as expressions, each field replaced by its own."""
    parts = []
    for text, field, _, _ in Formatter().parse(template):
        parts += [literal(text)] if text else []
        parts += [] if field is None else [fields[field]]
    return parts


def around(template: str, before: str, after: str) -> str:
    """A template for messages in parts, fed with the last message alone, between two texts."""
    turn = "[{'role': 'user', 'content': [{'type': 'text', 'text': said}]}]"
    inner = template.removesuffix("\n")  # which Jinja takes off the end
    return (
        f"{SAID}{{%- set messages = {turn} -%}}{{%- set add_generation_prompt = true -%}}"
        # Expressions next to the inner template, so that its own line breaks stay as they are.
        f"{{{{- {literal(before)} }}}}{inner}{{{{ {literal(after)} -}}}}"
    )
