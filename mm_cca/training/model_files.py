"""The trained weights as a checkpoint folder."""

import shutil
from pathlib import Path

import torch
from accelerate.utils import DistributedType

from mm_cca.modeling.lora import write_trained
from mm_cca.runs.files import replace_folder
from mm_cca.training.setup import TrainingSetup


def whole_weights(setup: TrainingSetup) -> dict[str, torch.Tensor] | None:
    """Weights that are sharded over ranks (FSDP), gathered on the main rank's CPU.

    Named as in ``model.module``, in the dtypes they were loaded in. None if they are not sharded.
    """
    if setup.accelerator.distributed_type != DistributedType.FSDP:
        return None
    gathered = setup.accelerator.get_state_dict(setup.policy)
    prefix = "module."  # CodeLogProbs owns the adapter's module under this name
    return {
        name.removeprefix(prefix): value.to(setup.dtypes[name])
        for name, value in gathered.items()
        if name.startswith(prefix)
    }


def save_model(setup: TrainingSetup, folder: Path) -> None:
    """Write the current weights, or with train.ema their average. All ranks must call it."""
    with setup.model_weights():
        weights = whole_weights(setup)  # all ranks take part
        if setup.accelerator.is_main_process:
            replace_folder(folder, lambda place: write_trained(setup.model, place, weights))
        setup.accelerator.wait_for_everyone()


def write_model(setup: TrainingSetup, folder: Path) -> None:
    """Write ``model/``: the last weights, or those with the best held-out loss."""
    best, model = folder / "best", folder / "model"
    if setup.train.keep != "best":
        save_model(setup, model)
    elif not best.is_dir():
        if not model.is_dir():
            save_model(setup, model)
        # Otherwise an interrupted call has renamed it already.
    elif setup.accelerator.is_main_process:
        shutil.rmtree(model, ignore_errors=True)
        best.rename(model)
