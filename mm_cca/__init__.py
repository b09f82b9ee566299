"""Condition Contrastive Alignment for text-to-image generation without guidance.

``import mm_cca`` is fast: the names below are imported when they are first used.
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "load_config": "mm_cca.config.load",
    "load_adapter": "mm_cca.adapters",
    "UserError": "mm_cca.errors",
}
_SUBMODULES = ("objectives", "negatives")
__all__ = ["UserError", "load_adapter", "load_config", "negatives", "objectives"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    if name in _SUBMODULES:
        return import_module(f"mm_cca.{name}")
    raise AttributeError(f"module 'mm_cca' has no attribute {name!r}")
