"""Reading a checkpoint so that a wrong or damaged one is reported before any work is done."""

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mm_cca.adapters.checkpoint_files import (
    FILE_ERRORS,
    SAFE_INDEX,
    TORCH_INDEX,
    CheckpointError,
    Shape,
    read_tensors,
    reading_checkpoint,
    shapes,
)
from mm_cca.adapters.families import Kind, kind_of
from mm_cca.adapters.headers import reads_headers_only
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
    "refuse_image_tokenizer",
    "shapes",
]


def expect_family(path: str, *kinds: str) -> Kind:
    """Refuse a folder or hub name of another family.

    Args:
        path: the folder or hub name.
        kinds: names of ``families.KINDS``, or model types, that the adapter reads.

    Returns:
        which of them it is.

    Raises:
        UserError: its ``config.json`` is of another kind.
        CheckpointError: its ``config.json`` is missing, damaged or without a ``model_type``, or
            its index names a file that isn't there.
    """
    config = read_config(path)
    if config.get("model_type") is None:
        # transformers takes a folder without the file for an empty config
        raise CheckpointError("config.json is missing or has no model_type")
    found = kind_of(config)
    if found.name not in kinds:
        raise UserError(
            f"model.path {path!r} holds {found.what} (config.json: model_type "
            f"{config['model_type']!r}), but model.adapter reads {' or '.join(map(repr, kinds))}: "
            f"{found.advice}."
        )
    refuse_absent_shards(path)
    return found


@reading_checkpoint()
def read_config(path: str) -> dict[str, Any]:
    """The config.json of a folder or hub name as it is written; {} if a folder has none."""
    config: dict[str, Any] = PreTrainedConfig.get_config_dict(path)[0]
    if not isinstance(config, dict):
        raise CheckpointError(f"config.json holds a {type(config).__name__}, not a map of keys")
    return config


def refuse_absent_shards(path: str) -> None:
    """Raises CheckpointError if a local folder's index names a weight file that isn't there."""
    for index in (SAFE_INDEX, TORCH_INDEX):
        file = Path(path) / index
        if not file.is_file():
            continue
        with reading_checkpoint():
            named = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        absent = [name for name in named if not (file.parent / name).exists()]
        if absent:
            raise CheckpointError(
                f"{index} names {len(absent)} file(s) that the folder lacks, such as {absent[0]}: "
                "download the folder again (hf download repeats only what is missing)"
            )


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
    with reading_checkpoint() if known else nullcontext():
        if may_lack is not None or weights is not None or Path(path).is_dir():
            own = _shapes_of(cls, config)
            found = shapes(path) if weights is None else _sizes(weights)
            _refuse_shapes({n: (s, own[n]) for n, s in found.items() if own.get(n, s) != s})
            if may_lack is not None:
                lacked = [n for n in own if n.startswith(may_lack) and n not in found]
        with _kept_in_float32(cls, in_float32), _not_reported(cls, lacked, used_elsewhere):
            loaded: Any = cls.from_pretrained(
                path if weights is None else None,
                config=config,
                dtype=dtype,
                state_dict=weights,
                device_map="meta" if reads_headers_only() else None,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are in the report, with both shapes
            )
    module, report = loaded
    # Those that transformers renames while it loads were not compared above.
    _refuse_shapes({name: (one, other) for name, one, other in report["mismatched_keys"]})
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
