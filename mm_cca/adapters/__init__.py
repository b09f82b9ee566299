"""One file per model family; ``load_adapter`` finds it by name or as ``package.module:Class``."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mm_cca.config.schema import ModelConfig
from mm_cca.errors import UserError

if TYPE_CHECKING:  # a recipe is checked against ADAPTERS before torch is imported
    from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.shipped import ADAPTERS

READ_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError)
"""What transformers raises for files that are missing, torn, or not what they should be."""


def load_adapter(
    name: str, path: str, *, dtype: str = "float32", image_tokenizer: str | None = None
) -> "UnifiedModel":
    """Load a checkpoint with its image tokenizer.

    Args:
        name: a known adapter, or ``package.module:Class`` with a
            ``load(path, dtype, image_tokenizer)``.
        path: a checkpoint folder, a hub name, or ``emu3-emoji`` for the shipped one.
        dtype: a torch dtype by name.
        image_tokenizer: file or folder of the image tokenizer, for checkpoints that lack it.

    Raises:
        UserError: unknown adapter, one that misses a method, or a checkpoint that can't be read.
    """
    import torch

    from mm_cca.adapters.base import missing_parts
    from mm_cca.config.shipped import shipped

    target = ADAPTERS.get(name, name)
    module_name, colon, class_name = target.partition(":")
    if not colon:
        raise UserError(
            f"model.adapter is {name!r}; allowed: {', '.join(ADAPTERS)}, or package.module:Class."
        )
    if str(Path.cwd()) not in sys.path:  # a class beside the recipe; ``mm-cca`` has its own folder
        sys.path.append(str(Path.cwd()))
    try:
        adapter = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"model.adapter {name!r} can't be imported: {error}. It must be installed, or lie in "
            "the folder that the command is given in."
        ) from error
    if "load" not in dir(adapter):
        raise UserError(f"model.adapter {name!r} lacks load; see mm_cca/adapters/base.py.")
    resolved = shipped(path)
    try:
        model: UnifiedModel = adapter.load(resolved, getattr(torch, dtype), image_tokenizer)
    except READ_ERRORS as error:
        raise UserError(
            f"model.path {path!r} can't be read by the adapter {name!r}: {error}\nIt must be a "
            "folder written by save_pretrained (config.json, *.safetensors, tokenizer and "
            "processor files) or a hub name."
        ) from error
    missing = missing_parts(model)
    if missing:
        raise UserError(
            f"model.adapter {name!r} lacks {', '.join(missing)}; "
            "mm_cca/adapters/base.py says what each must do."
        )
    return model


def load_checkpoint(config: ModelConfig, path: str | None = None) -> "UnifiedModel":
    """``load_adapter`` with a recipe's keys; ``path`` is another folder with the same family."""
    return load_adapter(
        config.adapter,
        config.path if path is None else path,
        dtype=config.dtype,
        image_tokenizer=config.image_tokenizer,
    )
