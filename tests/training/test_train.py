"""The training loop: metrics, bit-exact continuation, micro-batches, and what it refuses."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import mm_cca.training.train as training
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.manifest import read_manifest
from mm_cca.sampling.weights import load_source
from mm_cca.training import setup as training_setup
from mm_cca.training import validation
from mm_cca.training.reference import RefScores
from tests.support import runs
from tests.support.training import at, head_of, newest, schedule_of, weights


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
def test_a_nan_loss_is_refused_at_the_first_step(tiny_folder: Path, tmp_path: Path, objective: str):
    """Of finite weights, as those that are not are refused before."""
    model = tmp_path / "poisoned"
    shutil.copytree(tiny_folder, model)
    tensors = load_file(model / "model.safetensors")
    tensors[head_of(tensors)][:] = 3e38
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
    class Other(training_setup.CopyReference):
        def scores(self, batch):
            found = super().scores(batch)
            return RefScores(found.logps - 0.5, found.per_code)

    monkeypatch.setattr(training_setup, "CopyReference", Other)
    with pytest.raises(UserError, match=r"differ by up to 0\.5 nats"):
        runs.do(recipe)


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

    monkeypatch.setattr(validation, "heldout_nll", scripted)
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


def test_the_image_tokenizer_is_not_trained(recipe: Path, tmp_path: Path, tiny_folder: Path):
    runs.do(recipe, "train.learning_rate=0.01", "train.weight_decay=0.1")
    before, after = weights(tiny_folder), weights(tmp_path / "run" / "train" / "model")
    frozen = [name for name in before if "vqmodel" in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before)
