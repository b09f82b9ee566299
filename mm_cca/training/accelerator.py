"""The accelerator of a training run, and stopping all its ranks together."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy

from mm_cca.config.precision import has_bf16_units
from mm_cca.config.schema import TrainConfig
from mm_cca.errors import UserError


def stage_accelerator(config: TrainConfig, folder: Path | None = None) -> Accelerator:
    """Device, precision, ranks and, if there is a folder for them, trackers.

    Each stage has its own, and one process may run stages of several recipes (a sweep, a notebook),
    so accelerators made before in another precision are not to be used any more.
    """
    if is_initialized() and AcceleratorState().mixed_precision != config.mixed_precision:
        # accelerate keeps a process's first precision and has no public way to another one.
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=(config.trackers or None) if folder else None,
        project_dir=str(folder) if folder else None,
    )


def new_accelerator(config: TrainConfig, folder: Path) -> Accelerator:
    """``stage_accelerator`` with what FSDP and DeepSpeed must know before they see a model."""
    accelerator = stage_accelerator(config, folder)
    if config.mixed_precision == "bf16" and not has_bf16_units():
        accelerator.print(
            "warning: train.mixed_precision is bf16, for which this machine has no units: a step "
            "takes many times as long as in float32. Use train.mixed_precision=auto or no.",
            file=sys.stderr,
        )
    if accelerator.distributed_type == DistributedType.FSDP and config.mixed_precision != "no":
        # accelerate would also round the model's outputs, and bfloat16 is too coarse for a sum of
        # thousands of log-probabilities; gradients are summed over ranks in float32.
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        refuse_zero3(plugin.zero_stage)
        # Steps of several micro-batches are summed here, so DeepSpeed must not divide them again.
        plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=config.micro_batch_size,
            gradient_accumulation_steps=1,
            gradient_clipping=config.max_grad_norm,
        )
    return accelerator


def refuse_zero3(stage: int) -> None:
    """Raises UserError for a DeepSpeed that shards the weights themselves."""
    if stage > 2:
        raise UserError(
            f"DeepSpeed's ZeRO stage is {stage}; allowed: 1 or 2, which shard gradients and the "
            "optimizer. To shard the weights too, use FSDP2 (recipe emu3-gen-full shows the launch "
            "line)."
        )


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a flag that is checked between steps."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def on_any_rank(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set on any rank: a signal may reach only one, but all save together."""
    if accelerator.num_processes == 1:
        return flag
    seen = torch.tensor(int(flag), device=accelerator.device)
    return bool(accelerator.reduce(seen, reduction="sum"))
