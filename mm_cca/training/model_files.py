"""The trained weights as a checkpoint folder."""

import shutil
from pathlib import Path

import torch
from accelerate.utils import DistributedType

from mm_cca.modeling.lora import write_trained
from mm_cca.runs.files import replace_folder
from mm_cca.training.setup import TrainingSetup


def whole_weights(loop: TrainingSetup) -> dict[str, torch.Tensor] | None:
    """The model's weights where ranks hold parts of them (FSDP), gathered on the main rank's CPU.

    Named as in ``model.module``, in the dtypes they were loaded in. None where every rank has all.
    """
    if loop.accelerator.distributed_type != DistributedType.FSDP:
        return None
    gathered = loop.accelerator.get_state_dict(loop.policy)
    prefix = "module."  # CodeLogProbs owns the adapter's module under this name
    return {
        name.removeprefix(prefix): value.to(loop.dtypes[name])
        for name, value in gathered.items()
        if name.startswith(prefix)
    }


def save_model(loop: TrainingSetup, folder: Path) -> None:
    weights = whole_weights(loop)  # all ranks take part
    if loop.accelerator.is_main_process:
        replace_folder(folder, lambda place: write_trained(loop.model, place, weights))
    loop.accelerator.wait_for_everyone()


def write_model(loop: TrainingSetup, folder: Path) -> None:
    best, model = folder / "best", folder / "model"
    if loop.train.keep != "best":
        save_model(loop, model)
    elif not best.is_dir():
        if not model.is_dir():
            save_model(loop, model)
        # Otherwise it was renamed already, then interrupted.
    elif loop.accelerator.is_main_process:
        shutil.rmtree(model, ignore_errors=True)
        best.rename(model)
