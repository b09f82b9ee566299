"""Condition Contrastive Alignment for text-to-image generation without guidance.

Nothing heavy is imported here: the names below are looked up when they are first used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "load_config": "mm_cca.config.load",
    "load_adapter": "mm_cca.adapters",
    "UserError": "mm_cca.errors",
}
_MODULES = ("objectives", "negatives")
__all__ = ["UserError", "load_adapter", "load_config", "negatives", "objectives"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"mm_cca.{name}")
    raise AttributeError(f"module 'mm_cca' has no attribute {name!r}")
