"""Machines other than Linux with CUDA: modules that only Unix has, devices without float64."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mm_cca import load_adapter
from mm_cca.config.shipped import ADAPTERS
from mm_cca.modeling.draws import image_stream
from mm_cca.modeling.sampler import SamplingSettings, sample_codes
from mm_cca.runs import threads
from mm_cca.runs.stage import locked
from tests.support import runs
from tests.support.third_party import checkpoint_paths
from tests.test_imports import PATHS

ON_THE_HOST = {"validation.py"}
"""Files whose float64 tensors never leave the processor."""
UNIX_ONLY = """
import builtins, importlib, os, signal, sys
real = builtins.__import__
unix = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog"}
def windows(name, globals=None, *rest, **named):
    ours = (globals or {}).get("__name__", "").startswith("mm_cca")
    if ours and name in unix:
        raise ImportError(f"{name} is not on this machine")
    return real(name, globals, *rest, **named)
builtins.__import__ = windows
for name in sys.argv[1:]:
    importlib.import_module(name)
from mm_cca.cli import main
raise SystemExit(main(["validate", "emoji"]))
"""


def test_every_module_is_imported_without_what_only_unix_has():
    names = sorted(n for n in PATHS if not n.endswith("__main__") and "vllm_plugin" not in n)
    done = subprocess.run(
        [sys.executable, "-c", UNIX_ONLY, *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


class NoFloat64(TorchDispatchMode):
    """As on Apple's devices: an operation whose result is float64 raises."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 and _on_device():
                raise TypeError(f"{function} gives float64, which the device doesn't have")
        return result


def _on_device() -> bool:
    """Whether the innermost of our files that is running works on the device."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "mm_cca" in path.parts and path.name in PARTS:
            return path.name not in ON_THE_HOST
        frame = frame.f_back
    return True


PARTS = {path.name for path in PATHS.values()}


def test_float64_would_be_found():
    with NoFloat64(), pytest.raises(TypeError, match="gives float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_it_encodes_draws_and_decodes_without_float64(name: str, folders: Path):
    model = load_adapter(name, **checkpoint_paths(folders, name))
    model.module.eval()
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    )
    with NoFloat64(), torch.no_grad():
        codes = model.encode(pixels)
        side = int(codes.shape[1] ** 0.5)
        streams = np.stack([image_stream(0, index, side * side) for index in range(2)])
        for scale in (1.0, 3.0):
            settings = SamplingSettings(guidance_scale=scale, top_k=8, top_p=0.9)
            drawn, _ = sample_codes(model, ["a red owl", "a cat"], (side, side), streams, settings)
        decoded = model.decode(drawn, (side, side))
    assert decoded.dtype == torch.uint8


@pytest.mark.parametrize("objective", ["cca", "cca_code", "nll", "gft", "distill"])
def test_it_trains_and_samples_without_float64(recipe: Path, objective: str):
    with NoFloat64():
        runs.do(
            recipe,
            f"loss.objective={objective}",
            "train.max_steps=2",
            "train.eval_every=1",
            stages=["train", "sample"],
        )


def test_a_lock_is_let_go_with_the_block(tmp_path: Path):
    for _ in range(2):
        with locked(tmp_path):
            pass


@pytest.mark.parametrize(
    ("free", "most", "number"),
    [(2.0, 2, 2), (1.6, 2, 2), (1.4, 2, 1), (0.0, 2, 1), (7.9, 4, 4), (0.2, 1, 1)],
)
def test_threads_are_the_free_cores(free: float, most: int, number: int):
    assert threads.threads_for(free, most) == number


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch):
    """A machine of four cores, of which nobody has chosen a number."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(threads.joblib, "cpu_count", lambda: 4)
    yield
    torch.set_num_threads(before)


def test_a_busy_machine_is_told(
    tmp_path: Path,
    four_threads: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(threads, "free_cores", lambda: 1.2)
    threads.use_free_cores(tmp_path)
    assert torch.get_num_threads() == 1
    assert "threads: 1 of 4, the other cores are busy (OMP_NUM_THREADS=4" in capsys.readouterr().err


def test_an_interrupted_stage_keeps_its_threads(
    recipe: Path, tmp_path: Path, four_threads: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(threads, "free_cores", lambda: 4.0)
    stage = tmp_path / "run" / "train" / "stage.json"
    stage.parent.mkdir(parents=True)
    stage.write_text('{"done": false, "settings": {}, "environments": [{"threads": 3}]}')
    threads.use_free_cores(tmp_path / "run")
    assert torch.get_num_threads() == 3
    stage.write_text('{"done": true, "settings": {}, "environments": [{"threads": 2}]}')
    torch.set_num_threads(4)
    threads.use_free_cores(tmp_path / "run")
    assert torch.get_num_threads() == 4


def test_who_sets_the_variable_decides(
    tmp_path: Path, four_threads: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(threads, "free_cores", lambda: 0.0)
    threads.use_free_cores(tmp_path)
    assert torch.get_num_threads() == 4


def test_free_cores_are_between_none_and_all():
    assert 0 <= threads.free_cores() <= (psutil.cpu_count() or 1)
