"""Two real processes do what one does: same training, same pictures, same scores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import runs


def _recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    data = runs.two_splits(tmp_path / "data.parquet")
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    values["data"]["heldout_split"] = "heldout"
    values["train"].update(micro_batch_size=2, control=True, eval_every=2)
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


def _launch(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    """``mm-cca WORDS`` under PyTorch's launcher, as ``accelerate launch`` does on GPUs."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*launcher, "-m", "mm_cca.cli", *words],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _scores(folder: Path) -> dict[str, Any]:
    arms = json.loads((folder / "eval" / "summary.json").read_text())["arms"]
    return {arm["name"]: arm["scores"] for arm in arms}


def test_two_ranks_give_the_run_of_one(tmp_path: Path, tiny_folder: Path):
    recipe = _recipe(tmp_path, tiny_folder)
    runs.do(recipe, f"run.dir={tmp_path / 'one'}", stages=runs.load_recipe(recipe).run.stages)
    done = _launch(2, "run", str(recipe), f"run.dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = tmp_path / "one", tmp_path / "two"
    for part in ("train", "control"):
        for mine, theirs in zip(runs.metrics(one / part), runs.metrics(two / part), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)
    pictures = {n: x for n, x in runs.files_of(one / "samples").items() if n.endswith(".png")}
    others = runs.files_of(two / "samples")
    differing = [name for name, content in pictures.items() if others[name] != content]
    assert pictures
    assert not differing
    assert _scores(one) == _scores(two)


def test_a_users_mistake_ends_all_ranks(tmp_path: Path, tiny_folder: Path):
    recipe = _recipe(tmp_path, tiny_folder)
    done = _launch(2, "run", str(recipe), "train.batch_size=6")
    assert done.returncode != 0
    assert "train.batch_size is 6; with 2 process(es)" in done.stderr
