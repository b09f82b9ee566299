"""Versions, device and git commit of this process."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mm_cca.config.precision import has_bf16_units

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "open-clip-torch",
    "peft",
    "torchmetrics",
)


@cache
def environment() -> dict[str, Any]:
    """Versions, device and git commit of this process."""
    import torch

    versions = {name: metadata.version(name) for name in PACKAGES}
    cuda = torch.cuda.is_available()
    other = torch.accelerator.current_accelerator(check_available=True)
    return {
        "mm_cca": metadata.version("mm-cca"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "device": torch.cuda.get_device_name() if cuda else other.type if other else "cpu",
        "num_devices": torch.accelerator.device_count(),
        "threads": torch.get_num_threads(),
        "bf16_units": has_bf16_units(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
