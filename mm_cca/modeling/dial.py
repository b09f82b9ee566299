"""The dial: weights on the straight line from the base (0) through the trained model (1).

``theta_ref + a * (theta - theta_ref)`` for one number a, so that a run offers weaker and stronger
alignment without more training. A LoRA is scaled; a full fine-tune is blended into the base tensor
by tensor, so that never more than one model and one tensor are in memory.
"""

import json
from collections.abc import Set
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mm_cca.errors import UserError


@torch.no_grad()
def dial_full(module: nn.Module, trained: Path, dial: float) -> None:
    """Blend a trained checkpoint into the base, in place.

    Args:
        module: the adapter's module as it was loaded from the base, on the CPU.
        trained: the folder that training wrote: safetensors under the names that
            ``save_pretrained`` gives them.
        dial: 0 leaves the base and 1 gives the trained weights, both bit for bit.

    Raises:
        UserError: the folder's tensors are not, one for one, those of the module.
    """
    files = _files(trained)
    shapes = _shapes(files)
    targets = _targets(module, shapes.keys(), trained)
    _refuse_mismatch(module, targets, shapes, trained)
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open has no __iter__)
                if not _blended(targets[name], file.get_tensor(name), dial):
                    raise _no_match(trained, f"{name} holds other whole numbers")


def _blended(target: torch.Tensor, trained: torch.Tensor, dial: float) -> bool:
    """Move ``target`` along the line; False where whole numbers differ, which can't be blended."""
    trained = trained.to(target.dtype)
    if torch.equal(target, trained):
        return True  # the frozen parts
    if not target.is_floating_point():
        return False
    # lerp is exact at both ends, which base + dial * difference is not.
    target.copy_(torch.lerp(target.float(), trained.float(), dial))
    return True


def _targets(module: nn.Module, wanted: Set[str], trained: Path) -> dict[str, torch.Tensor]:
    """The module's own tensors (or views of them) by the names that the trained folder has.

    Loading renames tensors and saving names them back, so the names are those of the part that was
    saved: the module itself or, where an adapter wraps it, a transformers model inside.
    """
    own = {_storage(tensor) for tensor in module.state_dict().values()}
    closest = wanted
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            named = revert_weight_conversion(part, part.state_dict())
        elif part is module:
            named = part.state_dict()
        else:
            continue
        # A conversion that copies would leave the module itself as it was.
        named = {name: tensor for name, tensor in named.items() if _storage(tensor) in own}
        missing = wanted - named.keys()
        if not missing:
            return {name: named[name] for name in wanted}
        closest = min(closest, missing, key=len)
    raise _no_match(trained, f"{len(closest)} tensors are not in the base, such as {min(closest)}")


def _refuse_mismatch(
    module: nn.Module,
    targets: dict[str, torch.Tensor],
    shapes: dict[str, list[int]],
    trained: Path,
) -> None:
    """Raises UserError unless shapes agree and every weight that trains is met exactly once."""
    met: dict[int, str] = {}
    count: dict[int, int] = {}
    for name, target in targets.items():
        if list(target.shape) != shapes[name]:
            raise _no_match(trained, f"{name} is {shapes[name]}, not {list(target.shape)}")
        twin = met.setdefault(target.data_ptr(), name)
        if twin != name:
            raise _no_match(trained, f"{twin} and {name} are one weight in the base, but two there")
        # Counted by storage: a tied weight has several names, a file may hold parts of one weight.
        count[_storage(target)] = count.get(_storage(target), 0) + target.numel()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and count.get(_storage(parameter)) != parameter.numel():
            raise _no_match(trained, f"{name}, which trains, is not there")


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _files(trained: Path) -> list[Path]:
    index = trained / "model.safetensors.index.json"
    if index.exists():
        places = json.loads(index.read_text())["weight_map"]
        return [trained / name for name in sorted(set(places.values()))]
    if (trained / "model.safetensors").exists():
        return [trained / "model.safetensors"]
    raise _no_match(trained, "there is no model.safetensors")


def _shapes(files: list[Path]) -> dict[str, list[int]]:
    """From the headers alone."""
    found: dict[str, list[int]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            found |= {name: list(file.get_slice(name).get_shape()) for name in names}
    return found


def _no_match(trained: Path, why: str) -> UserError:
    return UserError(
        f"the dial can't be turned, because {trained} does not hold the weights of the base "
        f"(model.path): {why}. Use the base that was trained, with the same model.adapter and "
        "version of transformers, and an adapter whose save writes a plain save_pretrained folder; "
        "or leave sample.dial and --dial out."
    )
