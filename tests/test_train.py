"""The training loop: metrics, bit-exact continuation, micro-batches, and what it refuses."""

import contextlib
import errno
import json
import math
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file

import mm_cca.train as training
from mm_cca import assembly, checkpoint
from mm_cca.batches import Schedule
from mm_cca.errors import UserError
from mm_cca.losses import LossTerms
from mm_cca.planning import training_schedule
from mm_cca.reference import RefScores
from mm_cca.run import RunFolder, locked
from mm_cca.sample import load_source, read_manifest
from mm_cca.schema import TrainConfig
from mm_cca.tokens import open_cache
from tests import runs

LONG = 120
PATIENCE = 240


@pytest.fixture(scope="module")
def prepared(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose token cache is filled; tests copy it with their own ``run.dir``."""
    folder = tmp_path_factory.mktemp("prepared")
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet"))
    values["run"]["tokens_dir"] = str(folder / "tokens")
    values["data"]["heldout_split"] = "heldout"
    recipe = runs.write_recipe(folder / "recipe.yaml", values)
    runs.do(recipe, stages=["prepare"])
    return recipe


@pytest.fixture
def recipe(prepared: Path, tmp_path: Path) -> Path:
    """The prepared recipe with a fresh ``run.dir`` (``tmp_path / "run"``)."""
    return at(prepared, tmp_path)


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` of an uninterrupted run of ``LONG`` steps."""
    folder = tmp_path_factory.mktemp("whole")
    runs.do(at(prepared, folder), f"train.max_steps={LONG}", "train.save_every=1000")
    return folder / "run" / "train"


def at(prepared: Path, folder: Path) -> Path:
    text = prepared.read_text()
    assert f"dir: {prepared.parent / 'run'}\n" in text
    path = folder / "recipe.yaml"
    path.write_text(text.replace(f"dir: {prepared.parent / 'run'}\n", f"dir: {folder / 'run'}\n"))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def head_of(names: Iterable[str]) -> str:
    """The name of the output head, whatever stands before it on disk."""
    (name,) = [name for name in names if name.endswith("lm_head.weight")]
    return name


def assert_same_training(one: Path, other: Path) -> None:
    """Final weights and every metric are equal bit for bit."""
    assert runs.metrics(one) == runs.metrics(other)
    ours, theirs = weights(one / "model"), weights(other / "model")
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def newest(folder: Path) -> Path:
    return checkpoint.checkpoints(folder / "checkpoints")[-1]


def schedule_of(path: Path, *overrides: str) -> Schedule:
    recipe = runs.load_recipe(path, *overrides)
    cache = open_cache(RunFolder.of(recipe).tokens / "train", 1)
    return training_schedule(recipe, cache, LossTerms.of(recipe.loss))


def test_metrics_of_every_step(recipe: Path, tmp_path: Path):
    runs.do(recipe)
    lines = runs.metrics(tmp_path / "run" / "train", timings=True)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    names = ("loss", "positive_gap", "negative_gap", "accuracy", "unconditional_gap", "grad_norm")
    for line in lines:
        assert set(names) | {"tokens_per_second", "learning_rate"} <= set(line)
        assert math.isfinite(line["loss"])
        assert line["grad_norm"] > 0
        assert line["tokens_per_second"] > 0


def test_first_step_has_no_gap_and_the_loss_of_the_formula(recipe: Path, tmp_path: Path):
    half = "loss.uncond_ratio=0.5"
    runs.do(recipe, "train.max_steps=1", half)
    (line,) = runs.metrics(tmp_path / "run" / "train")
    dropped = schedule_of(recipe, half).step(0).dropped
    assert 0 < dropped.sum() < len(dropped), "the data should show both kinds of rows"
    assert abs(line["positive_gap"]) <= 1e-4
    assert abs(line["negative_gap"]) <= 1e-4
    assert abs(line["unconditional_gap"]) <= 1e-4
    # Every logsigmoid is -log 2: weight 1 above, lambda (1 where dropped) below.
    expected = math.log(2) * (1 + np.where(dropped, 1.0, 3.0).mean()) / 3.0
    assert line["loss"] == pytest.approx(expected, rel=1e-5)


def test_training_moves_the_gaps_apart(whole: Path):
    lines = runs.metrics(whole)
    last = lines[-20:]
    positive = np.mean([x["positive_gap"] for x in last if x["positive_gap"] is not None])
    negative = np.mean([x["negative_gap"] for x in last if x["negative_gap"] is not None])
    assert positive > negative + 1
    assert np.mean([x["loss"] for x in last]) < lines[0]["loss"]


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
    assert "the same command goes on from here" in rest
    assert "Traceback" not in rest
    done = int(newest(folder).name.removeprefix("step-"))
    assert 0 < done < LONG
    assert len(runs.metrics(folder)) == done
    runs.do(recipe, f"train.max_steps={LONG}", "train.save_every=1000")
    assert_same_training(folder, whole)


def test_micro_batches_give_the_same_training(prepared: Path, tmp_path: Path):
    found = {}
    for size in (4, 2, 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        runs.do(at(prepared, folder), f"train.micro_batch_size={size}", "train.max_steps=6")
        found[size] = runs.metrics(folder / "run" / "train")
    for size in (2, 1):
        for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3), ("positive_gap", 1e-3)):
            pairs = zip(found[4], found[size], strict=True)
            difference = np.array([abs(a[name] - b[name]) for a, b in pairs])
            shown = f"{name}: max difference {difference.max():.3g}, mean {difference.mean():.3g}"
            print(f"micro-batch {size}: {shown}")
            assert difference.max() <= tolerance, shown


def test_gradient_checkpointing_changes_nothing(prepared: Path, tmp_path: Path):
    """It computes the forward pass again, which must be the same pass."""
    found = {}
    for on in ("false", "true"):
        (tmp_path / on).mkdir()
        keys = (f"train.gradient_checkpointing={on}", "train.max_steps=4")
        runs.do(at(prepared, tmp_path / on), *keys)
        found[on] = runs.metrics(tmp_path / on / "run" / "train")
    assert found["true"] == found["false"]


def test_full_tuning_in_half_precision_is_refused(tiny_folder: Path, tmp_path: Path):
    data = runs.two_splits(tmp_path / "data.parquet")
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    values["model"]["dtype"] = "bfloat16"
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    with pytest.raises(UserError, match=r"round most updates away.*model\.dtype=float32"):
        runs.do(path)
    runs.do(path, "train.tuning=lora", "train.reference=lora", f"run.dir={tmp_path / 'lora'}")


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


def test_nan_loss_stops_with_rows_and_a_checkpoint(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = training._loss, []

    def poisoned(*args, **kwargs):
        loss, stats = real(*args, **kwargs)
        calls.append(loss)
        return (loss * math.nan if len(calls) == 3 else loss), stats

    monkeypatch.setattr(training, "_loss", poisoned)
    with pytest.raises(UserError) as caught:
        runs.do(recipe, "train.save_every=1000")
    rows = schedule_of(recipe).step(2).rows.tolist()
    assert "step 2: the loss is nan" in str(caught.value)
    assert f"Rows of the batch: {rows}" in str(caught.value)
    saved = newest(tmp_path / "run" / "train")
    assert saved.name == "step-00000002"
    assert json.loads((saved / "mm_cca.json").read_text())["nan_rows"] == rows
    assert all(bool(x.isfinite().all()) for x in load_file(saved / "model.safetensors").values())
    assert [line["step"] for line in runs.metrics(tmp_path / "run" / "train")] == [0, 1]


@pytest.mark.parametrize("objective", ["nll", "cca"])
def test_nan_weight_is_refused_at_the_first_step(tiny_folder: Path, tmp_path: Path, objective: str):
    model = tmp_path / "poisoned"
    shutil.copytree(tiny_folder, model)
    tensors = load_file(model / "model.safetensors")
    tensors[head_of(tensors)][:] = math.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    values = runs.tiny_recipe(tmp_path, model, runs.two_splits(tmp_path / "data.parquet"))
    path = runs.write_recipe(tmp_path / "recipe.yaml", values)
    with pytest.raises(UserError, match="nan") as caught:
        runs.do(path, f"loss.objective={objective}")
    if objective == "nll":
        rows = schedule_of(path).step(0).rows.tolist()
        assert f"Rows of the batch: {rows}" in str(caught.value)
        assert newest(tmp_path / "run" / "train").name == "step-00000000"
    assert not (tmp_path / "run" / "train" / "model").exists()


def test_reference_that_differs_at_the_start_is_refused(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    class Other(assembly.CopyReference):
        def scores(self, batch):
            found = super().scores(batch)
            return RefScores(found.logps - 0.5, found.per_code)

    monkeypatch.setattr(assembly, "CopyReference", Other)
    with pytest.raises(UserError, match=r"differ by up to 0\.5 nats"):
        runs.do(recipe)


def test_batch_larger_than_the_data(recipe: Path):
    with pytest.raises(UserError, match=r"batch_size is 20, but there are only 16 usable images"):
        runs.do(recipe, "train.batch_size=20")


def test_one_caption_is_not_enough_for_cca(tiny_folder: Path, tmp_path: Path):
    rows = [row | {"caption": "same", "split": "train"} for row in runs.rows_of(6)]
    data = runs.write_parquet(tmp_path / "data.parquet", rows)
    path = runs.write_recipe(
        tmp_path / "recipe.yaml", runs.tiny_recipe(tmp_path, tiny_folder, data)
    )
    with pytest.raises(UserError, match="at least two distinct captions"):
        runs.do(path)
    runs.do(path, "loss.objective=nll", "run.dir=" + str(tmp_path / "nll"), "train.max_steps=1")


def test_lora_writes_an_adapter_that_sampling_loads(recipe: Path, tmp_path: Path):
    lora = ("train.tuning=lora", "train.reference=lora", "train.lora_rank=2", "train.max_steps=3")
    loaded = runs.do(recipe, *lora, stages=["train", "sample"])
    folder = tmp_path / "run" / "train"
    assert (folder / "model" / "adapter_config.json").exists()
    adapter = load_file(folder / "model" / "adapter_model.safetensors")
    assert any(bool(x.any()) for name, x in adapter.items() if "lora_B" in name)
    assert not any("vqmodel" in name for name in adapter)
    saved = load_file(newest(folder) / "model.safetensors")
    assert saved
    assert all("lora" in name for name in saved)

    model = load_source(loaded, RunFolder.of(loaded), "cca").module
    assert isinstance(model, PeftModel)
    inside = {name.replace(".default", ""): x for name, x in model.named_parameters()}
    for name, values in adapter.items():
        assert torch.equal(inside[name], values), name
    assert len(read_manifest(tmp_path / "run" / "samples" / "cca")) == 12


def test_lora_step_zero_has_no_gap(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.tuning=lora", "train.reference=lora", "train.max_steps=2")
    first, second = runs.metrics(tmp_path / "run" / "train")
    assert abs(first["positive_gap"]) <= 1e-4
    assert first["loss"] != second["loss"]


def test_nll_keeps_the_weights_with_the_best_heldout_loss(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses = iter([3.0, 1.0, 2.0, 4.0])
    seen: list[dict[str, torch.Tensor]] = []

    def scripted(accelerator, policy, *rest):
        seen.append({k: v.clone() for k, v in policy.state_dict().items()})
        return next(losses)

    monkeypatch.setattr(training, "heldout_nll", scripted)
    runs.do(recipe, "loss.objective=nll", "train.eval_every=1", "train.keep=best")
    folder = tmp_path / "run" / "train"
    lines = runs.metrics(folder)
    assert [line["heldout_nll"] for line in lines] == [3.0, 1.0, 2.0, 4.0]
    assert set(lines[0]) == {"step", "loss", "grad_norm", "learning_rate", "heldout_nll"}
    model = weights(folder / "model")
    kept = model[head_of(model)]
    same = [any(torch.equal(kept, x) for x in state.values()) for state in seen]
    assert same == [False, True, False, False]
    assert not (folder / "best").exists()


def test_interrupted_between_renaming_the_best_and_the_end(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses = iter([1.0, 2.0])
    monkeypatch.setattr(training, "heldout_nll", lambda *_: next(losses))
    best = ("loss.objective=nll", "train.eval_every=1", "train.keep=best", "train.max_steps=2")
    runs.do(recipe, *best)
    folder = tmp_path / "run" / "train"
    before = runs.files_of(folder / "model")
    stage = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(stage | {"done": False}))
    runs.do(recipe, *best)
    assert runs.files_of(folder / "model") == before
    assert json.loads((folder / "stage.json").read_text())["done"]


def test_heldout_loss_is_that_of_the_model(recipe: Path, tmp_path: Path):
    """Measured again by training nothing: one step at a rate of almost zero."""
    tiny_rate = ("train.learning_rate=1e-30", "train.max_steps=1", "loss.objective=nll")
    runs.do(recipe, *tiny_rate, "train.eval_every=1", "loss.uncond_ratio=0")
    (line,) = runs.metrics(tmp_path / "run" / "train")
    # All 12 held-out images in one step of "training" on that split.
    other = tmp_path / "other"
    runs.do(
        recipe,
        *tiny_rate,
        f"run.dir={other}",
        "data.train_split=heldout",
        "loss.uncond_ratio=0",
        "train.batch_size=12",
        "train.micro_batch_size=12",
    )
    (expected,) = runs.metrics(other / "train")
    assert line["heldout_nll"] == pytest.approx(expected["loss"], abs=1e-5)


def test_control_trains_beside_on_the_same_rows(recipe: Path, tmp_path: Path):
    runs.do(recipe, "train.control=true", "train.max_steps=2")
    control = runs.metrics(tmp_path / "run" / "control")
    ours = runs.metrics(tmp_path / "run" / "train")
    assert set(control[0]) == {"step", "loss", "grad_norm", "learning_rate"}
    assert "positive_gap" in ours[0]
    assert [x["learning_rate"] for x in control] == [x["learning_rate"] for x in ours]
    trained = weights(tmp_path / "run" / "control" / "model")
    assert any(
        not torch.equal(x, weights(tmp_path / "run" / "train" / "model")[name])
        for name, x in trained.items()
    )


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


def config(**changes: object) -> TrainConfig:
    values = {"max_steps": 10, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 2.0}
    return TrainConfig(**(values | changes))


def test_cosine_schedule_by_hand():
    rates = [training.learning_rate(step, config(warmup_steps=2)) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1.0)  # half of the 8 steps after the warm-up
    assert rates[4] == pytest.approx(1 + math.sqrt(0.5))
    assert rates[9] == pytest.approx(1 + math.cos(7 / 8 * math.pi))
    assert training.learning_rate(10, config(warmup_steps=2)) == pytest.approx(0.0, abs=1e-12)


def test_constant_schedule_by_hand():
    rates = [
        training.learning_rate(s, config(schedule="constant", warmup_steps=4)) for s in range(10)
    ]
    assert rates == [0.5, 1.0, 1.5] + [2.0] * 7


def test_warmup_as_long_as_the_run():
    rates = [training.learning_rate(step, config(warmup_steps=10)) for step in range(10)]
    assert rates == pytest.approx([0.2 * (i + 1) for i in range(10)])


def test_only_the_newest_checkpoints_stay_without_the_image_tokenizer(recipe: Path, tmp_path: Path):
    runs.do(recipe)
    folder = tmp_path / "run" / "train"
    names = [path.name for path in checkpoint.checkpoints(folder / "checkpoints")]
    assert names == ["step-00000003", "step-00000004"]
    saved = load_file(newest(folder) / "model.safetensors")
    assert saved
    assert not [name for name in saved if "vqmodel" in name]
    assert [name for name in weights(folder / "model") if "vqmodel" in name]


def test_the_image_tokenizer_is_not_trained(recipe: Path, tmp_path: Path, tiny_folder: Path):
    runs.do(recipe, "train.learning_rate=0.01", "train.weight_decay=0.1")
    before, after = weights(tiny_folder), weights(tmp_path / "run" / "train" / "model")
    frozen = [name for name in before if "vqmodel" in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before)


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
    file = newest(stopped) / "model.safetensors"
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=re.escape(lost)) as caught:
        runs.do(recipe)
    assert "Delete that folder to go on from the one before" in str(caught.value)


def test_torn_checkpoint_can_be_deleted(recipe: Path, stopped: Path):
    file = newest(stopped) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="can't be loaded"):
        runs.do(recipe)
    shutil.rmtree(newest(stopped))
    runs.do(recipe)
    assert [line["step"] for line in runs.metrics(stopped)] == [0, 1, 2, 3]


def test_half_written_checkpoint_and_metrics_are_passed_over(recipe: Path, stopped: Path):
    (stopped / "checkpoints" / "step-00000009.partial").mkdir()
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 1.0, "tokens_per_second": 1}\n{"step": 3, "lo')
    runs.do(recipe)
    lines = runs.metrics(stopped)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[2]["loss"] != 1.0


def test_train_before_prepare(recipe: Path, tmp_path: Path):
    with pytest.raises(UserError, match="mm-cca prepare"):
        runs.do(recipe, f"run.tokens_dir={tmp_path / 'none'}", stages=["train"])
