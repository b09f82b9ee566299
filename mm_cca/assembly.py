"""Everything a training run works with, loaded and prepared before the first step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed

from mm_cca import checkpoint
from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.batches import Schedule
from mm_cca.collate import Collator
from mm_cca.logprobs import CodeLogProbs
from mm_cca.reference import CopyReference, LoraReference, Reference, attach_lora
from mm_cca.run import RunFolder
from mm_cca.schema import LossConfig, Recipe, TrainConfig
from mm_cca.tokens import open_cache


@dataclass(frozen=True)
class Loop:
    """What the steps work with, once everything is loaded and prepared."""

    accelerator: Accelerator
    policy: torch.nn.Module
    model: UnifiedModel
    reference: Reference | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    collate: Collator
    loss: LossConfig
    train: TrainConfig
    dtype: torch.dtype


def new_accelerator(config: TrainConfig, folder: Path) -> Accelerator:
    """Device, precision, ranks and trackers."""
    return Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.trackers or None,
        project_dir=str(folder),
    )


def set_up(recipe: Recipe, run: RunFolder, accelerator: Accelerator, loss: LossConfig) -> Loop:
    """Load the model, attach a LoRA, make the reference, plan the data.

    Raises:
        UserError: a checkpoint that can't be read, data too small for the batch or for negatives.
    """
    config = recipe.train
    set_seed(config.seed)
    model = load_checkpoint(recipe.model)
    if config.tuning == "lora":
        attach_lora(model, rank=config.lora_rank, alpha=config.lora_alpha)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.compile:
        model.compile()
    layout = model.layout(grid_of(model, recipe.data.image_size))
    policy = CodeLogProbs(model, layout, whole_vocabulary=loss.whole_vocabulary)
    policy.to(accelerator.device)
    reference: Reference | None = None
    if loss.objective == "cca":
        kinds: dict[str, Callable[[CodeLogProbs], Reference]] = {
            "copy": CopyReference,
            "lora": LoraReference,
        }
        reference = kinds[config.reference](policy)
    optimizer = _optimizer(policy, config)
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    schedule = Schedule(
        cache.captions,
        batch_size=config.batch_size,
        num_variants=cache.num_variants,
        uncond_ratio=loss.uncond_ratio,
        kind=loss.negatives if recipe.loss.objective == "cca" else None,
        seed=config.seed,
    )
    prepared, prepared_optimizer = accelerator.prepare(policy, optimizer)
    checkpoint.skip_frozen_weights(accelerator)
    if config.trackers:
        accelerator.init_trackers("mm_cca", config={})
    collate = Collator(model, cache, recipe.data.image_size, accelerator.device)
    return Loop(
        accelerator,
        prepared,
        model,
        reference,
        prepared_optimizer,
        schedule,
        collate,
        loss,
        config,
        getattr(torch, recipe.model.dtype),
    )


def whole_weights(loop: Loop) -> dict[str, torch.Tensor] | None:
    """The model's weights where ranks hold parts of them (FSDP), gathered on the main rank's CPU.

    Named as in ``model.module``, in the dtype the recipe loads. None where every rank has all.
    """
    if loop.accelerator.distributed_type != DistributedType.FSDP:
        return None
    gathered = loop.accelerator.get_state_dict(loop.policy)
    prefix = "module."  # CodeLogProbs owns the adapter's module under this name
    return {
        name.removeprefix(prefix): value.to(loop.dtype) if value.is_floating_point() else value
        for name, value in gathered.items()
        if name.startswith(prefix)
    }


def _optimizer(policy: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    trained = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then constant or a cosine that ends at zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
