"""Weights that can be computed with: floating-point numbers, none of them NaN or infinite."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from mm_cca.adapters.checkpoint_files import CheckpointError

ENDS = (".weight", ".bias")
"""Of the names of weights that are never whole numbers. An index or a counter may be."""
COMPUTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def refuse_other_kinds(kinds: Mapping[str, str], source: str = "") -> None:
    """Refuse weights of whole numbers, which a quantisation leaves, or complex ones.

    A network would take them over as they are, rounded, without their scales.

    Args:
        kinds: name of every stored tensor -> its type as torch or safetensors calls it.
        source: of an image tokenizer, for the message.

    Raises:
        CheckpointError: one is not of floating point.
    """
    wrong = [name for name in kinds if name.endswith(ENDS) and not _is_float(kinds[name])]
    if wrong:
        raise CheckpointError(
            f"{source and source + ': '}{wrong[0]} is stored as {kinds[wrong[0]]}, not as a "
            f"floating-point number ({len(wrong)} such weights): they are quantised or damaged. "
            "Use the original weights, in float32, bfloat16 or float16"
        )


def kinds_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """For ``refuse_other_kinds``."""
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}


def _is_float(kind: str) -> bool:
    return kind.lower().startswith(("f", "bf"))  # torch's float32 and safetensors' F32


def refuse_not_finite(module: nn.Module) -> None:
    """Look at every weight once, about as long as reading it from memory takes.

    Raises:
        CheckpointError: one holds NaN or infinity.
    """
    bad = [name for name, weight in module.state_dict().items() if not _is_finite(weight)]
    if bad:
        raise CheckpointError(
            f"{bad[0]} holds NaN or infinity ({len(bad)} such weights): the training that wrote it "
            "diverged, or the file is damaged. Download the folder again, or use another checkpoint"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    if weight.is_meta or weight.dtype not in COMPUTED or not weight.numel():
        return True
    # NaN is passed on by both; a mask of the weight's size would take ten times as long.
    low, high = torch.aminmax(weight.detach())
    return math.isfinite(low) and math.isfinite(high)
