"""The weighted mean of trained checkpoints, tensor by tensor.

The sums are in float32. A file of the result and one tensor of every checkpoint are in memory.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typing_extensions import TypedDict

from mm_cca.config.read_files import json_of, reading
from mm_cca.errors import UserError
from mm_cca.modeling.weight_files import weight_files

LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NOT_AVERAGED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
"""Parts of a LoRA whose mean would be another formula."""


class _LoraConfig(TypedDict):
    r: int
    lora_alpha: float


class _Tensors:
    """The tensors of several files by name, read one at a time."""

    def __init__(self, folder: Path, files: list[Path], stack: ExitStack) -> None:
        self.folder = folder
        self._places: dict[str, Any] = {}
        for path in files:
            with reading(path, "Restore it, or train that run again."):
                file = stack.enter_context(safe_open(path, framework="pt"))
            self._places |= dict.fromkeys(file.keys(), file)

    @property
    def names(self) -> set[str]:
        return set(self._places)

    def kind(self, name: str) -> tuple[str, list[int]]:
        """Dtype and shape, from the header of the file."""
        part = self._places[name].get_slice(name)
        return part.get_dtype(), part.get_shape()

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._places[name].get_tensor(name)
        return tensor


def average_full(folders: Sequence[Path], weights: Sequence[float], target: Path) -> None:
    """Write the weighted mean of full checkpoints, with the other files of the first one.

    Tensors that are equal in all of them, such as a frozen image tokenizer, are kept bit for bit.

    Args:
        folders: what training wrote: ``save_pretrained`` folders.
        weights: as many, with the sum 1.
        target: an existing folder.

    Raises:
        UserError: no safetensors, or names, shapes, dtypes or integer values that differ.
    """
    with ExitStack() as stack:
        found = [_Tensors(folder, _files(folder), stack) for folder in folders]
        first = found[0]
        for other in found[1:]:
            _refuse_other_names(first, other)
            for name in sorted(first.names):
                if first.kind(name) != other.kind(name):
                    raise _differ(
                        first,
                        other,
                        f"{name} is {_text(first.kind(name))} and {_text(other.kind(name))}",
                    )
        for path in weight_files(folders[0]):
            with safe_open(path, framework="pt") as file:
                names, metadata = list(file.keys()), file.metadata()
            means = {name: _mean(name, found, weights) for name in names}
            save_file(means, target / path.name, metadata=metadata)
    _copy_other_files(folders[0], target)


def _mean(name: str, found: Sequence[_Tensors], weights: Sequence[float]) -> torch.Tensor:
    tensors = [one.read(name) for one in found]
    first = tensors[0]
    for one, tensor in zip(found[1:], tensors[1:], strict=True):
        if not first.is_floating_point() and not torch.equal(first, tensor):
            raise _differ(found[0], one, f"{name} has other integer values")
    if all(torch.equal(first, tensor) for tensor in tensors[1:]):
        return first
    total = torch.zeros(first.shape, dtype=torch.float32)
    for weight, tensor in zip(weights, tensors, strict=True):
        total.add_(tensor.float(), alpha=weight)
    return total.to(first.dtype)


def average_loras(folders: Sequence[Path], weights: Sequence[float], target: Path) -> int:
    """Write one LoRA whose update of the base is the weighted mean of the updates.

    The mean of factors is not the mean of products: ``mean(B) mean(A) != mean(B A)``. Side by side
    the factors give the mean exactly: ``[w1 s1 B1, w2 s2 B2] [A1; A2] = w1 s1 B1 A1 + w2 s2 B2 A2``
    with the scales ``s = alpha / rank``. The new rank is the sum of the ranks, its scale is 1.

    Args:
        folders: LoRAs in peft's format.
        weights: as many, with the sum 1.
        target: an existing folder.

    Returns:
        the new rank.

    Raises:
        UserError: names or shapes that differ, or a LoRA of another kind than training writes.
    """
    advice = "Average LoRAs as `mm-cca train` writes them."
    configs: list[dict[str, Any]] = [
        {**json_of(folder / LORA_CONFIG, _LoraConfig, advice)} for folder in folders
    ]
    for folder, config in zip(folders, configs, strict=True):
        if unknown := [key for key in NOT_AVERAGED if config.get(key)]:
            raise UserError(
                f"{folder} can't be averaged: its LoRA has {', '.join(unknown)}. {advice}"
            )
    scales = [config["lora_alpha"] / config["r"] for config in configs]
    rank = sum(config["r"] for config in configs)
    with ExitStack() as stack:
        found = [_Tensors(folder, [folder / LORA_WEIGHTS], stack) for folder in folders]
        for other in found[1:]:
            _refuse_other_names(found[0], other)
        factors = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
        joined = {name: _side_by_side(name, found, factors) for name in sorted(found[0].names)}
        save_file(joined, target / LORA_WEIGHTS, metadata={"format": "pt"})
    _copy_other_files(folders[0], target)
    config = configs[0] | {"r": rank, "lora_alpha": rank}
    (target / LORA_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return rank


def _side_by_side(name: str, found: Sequence[_Tensors], factors: Sequence[float]) -> torch.Tensor:
    """[r, in] down-projections one below the other, or scaled [out, r] up-projections."""
    is_up = "lora_B" in name or "lora_embedding_B" in name
    along = 1 if is_up else 0
    tensors = [one.read(name).float() for one in found]
    for one, tensor in zip(found[1:], tensors[1:], strict=True):
        shapes = [list(tensors[0].shape), list(tensor.shape)]
        if any(a != b for axis, (a, b) in enumerate(zip(*shapes, strict=True)) if axis != along):
            raise _differ(found[0], one, f"{name} is {shapes[0]} and {shapes[1]}")
    if is_up:
        tensors = [factor * x for factor, x in zip(factors, tensors, strict=True)]
    return torch.cat(tensors, dim=along).contiguous()


def _files(folder: Path) -> list[Path]:
    if files := weight_files(folder):
        return files
    raise UserError(
        f"{folder} can't be averaged: it holds no model.safetensors. The adapter's save must write "
        "a plain save_pretrained folder."
    )


def _refuse_other_names(first: _Tensors, other: _Tensors) -> None:
    if lonely := sorted(first.names ^ other.names):
        holder = first if lonely[0] in first.names else other
        raise _differ(first, other, f"only {holder.folder} has {lonely[0]}")


def _differ(first: _Tensors, other: _Tensors, why: str) -> UserError:
    return UserError(
        f"{first.folder} and {other.folder} can't be averaged: {why}. Average runs of the same "
        "base and model.adapter, trained with the same version of transformers."
    )


def _text(kind: tuple[str, list[int]]) -> str:
    dtype, shape = kind
    return f"{shape} in {dtype}"


def _copy_other_files(folder: Path, target: Path) -> None:
    """Configuration, tokenizer and processor; not the weights."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        elif path.suffix != ".safetensors":
            shutil.copy(path, target / path.name)
