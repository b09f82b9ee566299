"""The optimizer and its learning rate."""

import math
from importlib import import_module
from typing import Any

import torch

from mm_cca.adapters.quantization import refuse_without_bitsandbytes
from mm_cca.config.schema import TrainConfig

IN_BITSANDBYTES = ("adamw_8bit", "paged_adamw", "paged_adamw_8bit")
"""Values of ``train.optimizer`` that are bitsandbytes' optimizers."""
SMALLEST_IN_8_BITS = 4096
"""Elements of a weight from which bitsandbytes keeps its moments in 8 bits."""
BLOCK = 256
"""Moments that share a scale in 8 bits."""


def new_optimizer(policy: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """``train.optimizer`` over all trained weights, with weight decay on matrices only.

    Raises:
        UserError: it is one of bitsandbytes', which is not installed.
    """
    trained = [p for p in policy.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer in IN_BITSANDBYTES:
        return _of_bitsandbytes(groups, config)
    if config.optimizer == "adafactor":
        return _adafactor(groups, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))


def _of_bitsandbytes(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    refuse_bitsandbytes_optimizer(config)
    optim: Any = import_module("bitsandbytes.optim")  # optional

    classes: dict[str, type[torch.optim.Optimizer]] = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    make: Any = classes[config.optimizer]
    optimizer: torch.optim.Optimizer = make(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2)
    )
    return optimizer


def refuse_bitsandbytes_optimizer(config: TrainConfig) -> None:
    """Raises UserError if the optimizer is one of bitsandbytes', which is not installed."""
    if config.optimizer in IN_BITSANDBYTES:
        refuse_without_bitsandbytes("train.optimizer", config.optimizer, "adamw or adafactor")


def _adafactor(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    from transformers import Adafactor  # noqa: PLC0415 (seconds to import)

    # With its own relative rates, B of a LoRA, which starts at 0, would hardly move; so
    # train.learning_rate means what it means for AdamW.
    adafactor: torch.optim.Optimizer = Adafactor(
        groups, lr=config.learning_rate, scale_parameter=False, relative_step=False
    )
    return adafactor


def state_bytes(shape: torch.Size, optimizer: str) -> int:
    """Bytes of an optimizer's state for a trained weight in float32."""
    count = shape.numel()
    if optimizer == "adafactor":
        if len(shape) < 2:
            return 4 * count
        return 4 * (count // shape[-1] + count // shape[-2])
    if optimizer.endswith("8bit") and count >= SMALLEST_IN_8_BITS:
        return 2 * (count + 4 * -(-count // BLOCK))
    return 8 * count


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then constant or a cosine that ends at zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
