"""SIGTERM and Ctrl-C as a flag that training looks at between two steps, on all ranks alike."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a flag that is looked at between two steps."""
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
    """A signal may reach one rank only, but all must save together."""
    if accelerator.num_processes == 1:
        return flag
    seen = torch.tensor(int(flag), device=accelerator.device)
    return bool(accelerator.reduce(seen, reduction="sum"))
