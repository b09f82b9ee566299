"""Processes whose largest memory is measured."""

import os
import subprocess
import sys
from pathlib import Path


def measured(words: list[str]) -> float:
    """Run ``mm-cca`` in a process; its largest resident memory in MB."""
    command = [sys.executable, "-m", "mm_cca.cli", *words]
    quiet = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(sys.executable, command, dict(os.environ), file_actions=quiet)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"mm-cca {' '.join(words)} failed")
    return usage.ru_maxrss / 1024


def own_peak() -> float:
    """The largest resident memory of this process so far, in MB.

    Not ``ru_maxrss``, which starts at that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def printed_number(*words: str) -> float:
    """Run ``python -m WORDS``; the number on its last line."""
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"python -m {' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])
