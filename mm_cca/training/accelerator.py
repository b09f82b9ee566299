"""The accelerator of a training run, and stopping all its ranks together."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy

from mm_cca.config.schema import TrainConfig


def new_accelerator(config: TrainConfig, folder: Path) -> Accelerator:
    """Device, precision, ranks and trackers."""
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.trackers or None,
        project_dir=str(folder),
    )
    if accelerator.distributed_type == DistributedType.FSDP and config.mixed_precision != "no":
        # accelerate would also round the model's outputs, and bfloat16 is too coarse for a sum of
        # thousands of log-probabilities; gradients are summed over ranks in float32.
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    return accelerator


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
