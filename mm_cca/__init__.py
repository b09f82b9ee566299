"""Condition Contrastive Alignment for text-to-image generation without guidance.

``import mm_cca`` is fast: the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from mm_cca import negatives, objectives
    from mm_cca.adapters import load_adapter
    from mm_cca.api import decode, encode, generate, load_run, logprobs
    from mm_cca.config.load import load_config
    from mm_cca.errors import UserError

_MODULE_OF = {
    "load_config": "mm_cca.config.load",
    "load_adapter": "mm_cca.adapters",
    "UserError": "mm_cca.errors",
    "decode": "mm_cca.api",
    "encode": "mm_cca.api",
    "generate": "mm_cca.api",
    "load_run": "mm_cca.api",
    "logprobs": "mm_cca.api",
}
_SUBMODULES = ("objectives", "negatives")
__all__ = [
    "UserError",
    "decode",
    "encode",
    "generate",
    "load_adapter",
    "load_config",
    "load_run",
    "logprobs",
    "negatives",
    "objectives",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    if name in _SUBMODULES:
        return import_module(f"mm_cca.{name}")
    raise AttributeError(f"module 'mm_cca' has no attribute {name!r}")
