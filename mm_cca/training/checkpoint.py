"""Save, find and load the state of training. Checkpoints are written atomically."""

import json
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NotRequired

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import safe_open
from torch import nn
from typing_extensions import TypedDict

from mm_cca.config.read_files import shaped, text_of
from mm_cca.errors import UserError
from mm_cca.runs.digests import refuse_other_files
from mm_cca.runs.files import IO_ERRORS, PARTIAL, atomic_path, partial_path, write_json
from mm_cca.runs.places import digests_of

STATE = "mm_cca.json"
ADVICE = "Delete that folder to resume from the checkpoint before it, or from the start."


class _State(TypedDict):
    """What a checkpoint's own file must hold; ``files`` is name -> sha256."""

    step: int
    best: float | None
    files: NotRequired[dict[str, str]]


def skip_frozen_weights(accelerator: Accelerator) -> None:
    """Keep weights that never change (image tokenizer, LoRA's base) out of every checkpoint."""

    def drop(models: list[nn.Module], weights: list[dict[str, torch.Tensor]], folder: str) -> None:
        if not weights:  # FSDP writes its shards by itself
            return
        for model, state in zip(models, weights, strict=True):
            for name in frozen_names(accelerator.unwrap_model(model)):
                state.pop(name, None)

    accelerator.register_save_state_pre_hook(drop)


def frozen_names(model: nn.Module) -> set[str]:
    """Names in the state dict of parameters without a gradient, and of buffers."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return set(model.state_dict()) - trained


def save(
    accelerator: Accelerator, folder: Path, step: int, state: dict[str, Any], keep: int
) -> None:
    """Write checkpoint ``step`` (steps done) and delete all but the newest ``keep``.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are kept.
    """
    final = folder / _name(step)
    is_main = accelerator.is_main_process
    try:
        with atomic_path(final) if is_main else nullcontext(partial_path(final)) as temporary:
            accelerator.wait_for_everyone()
            accelerator.save_state(str(temporary))
            accelerator.wait_for_everyone()
            if is_main:
                files = sorted(p for p in temporary.rglob("*") if p.is_file())
                names = [str(path.relative_to(temporary)) for path in files]
                digests = dict(zip(names, digests_of(files), strict=True))
                write_json(temporary / STATE, {"step": step, **state, "files": digests})
        if is_main:
            for old in checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
    except IO_ERRORS as error:
        raise UserError(
            f"the checkpoint of step {step} could not be written to {folder}: {error}\nEarlier "
            "checkpoints are untouched. Free some space and run the same command again."
        ) from error
    accelerator.wait_for_everyone()


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.suffix != PARTIAL)


def load_newest(accelerator: Accelerator, folder: Path) -> dict[str, Any] | None:
    """Load the newest checkpoint into what ``accelerator`` prepared; its state, or None.

    Raises:
        UserError: the checkpoint can't be read, lacks a trained weight, or holds files of another
            one.
    """
    saved = checkpoints(folder)
    if not saved:
        return None
    newest = saved[-1]
    try:
        state = _state_of(newest)
        if accelerator.is_local_main_process:  # the ranks of a machine share its files
            refuse_other_files(newest, state.get("files", {}), ADVICE)
        _refuse_incomplete(accelerator, newest)
        # DeepSpeed writes all weights and knows no such word.
        deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        accelerator.load_state(str(newest), **({} if deepspeed else {"strict": False}))
    except (*IO_ERRORS, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{newest} can't be loaded: {error}\n{ADVICE}") from error
    return state


def _state_of(folder: Path) -> dict[str, Any]:
    """What ``save`` noted besides the files. Raises ValueError if it is of another step."""
    state: dict[str, Any] = {**shaped(json.loads(text_of(folder / STATE, ADVICE)), _State)}
    if folder.name != _name(state["step"]):
        raise ValueError(f"{STATE} says it is of step {state['step']!r}")
    return state


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _refuse_incomplete(accelerator: Accelerator, folder: Path) -> None:
    """Raises ValueError if a trained weight is missing, which ``strict=False`` would ignore."""
    for number, model in enumerate(accelerator._models):
        weights = folder / (f"model_{number}.safetensors" if number else "model.safetensors")
        if not weights.exists():
            continue  # sharded by FSDP or DeepSpeed, which check it themselves
        unwrapped = accelerator.unwrap_model(model)
        trained = set(unwrapped.state_dict()) - frozen_names(unwrapped)
        with safe_open(str(weights), framework="pt") as file:
            if missing := sorted(trained - set(file.keys())):
                raise ValueError(f"it lacks {len(missing)} trained weights, such as {missing[0]}")
