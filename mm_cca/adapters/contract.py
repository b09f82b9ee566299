"""The documented name of ``mm_cca.testing.contract``."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(import_module("mm_cca.testing.contract"), name)
