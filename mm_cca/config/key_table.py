"""Generated from the declared keys: the table in recipes/README.md and the JSON schema.

``python -m mm_cca.config.key_table`` writes both into a checkout; tests check that they are up to
date.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from mm_cca.config.declarations import Declared, declared
from mm_cca.config.key_text import (
    all_keys,
    allowed_text,
    decides_text,
    default_text,
    groups,
)
from mm_cca.config.schema import JOBS

BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}

SHORTHANDS = ("data.image_size",)
"""Keys that may also be a list of their values."""


def markdown_table() -> str:
    """One table for each group of keys."""
    keys = all_keys()
    lines = [f"`job`: {keys['job'].doc}", ""]
    for group, doc in groups().items():
        lines += [f"### `{group}`", "", doc, "", "| key | default | allowed | decides |"]
        lines.append("|---|---|---|---|")
        for name, entry in keys.items():
            if name.startswith(f"{group}."):
                cells = (default_text(entry), allowed_text(entry), decides_text(entry))
                middle = " | ".join(cell.replace("|", r"\|") for cell in cells)
                lines.append(f"| `{name}`<br>{entry.doc} | {middle} |")
        lines.append("")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """``page`` with the table inserted between the two markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown_table()}{END}{after}"


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe for any job."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mm-cca recipe",
        "oneOf": [_job(name, schema) for name, schema in JOBS.items()],
    }


def _job(job: str, schema: type) -> dict[str, Any]:
    keys = declared(schema)
    properties: dict[str, Any] = {"job": {"const": job, "description": keys["job"].doc}}
    required_groups = [] if job == "finetune" else ["job"]
    for group, hint in get_type_hints(schema).items():
        if group == "job":
            continue
        own = {n.partition(".")[2]: e for n, e in keys.items() if n.startswith(f"{group}.")}
        required = [name for name, entry in own.items() if entry.required]
        properties[group] = {
            "type": "object",
            "description": " ".join((hint.__doc__ or "").split()).replace("``", ""),
            "properties": {name: _property(entry) for name, entry in own.items()},
            "required": required,
            "additionalProperties": False,
        }
        required_groups += [group] if required else []
    return {
        "title": " ".join((schema.__doc__ or "").split()),
        "type": "object",
        "properties": properties,
        "required": required_groups,
        "additionalProperties": False,
    }


def _property(entry: Declared) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": f"{entry.doc} Allowed: {allowed_text(entry)}."}
    if not entry.required:
        schema["default"] = entry.default
    kinds = [_value(entry)]
    if entry.is_list:
        low, high = entry.rules.items or (0, None)
        array: dict[str, Any] = {"type": "array", "items": _value(entry)}
        array |= {"minItems": low} if low else {}
        array |= {"maxItems": high} if high is not None else {}
        array |= {"uniqueItems": True} if entry.rules.distinct else {}
        # A single value is read as a list of one.
        kinds = [array] if low > 1 else [array, _value(entry)]
        if entry.name in SHORTHANDS:  # see image_sizes.split_sizes
            kinds.append({"type": "array", "items": array, "minItems": 1})
    if entry.name == "data.caption_column":  # see load.py
        kinds.append({"type": "array", "items": _value(entry), "minItems": 1, "uniqueItems": True})
    if entry.optional:
        kinds.append({"type": "null"})
    return schema | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


def _value(entry: Declared) -> dict[str, Any]:
    if entry.choices:
        return {"enum": list(entry.choices)}
    assert get_origin(entry.item) is not Literal
    bounds = {
        "minimum": entry.rules.at_least,
        "exclusiveMinimum": entry.rules.above,
        "maximum": entry.rules.at_most,
        "exclusiveMaximum": entry.rules.below,
    }
    declared_bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    number = {"type": JSON_TYPES[entry.item], **declared_bounds}
    words = {"enum": list(entry.rules.words)}
    return {"anyOf": [number, words]} if entry.rules.words else number


def main() -> None:
    """Write both files of this checkout."""
    folder = Path(str(resources.files("mm_cca.recipes")))
    page = folder / "README.md"
    page.write_text(with_table(page.read_text()))
    (folder / "schema.json").write_text(json.dumps(json_schema(), indent=2) + "\n")


if __name__ == "__main__":
    main()
