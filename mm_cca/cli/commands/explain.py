"""``mm-cca explain KEY``: a key of a recipe, from its declaration."""

import argparse
import textwrap
from difflib import get_close_matches

from mm_cca.config.declarations import Declared
from mm_cca.config.key_text import (
    all_keys,
    allowed_text,
    decides_text,
    default_text,
    groups,
    type_text,
)
from mm_cca.errors import UserError

WIDTH = 80


def explain(args: argparse.Namespace) -> int:
    """Run ``mm-cca explain``."""
    print(explain_key(args.key))
    return 0


def explain_key(name: str | None) -> str:
    """A page on a key, the keys of a group, or all groups.

    Args:
        name: dotted, such as ``loss.beta``; a group, such as ``loss``; None for the groups.

    Raises:
        UserError: neither a key nor a group; the message names similar ones.
    """
    keys = all_keys()
    if name is None:
        return _groups_page()
    if name in keys:
        return _key_page(keys[name])
    if name in groups():
        return _group_page(name, keys)
    known = [*keys, *groups()]
    # Comparing only the last part finds "beta" as well as "los.beta".
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    near += [key for key in keys if key.split(".")[-1] == name.split(".")[-1] and key not in near]
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise UserError(
        f"unknown key {name}.{hint} `mm-cca explain` lists the groups, `mm-cca explain GROUP` the "
        "keys of one."
    )


def _key_page(entry: Declared) -> str:
    rows = {
        "type": type_text(entry),
        "default": default_text(entry),
        "allowed": allowed_text(entry),
        "decides": decides_text(entry),
    }
    lines = [entry.name, ""]
    for label, text in rows.items():
        first = f"  {label:<9}"
        lines.append(textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * 11))
    return "\n".join([*lines, "", _paragraph(entry.doc)])


def _group_page(name: str, keys: dict[str, Declared]) -> str:
    lines = [name, "", _paragraph(groups()[name]), ""]
    own = {key: entry for key, entry in keys.items() if key.startswith(f"{name}.")}
    width = max(len(key) for key in own)
    for key, entry in own.items():
        summary = textwrap.shorten(entry.doc, WIDTH - width - 4, placeholder=" ...")
        lines.append(f"  {key:<{width}}  {summary}")
    return "\n".join([*lines, "", "  mm-cca explain KEY explains one of them."])


def _groups_page() -> str:
    lines = [f"  {name:<10} {text}" for name, text in groups().items()]
    job = f"  job        {all_keys()['job'].doc}"
    return "\n".join(
        [
            "Groups of keys of a recipe:",
            "",
            job,
            *lines,
            "",
            "  mm-cca explain GROUP lists its keys.",
        ]
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
