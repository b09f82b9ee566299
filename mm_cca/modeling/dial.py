"""The dial: weights on the straight line from the base (0) through the trained model (1).

``theta_ref + a * (theta - theta_ref)`` for one number a: weaker or stronger alignment without more
training. A LoRA is scaled (see ``lora.py``). A full fine-tune is interpolated into the base tensor
by tensor, so that no more than one model and one tensor are in memory.
"""

from collections.abc import Set
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mm_cca.config.read_files import reading
from mm_cca.errors import UserError
from mm_cca.modeling.weight_files import weight_files


@torch.no_grad()
def dial_full(module: nn.Module, trained: Path, dial: float) -> None:
    """Interpolate the base and a trained checkpoint, in place in the base.

    Args:
        module: the adapter's module as loaded from the base, on the CPU.
        trained: the folder that training wrote: safetensors files with the tensor names of
            ``save_pretrained``.
        dial: 0 gives the base and 1 the trained weights, both bit for bit; above 1 extrapolates.

    Raises:
        UserError: the folder's tensors do not match those of the module one to one.
    """
    files = _files(trained)
    shapes = _shapes(files)
    targets = _targets(module, shapes.keys(), trained)
    _refuse_mismatch(module, targets, shapes, trained)
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open has no __iter__)
                if not _interpolate(targets[name], file.get_tensor(name), dial):
                    raise _no_match(trained, f"{name} has other integer values")


def _interpolate(target: torch.Tensor, trained: torch.Tensor, dial: float) -> bool:
    """Interpolate in place; False if integer tensors differ, which can't be interpolated."""
    trained = trained.to(target.dtype)
    if torch.equal(target, trained):
        return True  # a frozen tensor
    if not target.is_floating_point():
        return False
    # lerp is exact at both ends, which base + dial * difference is not.
    target.copy_(torch.lerp(target.float(), trained.float(), dial))
    return True


def _targets(module: nn.Module, names: Set[str], trained: Path) -> dict[str, torch.Tensor]:
    """The module's own tensors (or views of them) by their names in the trained folder.

    transformers renames tensors on loading and reverts this on saving, so the names are those of
    the part that was saved: the module itself or, if an adapter wraps it, a transformers model
    inside.
    """
    own = {_storage(tensor) for tensor in module.state_dict().values()}
    closest = names
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            named = revert_weight_conversion(part, part.state_dict())
        elif part is module:
            named = part.state_dict()
        else:
            continue
        # Writing to a copy that a conversion made would not change the module.
        named = {name: tensor for name, tensor in named.items() if _storage(tensor) in own}
        missing = names - named.keys()
        if not missing:
            return {name: named[name] for name in names}
        closest = min(closest, missing, key=len)
    raise _no_match(trained, f"{len(closest)} tensors are not in the base, such as {min(closest)}")


def _refuse_mismatch(
    module: nn.Module,
    targets: dict[str, torch.Tensor],
    shapes: dict[str, list[int]],
    trained: Path,
) -> None:
    """Raises UserError unless shapes agree and every trainable weight is there exactly once."""
    seen: dict[int, str] = {}
    count: dict[int, int] = {}
    for name, target in targets.items():
        if list(target.shape) != shapes[name]:
            raise _no_match(trained, f"{name} is {shapes[name]}, not {list(target.shape)}")
        tied = seen.setdefault(target.data_ptr(), name)
        if tied != name:
            raise _no_match(
                trained, f"{tied} and {name} are tied in the base but not in the folder"
            )
        # Counted by storage: a tied weight has several names, and a weight may be saved in parts.
        count[_storage(target)] = count.get(_storage(target), 0) + target.numel()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and count.get(_storage(parameter)) != parameter.numel():
            raise _no_match(trained, f"the trainable weight {name} is missing")


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _files(trained: Path) -> list[Path]:
    if files := weight_files(trained):
        return files
    raise _no_match(trained, "there is no model.safetensors")


def _shapes(files: list[Path]) -> dict[str, list[int]]:
    """Shapes of all tensors, read from the headers of the files only."""
    shapes: dict[str, list[int]] = {}
    for path in files:
        with (
            reading(path, "Restore it, or train again."),
            safe_open(path, framework="pt") as file,
        ):
            names = file.keys()
            shapes |= {name: list(file.get_slice(name).get_shape()) for name in names}
    return shapes


def _no_match(trained: Path, why: str) -> UserError:
    return UserError(
        f"the dial can't be applied: the weights in {trained} do not match the base (model.path): "
        f"{why}. Use the base that was fine-tuned, with the same model.adapter and version of "
        "transformers, and an adapter whose save writes a plain save_pretrained folder; or remove "
        "sample.dial and --dial."
    )
