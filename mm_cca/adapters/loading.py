"""Reading a checkpoint so that a wrong or damaged one is reported before any work is done."""

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mm_cca.adapters.checkpoint_files import (
    FILE_ERRORS,
    SAFE_INDEX,
    TORCH_INDEX,
    CheckpointError,
    Shape,
    read_tensors,
    reading_checkpoint,
    refuse_absent_weights,
    refuse_without_headers,
    shapes,
    stored_kinds,
)
from mm_cca.adapters.config_limits import refuse_unusable
from mm_cca.adapters.families import Kind, kind_of
from mm_cca.adapters.headers import reads_headers_only
from mm_cca.adapters.quantization import loading_options
from mm_cca.adapters.sound_weights import kinds_of, refuse_other_kinds
from mm_cca.errors import UserError

__all__ = [
    "FILE_ERRORS",
    "SAFE_INDEX",
    "TORCH_INDEX",
    "CheckpointError",
    "expect_family",
    "load_module",
    "read_config",
    "read_tensors",
    "reading_checkpoint",
    "refuse_absent_weights",
    "refuse_image_tokenizer",
    "shapes",
]


_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def expect_family(path: str, *kinds: str) -> Kind:
    """Refuse a folder or hub name of another family.

    Args:
        path: the folder or hub name.
        kinds: names of ``families.KINDS``, or model types, that the adapter reads.

    Returns:
        which of them it is.

    Raises:
        UserError: its ``config.json`` is of another kind.
        CheckpointError: its ``config.json`` is missing, damaged, without a ``model_type`` or with
            impossible sizes, or its index names a file that isn't there.
    """
    config = read_config(path)
    if config.get("model_type") is None:
        # transformers takes a folder without the file for an empty config
        raise CheckpointError(
            "config.json is missing or has no model_type: download or copy it again"
        )
    found = kind_of(config)
    if found.name not in kinds:
        raise UserError(
            f"model.path {path!r} holds {found.what} (config.json: model_type "
            f"{config['model_type']!r}), but model.adapter reads {' or '.join(map(repr, kinds))}: "
            f"{found.advice}."
        )
    refuse_unusable(config)
    refuse_absent_weights(path)
    return found


@reading_checkpoint()
def read_config(path: str) -> dict[str, Any]:
    """The config.json of a folder or hub name as it is written; {} if a folder has none."""
    config: dict[str, Any] = PreTrainedConfig.get_config_dict(path)[0]
    if not isinstance(config, dict):
        found = type(config).__name__
        raise CheckpointError(
            f"config.json holds a {found}, not a map of keys: download or copy it again"
        )
    return config


def refuse_image_tokenizer(image_tokenizer: str | None, family: str) -> None:
    """Raises UserError if one is given: checkpoints of this family hold their own."""
    if image_tokenizer is not None:
        raise UserError(
            f"model.image_tokenizer is {image_tokenizer!r}; allowed for {family}: null (the "
            "checkpoint holds its own)."
        )


def load_module(
    cls: type[PreTrainedModel],
    path: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    may_lack: str | None = None,
    in_float32: str | None = None,
    used_elsewhere: str | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> tuple[Any, bool]:
    """``cls.from_pretrained``, but weights that it would initialise at random are an error.

    Args:
        in_float32: name of a part that stays in float32 whatever ``dtype`` is. Image tokenizers do:
            in bfloat16 the nearest of many close codes is often another one.
        may_lack: start of the names of weights that may come from another file.
        used_elsewhere: start of the names of weights that ``cls`` does not know and the adapter
            reads itself; all others that ``cls`` does not know are reported by transformers.
        weights: named as in ``cls``, for a layout that it can't read; ``path`` is not opened then.

    Returns:
        the module, and whether any weight under ``may_lack`` is missing.

    Raises:
        CheckpointError: a file or a weight is missing, or a weight has another shape than the
            config says, or whatever a class of transformers or of ours raises. A third party's
            class may have bugs, so what it raises is left alone.
    """
    known = cls.__module__.startswith(("transformers.", "mm_cca."))
    lacked: list[str] = []
    if weights is None:
        refuse_without_headers(path)
    refuse_other_kinds(kinds_of(weights) if weights is not None else stored_kinds(path))
    with reading_checkpoint() if known else nullcontext():
        if may_lack is not None or weights is not None or Path(path).is_dir():
            own = _shapes_of(cls, config)
            found = shapes(path) if weights is None else _sizes(weights)
            _refuse_shapes({n: (s, own[n]) for n, s in found.items() if own.get(n, s) != s})
            if may_lack is not None:
                lacked = [n for n in own if n.startswith(may_lack) and n not in found]
        onto = {"device_map": "meta"} if reads_headers_only() else None
        options = onto or loading_options(cls, config, dtype)
        with _kept_in_float32(cls, in_float32), _not_reported(cls, lacked, used_elsewhere):
            loaded: Any = cls.from_pretrained(
                path if weights is None else None,
                config=config,
                dtype=dtype,
                state_dict=weights,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are in the report, with both shapes
                **options,
            )
    module, report = loaded
    # Those that transformers renames while it loads were not compared above.
    _refuse_shapes({name: (one, other) for name, one, other in report["mismatched_keys"]})
    _refuse_surplus(report["unexpected_keys"], module)
    # transformers fills these with random numbers and only logs it.
    missing = sorted(set(report["missing_keys"]) & {n for n, _ in module.named_parameters()})
    if missing:
        raise CheckpointError(f"it lacks {len(missing)} weights, such as {missing[0]}")
    return module, bool(lacked)


def _sizes(weights: dict[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _shapes_of(cls: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        module = cls(copy.deepcopy(config))
    return _sizes(dict(module.named_parameters()))


def _refuse_shapes(differing: dict[str, tuple[Shape, Shape]]) -> None:
    for name in sorted(differing):
        found, expected = (list(shape) for shape in differing[name])
        more = f" ({len(differing)} weights differ)" if len(differing) > 1 else ""
        raise CheckpointError(
            f"{name} has shape {found}, but config.json describes {expected}{more}: the weights "
            "and config.json are not of the same model, or of another family"
        )


def _refuse_surplus(unexpected: Iterable[str], module: nn.Module) -> None:
    """Weights of layers that config.json doesn't count: stock classes leave them out and go on."""
    own = {_LAYER.sub("#", name) for name, _ in module.named_parameters()}
    surplus = sorted(name for name in unexpected if _LAYER.sub("#", name) in own)
    if surplus:
        raise CheckpointError(
            f"it holds {len(surplus)} weights that config.json has no layer for, such as "
            f"{surplus[0]}: the weights and config.json are not of the same model"
        )


@contextmanager
def _kept_in_float32(cls: type[PreTrainedModel], part: str | None) -> Iterator[None]:
    """Through an attribute of the class, which is how transformers itself does it."""
    before = cls._keep_in_fp32_modules_strict
    cls._keep_in_fp32_modules_strict = set(before or ()) | ({part} if part else set())
    try:
        yield
    finally:
        cls._keep_in_fp32_modules_strict = before


@contextmanager
def _not_reported(
    cls: type[PreTrainedModel], missing: list[str], unexpected: str | None
) -> Iterator[None]:
    """Weights that transformers calls neither MISSING nor UNEXPECTED: names, and a start of names.

    A page about weights that come from elsewhere would hide a line about one that does not.
    """
    before = cls._keys_to_ignore_on_load_missing, cls._keys_to_ignore_on_load_unexpected
    absent = {f"^{re.escape(name)}$" for name in missing}
    other = {"^" + re.escape(unexpected)} if unexpected else set()
    cls._keys_to_ignore_on_load_missing = [*(before[0] or ()), *absent]
    cls._keys_to_ignore_on_load_unexpected = [*(before[1] or ()), *other]
    try:
        yield
    finally:
        cls._keys_to_ignore_on_load_missing, cls._keys_to_ignore_on_load_unexpected = before
