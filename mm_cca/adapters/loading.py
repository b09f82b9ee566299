"""Reading a checkpoint so that a wrong or damaged one is reported before any work is done."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from mm_cca.adapters.families import Kind, kind_of
from mm_cca.errors import UserError

SAFE_INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"

FILE_ERRORS = (OSError, SafetensorError, json.JSONDecodeError)
"""What is raised for files that are missing or damaged, wherever they are read."""


class CheckpointError(Exception):
    """A file of the checkpoint is missing, damaged, or not what it should be."""


@contextmanager
def reading_checkpoint() -> Iterator[None]:
    """Around calls of ``from_pretrained``: what they raise becomes CheckpointError.

    For a damaged file transformers raises nearly anything, AttributeError and KeyError included.
    An adapter's own code must stay outside, where such an error is a bug and keeps its traceback.

    Raises:
        CheckpointError: for anything raised inside but UserError.
    """
    try:
        yield
    except (UserError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(f"{type(error).__name__}: {error}") from error


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
    weights: dict[str, torch.Tensor] | None = None,
) -> tuple[Any, bool]:
    """``cls.from_pretrained``, but weights that it would initialise at random are an error.

    Args:
        in_float32: name of a part that stays in float32 whatever ``dtype`` is. Image tokenizers do:
            in bfloat16 the nearest of many close codes is often another one.
        may_lack: start of the names of weights that may come from another file.
        weights: named as in ``cls``, for a layout that it can't read; ``path`` is not opened then.

    Returns:
        the module, and whether any weight under ``may_lack`` is missing.

    Raises:
        CheckpointError: a weight is missing or has another shape than the config says, or whatever
            a stock class of transformers raises. A class of the adapter's own may have bugs, so
            what it raises is left alone.
    """
    stock = cls.__module__.startswith("transformers.")
    with _kept_in_float32(cls, in_float32), reading_checkpoint() if stock else nullcontext():
        loaded: Any = cls.from_pretrained(
            None if weights is not None else path,
            config=config,
            dtype=dtype,
            state_dict=weights,
            output_loading_info=True,
        )
    module, report = loaded
    # transformers fills these with random numbers and only logs it.
    missing = sorted(set(report["missing_keys"]) & {n for n, _ in module.named_parameters()})
    elsewhere = [n for n in missing if may_lack is not None and n.startswith(may_lack)]
    missing = [n for n in missing if n not in set(elsewhere)]
    if missing:
        raise CheckpointError(f"it lacks {len(missing)} weights, such as {missing[0]}")
    return module, bool(elsewhere)


@contextmanager
def _kept_in_float32(cls: type[PreTrainedModel], part: str | None) -> Iterator[None]:
    """Through an attribute of the class, which is how transformers itself does it."""
    before = cls._keep_in_fp32_modules_strict
    cls._keep_in_fp32_modules_strict = set(before or ()) | ({part} if part else set())
    try:
        yield
    finally:
        cls._keep_in_fp32_modules_strict = before


@reading_checkpoint()
def read_tensors(path: str, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint folder or hub name whose names start with ``prefix``.

    Only the files that hold them are opened. The prefix is removed from the names.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        folder = Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places = json.loads(index.read_text())["weight_map"]
        files = {file for name, file in places.items() if name.startswith(prefix)}
    else:
        files = {"model.safetensors"} if (folder / "model.safetensors").exists() else set()
    tensors = {}
    for file in sorted(files):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open has no __iter__)
                if name.startswith(prefix):
                    tensors[name.removeprefix(prefix)] = opened.get_tensor(name)
    return tensors
