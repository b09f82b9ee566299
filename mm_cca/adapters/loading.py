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

from mm_cca.errors import UserError

FAMILIES = {
    "emu3": "emu3",
    "chameleon": "chameleon or lumina-mgpt",
    "janus": "janus",
    "gemma": "liquid",
    "qwen2": "simplear",
}
"""model_type of a config.json -> the adapters that read it."""

ORIGINALS = {
    "Emu3": "This is BAAI's own layout. Use Emu3-community/Emu3-Gen-hf, or convert it with "
    "transformers' src/transformers/models/emu3/convert_emu3_weights_to_hf.py "
    "(--vq_model_id BAAI/Emu3-VisionTokenizer --llm_model_id BAAI/Emu3-Gen --output_dir DIR).",
    "multi_modality": "This is DeepSeek's own layout. Use deepseek-community/Janus-Pro-1B or -7B, "
    "or convert it with transformers' "
    "src/transformers/models/janus/convert_janus_weights_to_hf.py.",
}
"""model_type of a layout that transformers' own classes can't read -> what to do."""

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


def expect_family(path: str, model_type: str) -> None:
    """Refuse a folder or hub name of another family.

    Raises:
        UserError: its ``config.json`` names another ``model_type``.
        CheckpointError: its ``config.json`` is missing, damaged or without a ``model_type``.
    """
    with reading_checkpoint():
        found = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    if found == model_type:
        return
    if found is None:  # transformers takes a folder without the file for an empty config
        raise CheckpointError("config.json is missing or has no model_type")
    if found in ORIGINALS:
        raise UserError(f"model.path {path!r} can't be read: {ORIGINALS[found]}")
    adapter = FAMILIES.get(str(found))
    hint = f"set model.adapter to {adapter}" if adapter else "no adapter reads that family"
    raise UserError(
        f"model.path {path!r} holds a checkpoint of model_type {found!r}, but model.adapter reads "
        f"{model_type!r}: {hint}."
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
) -> tuple[Any, bool]:
    """``cls.from_pretrained``, but weights that it would initialise at random are an error.

    Args:
        in_float32: name of a part that stays in float32 whatever ``dtype`` is. Image tokenizers do:
            in bfloat16 the nearest of many close codes is often another one.
        may_lack: start of the names of weights that may come from another file.

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
            path, config=config, dtype=dtype, output_loading_info=True
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
