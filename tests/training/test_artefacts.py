"""Files that a later stage builds on: damaged, exchanged or foreign ones are named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run
from mm_cca.training.cached_reference import FILE
from tests.support import runs
from tests.support.training import newest

CACHED = "train.reference=cached"


def another_step(folder: Path) -> None:
    state = json.loads((folder / "mm_cca.json").read_text())
    (folder / "mm_cca.json").write_text(json.dumps(state | {"step": 1}))


def an_older_optimizer(folder: Path) -> None:
    shutil.copy(folder.parent / "step-00000001" / "optimizer.bin", folder)


def an_empty_optimizer(folder: Path) -> None:
    state = torch.load(folder / "optimizer.bin")
    torch.save(state | {"state": {}}, folder / "optimizer.bin")


def no_optimizer(folder: Path) -> None:
    (folder / "optimizer.bin").unlink()


def half_an_optimizer(folder: Path) -> None:
    file = folder / "optimizer.bin"
    file.write_bytes(file.read_bytes()[:100])


def nan_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, file, {"format": "pt"})


def no_state(folder: Path) -> None:
    (folder / "mm_cca.json").write_text("")


DAMAGES = [
    (another_step, "says it is of step 1"),
    (an_older_optimizer, "optimizer.bin is not the file that was written"),
    (an_empty_optimizer, "optimizer.bin is not the file that was written"),
    (half_an_optimizer, "optimizer.bin is not the file that was written"),
    (no_optimizer, "optimizer.bin is missing"),
    (nan_weights, "model.safetensors is not the file that was written"),
    (no_state, "can't be loaded"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_damaged_checkpoint_is_named(
    recipe: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
):
    constant = "train.schedule=constant"
    runs.do(recipe, constant, "train.max_steps=2")
    folder = tmp_path / "run" / "train"
    damage(newest(folder))
    with pytest.raises(UserError, match=said) as caught:
        runs.do(recipe, constant, "train.max_steps=3")
    assert str(newest(folder)) in str(caught.value)
    assert "Delete that folder to resume from the checkpoint before it" in str(caught.value)
    shutil.rmtree(newest(folder))
    runs.do(recipe, constant, "train.max_steps=3")


def test_an_exchanged_model_is_named(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.max_steps=1")
    folder = tmp_path / "run" / "train"
    file = folder / "model" / "model.safetensors"
    weights = load_file(file)
    next(v for v in weights.values() if v.is_floating_point()).view(-1)[0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors is not the file that was written"):
        runs.do(recipe, "train.max_steps=1", stages=["sample"])
    _, run = open_run(tmp_path / "run")
    with pytest.raises(UserError, match=rf"delete {folder} and train again"):
        run.trained_model("cca")


def test_another_base_is_refused_on_resuming(recipe: Path, tiny_folder: Path, tmp_path: Path):
    constant = "train.schedule=constant"
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    keys = (constant, f"model.path={model}")
    runs.do(recipe, *keys, f"run.tokens_dir={tmp_path / 'tokens'}", "train.max_steps=1")
    file = model / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if "q_proj" in n)
    weights[name] = weights[name] + 1e-3
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.path: its content is another"):
        runs.do(recipe, *keys, "train.max_steps=2", stages=["train"])


@pytest.mark.parametrize("value", [np.nan, -3.0])
def test_a_changed_reference_is_named(recipe: Path, tmp_path: Path, value: float):
    runs.do(recipe, CACHED, stages=["prepare"])
    file = tmp_path / "run" / "reference" / FILE
    logps = np.load(file)
    logps[2, 0] = value
    np.save(file, logps)
    with pytest.raises(UserError, match=rf"{FILE} is not the file that was written.*Delete"):
        runs.do(recipe, CACHED, stages=["train"])


def test_another_micro_batch_uses_the_reference_and_says_so(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs.do(recipe, CACHED, stages=["prepare"])
    before = runs.mtimes_of(tmp_path / "run" / "reference")
    runs.do(recipe, CACHED, "train.micro_batch_size=2", "train.max_steps=4")
    said = capsys.readouterr().err
    assert "train.micro_batch_size is 2, but" in said
    assert "was computed with 4" in said
    assert "up to rounding, not to the last bit" in said
    after = runs.mtimes_of(tmp_path / "run" / "reference")
    assert {k: v for k, v in after.items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }
    live = tmp_path / "live"
    runs.do(recipe, "train.micro_batch_size=2", "train.max_steps=4", f"run.dir={live}")
    ours, theirs = (runs.metrics(tmp_path / name / "train") for name in ("run", "live"))
    for one, other in zip(ours, theirs, strict=True):
        assert one["positive_gap"] == pytest.approx(other["positive_gap"], abs=1e-3)


@pytest.mark.parametrize("reference", ["copy", "cached"])
def test_less_memory_after_a_stop(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], reference: str
):
    """The same pairs in every step; what changed is recorded and told."""
    keys = [f"train.reference={reference}", "train.max_steps=6"]
    runs.do(recipe, *keys, "train.stop_after=2")
    capsys.readouterr()
    less = ("train.micro_batch_size=1", "train.gradient_checkpointing=true")
    runs.do(recipe, *keys, *less)
    assert "goes on with train.micro_batch_size 1 (was 4)" in capsys.readouterr().err
    stage = json.loads((tmp_path / "run" / "train" / "stage.json").read_text())
    assert [
        (part["from_step"], part["train.micro_batch_size"]) for part in stage["computed_with"]
    ] == [(0, 4), (2, 1)]
    whole = tmp_path / "whole"
    runs.do(recipe, *keys, f"run.dir={whole}")
    ours, theirs = (runs.metrics(tmp_path / name / "train") for name in ("run", "whole"))
    assert ours[:2] == theirs[:2]
    for one, other in zip(ours[2:], theirs[2:], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_drawn_pictures_are_checked(recipe: Path, tmp_path: Path):
    keys = ("loss.objective=ddo", "loss.beta=0.01")
    runs.do(recipe, *keys, f"run.tokens_dir={tmp_path / 'tokens'}", stages=["prepare"])
    shard = next((tmp_path / "tokens" / "train-drawn" / "shards").iterdir())
    file = next(shard.glob("*.arrow"))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"{shard} can't be used"):
        runs.do(recipe, *keys, f"run.tokens_dir={tmp_path / 'tokens'}", stages=["train"])
