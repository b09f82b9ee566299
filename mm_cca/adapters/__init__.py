"""One file per model family; ``load_adapter`` finds it by name or as ``package.module:Class``."""

from importlib import import_module
from typing import TYPE_CHECKING

from mm_cca.errors import UserError

if TYPE_CHECKING:  # a recipe is checked against ADAPTERS before torch is imported
    from mm_cca.adapters.base import UnifiedModel

ADAPTERS = {"emu3": "mm_cca.adapters.emu3:Emu3"}


def load_adapter(name: str, path: str, *, dtype: str = "float32") -> "UnifiedModel":
    """Load a checkpoint with its image tokenizer.

    Args:
        name: a known adapter, or ``package.module:Class`` with a ``load(path, dtype)``.
        path: a checkpoint folder, a hub name, or ``emu3-emoji`` for the shipped one.
        dtype: a torch dtype by name.

    Raises:
        UserError: unknown adapter, or a checkpoint that can't be read.
    """
    import torch

    from mm_cca.demo import shipped

    target = ADAPTERS.get(name, name)
    module_name, colon, class_name = target.partition(":")
    if not colon:
        raise UserError(
            f"model.adapter is {name!r}; allowed: {', '.join(ADAPTERS)}, or package.module:Class."
        )
    try:
        adapter = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"model.adapter {name!r} can't be imported: {error}") from error
    resolved = shipped(path)
    try:
        model: UnifiedModel = adapter.load(resolved, getattr(torch, dtype))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"model.path {path!r} can't be read by the adapter {name!r}: {error}\nIt must be a "
            "folder written by save_pretrained (config.json, *.safetensors, tokenizer and "
            "processor files) or a hub name."
        ) from error
    return model
