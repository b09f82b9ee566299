"""One file per model family; ``load_adapter`` finds it by name or as ``package.module:Class``."""

import sys
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_cca.config.schema import ModelConfig
from mm_cca.errors import UserError

if TYPE_CHECKING:  # a recipe is checked against ADAPTERS before torch is imported
    from mm_cca.adapters.base import UnifiedModel
from mm_cca.config.shipped import ADAPTERS

WHERE = "It must be installed, or be in the current folder."
"""Where an adapter is looked for."""


def load_adapter(
    name: str,
    path: str,
    *,
    dtype: str = "float32",
    image_tokenizer: str | None = None,
    tokenizer: str | None = None,
    quantization: str | None = None,
) -> "UnifiedModel":
    """Load a checkpoint with its image tokenizer.

    Args:
        name: a known adapter, or ``package.module:Class`` with a
            ``load(path, dtype, image_tokenizer)``; a fourth parameter ``tokenizer`` is optional.
        path: a checkpoint folder, a hub name, or ``emu3-emoji`` for the built-in one.
        dtype: a torch dtype by name.
        image_tokenizer: file or folder of the image tokenizer, for checkpoints that lack it.
        tokenizer: folder or hub name of the text tokenizer, for checkpoints that lack it.
        quantization: ``nf4`` or ``int8``, as in a recipe's ``model.quantization``: the decoder's
            blocks are on this process's device then, and can't be trained without a LoRA.

    Raises:
        UserError: unknown adapter, one that lacks a method, a checkpoint that can't be read, or a
            quantisation that the device, the adapter or a missing package doesn't allow.
            A bug in the adapter's own code keeps its type and its traceback.
    """
    import torch

    from mm_cca.adapters.base import missing_parts
    from mm_cca.adapters.checkpoint_files import damaged_file
    from mm_cca.adapters.headers import reads_headers_only
    from mm_cca.adapters.loading import FILE_ERRORS, CheckpointError
    from mm_cca.adapters.quantization import mark_quantized, quantized
    from mm_cca.adapters.sound_weights import refuse_not_finite
    from mm_cca.adapters.text_check import refuse_useless_tokenizer
    from mm_cca.config.shipped import how_to_make, shipped

    adapter = _adapter_class(name)
    resolved = shipped(path)
    more = {} if tokenizer is None else {"tokenizer": tokenizer}
    if more and "tokenizer" not in signature(adapter.load).parameters:
        raise UserError(
            f"model.tokenizer is {tokenizer!r}; allowed for {name}: null (the checkpoint holds its "
            "own)."
        )
    if reads_headers_only():  # there is nothing to quantise
        quantization = None
    try:
        with quantized(quantization):
            model: UnifiedModel = adapter.load(
                resolved, getattr(torch, dtype), image_tokenizer, **more
            )
        missing = missing_parts(model)
        if not missing:
            refuse_not_finite(model.module)
            if name in ADAPTERS:
                refuse_useless_tokenizer(model)
    except (CheckpointError, *FILE_ERRORS) as error:
        # Whatever transformers says of a damaged file, it seldom says which.
        foreign = isinstance(error, FILE_ERRORS) or error.__cause__ is not None
        told = (damaged_file(resolved, tokenizer) if foreign else None) or error
        raise UserError(
            f"model.path {path!r} can't be read by the adapter {name!r}: {told}\nIt must be a "
            "folder written by save_pretrained (config.json, *.safetensors, tokenizer and "
            f"processor files) or a hub name.{how_to_make(path)}"
        ) from error
    if missing:
        raise UserError(
            f"model.adapter {name!r} lacks {', '.join(missing)}; "
            "mm_cca/adapters/base.py says what each must do."
        )
    if quantization is not None:
        mark_quantized(model.module, name, quantization)
    return model


def _adapter_class(name: str) -> Any:
    module_name, _, class_name = ADAPTERS.get(name, name).partition(":")
    if not module_name or not class_name:
        raise UserError(
            f"model.adapter is {name!r}; allowed: {', '.join(ADAPTERS)}, or package.module:Class."
        )
    if str(Path.cwd()) not in sys.path:  # for a class next to the recipe: ``mm-cca`` lacks the cwd
        sys.path.append(str(Path.cwd()))
    try:
        adapter = getattr(import_module(module_name), class_name, None)
    except ModuleNotFoundError as error:  # the adapter's module, or a package that it needs
        raise UserError(f"model.adapter {name!r} can't be imported: {error}. {WHERE}") from error
    if adapter is None:
        raise UserError(
            f"model.adapter {name!r} can't be imported: {module_name} has no {class_name}. {WHERE}"
        )
    if "load" not in dir(adapter):
        raise UserError(f"model.adapter {name!r} lacks load; see mm_cca/adapters/base.py.")
    return adapter


def load_checkpoint(config: ModelConfig, path: str | None = None) -> "UnifiedModel":
    """``load_adapter`` with a recipe's keys; ``path`` is another folder of the same family."""
    return load_adapter(
        config.adapter,
        config.path if path is None else path,
        dtype=config.dtype,
        image_tokenizer=config.image_tokenizer,
        tokenizer=config.tokenizer,
        quantization=config.quantization,
    )
