"""How many threads a run on the processor uses: as many as cores are free.

Two threads on cores that others keep busy wait for each other at every operation: slower than one.
"""

import os
import sys
from pathlib import Path

import joblib
import psutil
import torch

from mm_cca.errors import UserError
from mm_cca.runs.stage import FILE, recorded

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Who sets one of them has decided."""
SECONDS = 0.5
"""How long the cores are looked at."""


def use_free_cores(root: Path) -> None:
    """Set torch's threads for a run in ``root``, and say so where it isn't all of them.

    A stage that was interrupted goes on with the threads that it began with, because sums of other
    threads are rounded otherwise.
    """
    if any(os.environ.get(name) for name in VARIABLES):
        return
    most = min(torch.get_num_threads(), joblib.cpu_count())
    began_with = _threads_of_unfinished(root)
    number = threads_for(free_cores(), most) if began_with is None else min(began_with, most)
    if number == torch.get_num_threads():
        return
    torch.set_num_threads(number)
    why = "the other cores are busy" if began_with is None else "as this stage began with"
    print(
        f"threads: {number} of {most}, {why} ({VARIABLES[0]}={most} decides otherwise)",
        file=sys.stderr,
    )


def threads_for(free: float, most: int) -> int:
    """At least one thread, at most ``most``, and no more than ``free`` cores, rounded."""
    return max(1, min(most, round(free)))


def free_cores() -> float:
    """Cores that nobody uses now, of those that this process may run on."""
    busy = psutil.cpu_percent(interval=SECONDS, percpu=True)
    process = psutil.Process()
    # macOS has no affinity.
    allowed = process.cpu_affinity() if sys.platform != "darwin" else range(len(busy))
    return sum(1 - busy[core] / 100 for core in allowed if core < len(busy))


def _threads_of_unfinished(root: Path) -> int | None:
    """Threads of the newest stage in a run folder that has begun and not ended; else None."""
    files = sorted([*root.glob(f"*/{FILE}"), *root.glob(f"*/*/{FILE}")], key=_changed)
    for file in reversed(files):
        try:
            stored = recorded(file.parent) or {}
        except UserError:  # told when the stage itself is opened
            continue
        if not stored.get("done", True):
            environments = stored.get("environments")
            threads = environments[-1].get("threads") if environments else None
            return threads if isinstance(threads, int) and threads > 0 else None
    return None


def _changed(file: Path) -> float:
    return file.stat().st_mtime
