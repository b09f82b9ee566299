"""Checks of values as YAML gives them, before they are typed."""

import re
import reprlib
from typing import Any

from omegaconf import MISSING

from mm_cca.config.declarations import Declared

MAX_TEXT = 20_000
MAX_NAME = 255
"""Bytes that file systems allow in one name."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlong = 60
_SURROGATE = re.compile("[\ud800-\udfff]")
# All but tab and line breaks, which prompts may have.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def shown(value: Any) -> str:
    """``repr`` of a value, shortened."""
    return _SHORT.repr(value)


def wrong_value(entry: Declared, value: Any) -> str | None:
    """Why a value can't be a value of the key whatever its range, or None.

    Texts that OmegaConf would take for a reference to another key or for a missing value are
    refused, and so are those that no file name, column or prompt can be.
    """
    items = value if isinstance(value, list) else [value]
    for item in items:
        reason = _wrong_item(entry, item)
        if reason is not None:
            return f"{entry.name} is {shown(value)}: {reason}"
    return None


def _wrong_item(entry: Declared, item: Any) -> str | None:
    if isinstance(item, list | dict):
        return "a list or mapping inside a list; allowed: plain values"
    if isinstance(item, int) and not -(2**63) <= item < 2**63:
        return "a number of more than 64 bits"
    return _wrong_text(entry, item) if isinstance(item, str) else None


def _wrong_text(entry: Declared, text: str) -> str | None:
    faults = {
        "write the value itself; ??? stands for a missing one": text == MISSING,
        "${...} is not replaced in recipes; write the value out": "${" in text,
        "a control character is not allowed": _CONTROL.search(text),
        "half a character (a lone surrogate); save the file as UTF-8": _SURROGATE.search(text),
        f"{len(text):,} characters; allowed: up to {MAX_TEXT:,}": len(text) > MAX_TEXT,
    }
    found = next((reason for reason, holds in faults.items() if holds), None)
    return found if found or entry.rules.free_text else _wrong_name(entry, text)


def _wrong_name(entry: Declared, text: str) -> str | None:
    if not text.strip():
        return "empty" + ("; use null for none" if entry.optional else "; write a value")
    if "\n" in text or max(len(part.encode()) for part in text.split("/")) > MAX_NAME:
        return f"too long for a name, or with a line break; allowed: up to {MAX_NAME} bytes"
    return None
