"""Stopped, killed, truncated, disk full: the same command resumes and ends with the same bits."""

import contextlib
import errno
import json
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

import mm_cca.training.train as training
from mm_cca.errors import UserError
from mm_cca.runs.stage import locked
from mm_cca.training import checkpoint, validation
from tests.support import runs
from tests.support.training import LONG, assert_same_training, newest, weights

PATIENCE = 240


def test_killed_and_continued_is_bit_for_bit_the_same(recipe: Path, tmp_path: Path, whole: Path):
    folder = tmp_path / "run" / "train"
    process = runs.start("train", recipe, f"train.max_steps={LONG}", "train.save_every=1")
    with process:
        seen = folder / "checkpoints" / "step-00000003"
        wait_until(lambda: seen.exists() or later_than(folder, 3), process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "model").exists()
    done = int(newest(folder).name.removeprefix("step-"))
    assert 3 <= done < LONG
    runs.do(recipe, f"train.max_steps={LONG}", "train.save_every=1000")
    assert_same_training(folder, whole)


def later_than(folder: Path, step: int) -> bool:
    found = checkpoint.checkpoints(folder / "checkpoints")
    return bool(found) and int(found[-1].name.removeprefix("step-")) > step


def wait_until(happened, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def test_sigterm_saves_exits_130_and_continues(recipe: Path, tmp_path: Path, whole: Path):
    folder = tmp_path / "run" / "train"
    process = runs.start("train", recipe, f"train.max_steps={LONG}", "train.save_every=1000")
    with process:
        shown = ""
        assert process.stderr is not None
        while not re.search(rf"[1-9]\d*/{LONG}", shown):  # the first step is done
            character = process.stderr.read(1)
            assert character, shown
            shown += character
        process.terminate()
        rest = process.stderr.read()
        assert process.wait(PATIENCE) == 130, rest
    assert "run the same command again to resume" in rest
    assert "Traceback" not in rest
    done = int(newest(folder).name.removeprefix("step-"))
    assert 0 < done < LONG
    assert len(runs.metrics(folder)) == done
    runs.do(recipe, f"train.max_steps={LONG}", "train.save_every=1000")
    assert_same_training(folder, whole)


def test_a_done_run_is_left_alone(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.max_steps=1")
    before = runs.mtimes_of(tmp_path / "run" / "train")
    runs.do(recipe, "train.max_steps=1", "train.save_every=7")
    assert runs.mtimes_of(tmp_path / "run" / "train") == before


def test_changed_recipe_is_refused_and_named(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.max_steps=1")
    before = runs.files_of(tmp_path / "run" / "train")
    with pytest.raises(UserError) as caught:
        runs.do(recipe, "train.max_steps=1", "loss.beta=0.1", "train.seed=7")
    assert "  - loss.beta: was 0.02, is now 0.1" in str(caught.value)
    assert "  - train.seed: was 0, is now 7" in str(caught.value)
    assert "loss.lambda_" not in str(caught.value)
    assert runs.files_of(tmp_path / "run" / "train") == before


def test_folder_in_use_is_refused(recipe: Path, tmp_path: Path):
    with locked(tmp_path / "run"), pytest.raises(UserError, match="is in use by process"):
        runs.do(recipe)
    assert not (tmp_path / "run" / "train").exists()
    with locked(tmp_path / "run"):
        pass


def test_lock_survives_as_file_but_not_as_lock(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.max_steps=1")
    assert (tmp_path / "run" / ".lock").exists()
    runs.do(recipe, "train.max_steps=1")


def test_interrupted_between_renaming_the_best_and_the_end(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses = iter([1.0, 2.0])
    monkeypatch.setattr(validation, "heldout_nll", lambda *_: next(losses))
    best = ("loss.objective=nll", "train.eval_every=1", "train.keep=best", "train.max_steps=2")
    runs.do(recipe, *best)
    folder = tmp_path / "run" / "train"
    before = runs.files_of(folder / "model")
    stage = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(stage | {"done": False}))
    runs.do(recipe, *best)
    assert runs.files_of(folder / "model") == before
    assert json.loads((folder / "stage.json").read_text())["done"]


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: what writing to a full disk looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", [(Accelerator, "save_state"), (checkpoint, "write_json")])
def test_full_disk_leaves_the_older_checkpoint(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[object, str]
):
    folder = tmp_path / "run" / "train" / "checkpoints"
    real = getattr(*place)

    def fails_later(*args, **kwargs):
        done = len(checkpoint.checkpoints(folder))
        return real(*args, **kwargs) if done < 2 else full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(*place, fails_later)
        with pytest.raises(UserError, match="No space left on device") as caught:
            runs.do(recipe)
    assert "checkpoint of step 3" in str(caught.value)
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000001", "step-00000002"]
    runs.do(recipe)
    assert (tmp_path / "run" / "train" / "model").is_dir()


@pytest.mark.parametrize("size", [20_000, 100_000])
def test_writes_that_really_fail(recipe: Path, tmp_path: Path, size: int):
    with file_size_limit(size), pytest.raises(UserError, match="could not be written"):
        runs.do(recipe, "train.max_steps=1")
    runs.do(recipe, "train.max_steps=1")
    assert len(runs.metrics(tmp_path / "run" / "train")) == 1


def test_full_disk_while_writing_the_model(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run" / "train"
    with monkeypatch.context() as patch:
        patch.setattr("mm_cca.adapters.emu3.Emu3.save", full_disk)
        with pytest.raises(UserError, match="could not be written"):
            runs.do(recipe, "train.max_steps=1")
    assert not (folder / "model").exists()
    assert not (folder / "model.partial").exists()
    runs.do(recipe, "train.max_steps=1")
    assert (folder / "model").is_dir()


def test_only_the_newest_checkpoints_stay_without_the_image_tokenizer(recipe: Path, tmp_path: Path):
    runs.do(recipe)
    folder = tmp_path / "run" / "train"
    names = [path.name for path in checkpoint.checkpoints(folder / "checkpoints")]
    assert names == ["step-00000003", "step-00000004"]
    saved = load_file(newest(folder) / "model.safetensors")
    assert saved
    assert not [name for name in saved if "vqmodel" in name]
    assert [name for name in weights(folder / "model") if "vqmodel" in name]


@pytest.fixture
def stopped(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``train/`` with two checkpoints of a run that has steps left."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "learning_rate", lambda step, _: 1 / (2 - step))
        with pytest.raises(ZeroDivisionError):
            runs.do(recipe)
    folder = tmp_path / "run" / "train"
    assert newest(folder).name == "step-00000002"
    return folder


def test_checkpoint_that_lacks_a_trained_weight(recipe: Path, stopped: Path):
    """Also where an earlier version wrote no digests."""
    state = newest(stopped) / "mm_cca.json"
    stored = {k: v for k, v in json.loads(state.read_text()).items() if k != "files"}
    state.write_text(json.dumps(stored))
    file = newest(stopped) / "model.safetensors"
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=re.escape(lost)) as caught:
        runs.do(recipe)
    assert "Delete that folder to resume from the checkpoint before it" in str(caught.value)


def test_truncated_checkpoint_can_be_deleted(recipe: Path, stopped: Path):
    file = newest(stopped) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors is not the file that was written"):
        runs.do(recipe)
    shutil.rmtree(newest(stopped))
    runs.do(recipe)
    assert [line["step"] for line in runs.metrics(stopped)] == [0, 1, 2, 3]


def test_incomplete_checkpoint_and_metrics_are_skipped(recipe: Path, stopped: Path):
    (stopped / "checkpoints" / "step-00000009.partial").mkdir()
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 1.0, "tokens_per_second": 1}\n{"step": 3, "lo')
    runs.do(recipe)
    lines = runs.metrics(stopped)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[2]["loss"] != 1.0
