"""train.ema: the average of a naive loop, resumed bit for bit, and no influence on training."""

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mm_cca.training.train as training
from mm_cca.cli.commands.prepare import frozen_model
from mm_cca.config.stage_keys import training_settings
from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run
from mm_cca.sampling.weights import load_source
from mm_cca.training import checkpoint, validation
from mm_cca.training.ema import Ema
from tests.support import runs
from tests.support.training import assert_same_training, at, newest

KEPT = "train.keep_checkpoints=9"
EMA = "train.ema=0.75"


def test_three_weights_by_hand():
    layer = nn.Linear(1, 2)
    layer.bias.requires_grad_(False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    ema = Ema(layer, 0.5)
    assert ema.state_dict().keys() == {"weight"}
    for weight, average in ((3.0, 2.0), (4.0, 3.0), (-1.0, 1.0)):
        with torch.no_grad():
            layer.weight.fill_(weight)
        ema.update()
        with ema.applied():
            assert layer.weight.tolist() == [[average], [average]]
        assert layer.weight.tolist() == [[weight], [weight]]


def test_weights_return_even_after_an_error():
    layer = nn.Linear(1, 1, bias=False)
    ema, before = Ema(layer, 0.5), layer.weight.item()
    with torch.no_grad():
        layer.weight.add_(1)
    with contextlib.suppress(RuntimeError), ema.applied():
        assert layer.weight.item() == before
        raise RuntimeError
    assert layer.weight.item() == before + 1


def test_the_average_of_other_weights_is_refused():
    ema = Ema(nn.Linear(1, 1), 0.5)
    with pytest.raises(RuntimeError, match="other weights"):
        ema.load_state_dict({"weight": torch.zeros(1, 1)})


def saved_weights(step: Path) -> dict[str, torch.Tensor]:
    return load_file(step / "model.safetensors")


def saved_average(step: Path) -> dict[str, torch.Tensor]:
    average: dict[str, torch.Tensor] = torch.load(step / "custom_checkpoint_0.pkl")
    return average


def written(run: Path) -> dict[str, torch.Tensor]:
    """The weights that ``train/model`` is loaded with, by their names in checkpoints."""
    recipe, folder = open_run(run)
    module = load_source(recipe, folder, "cca").module
    return {f"module.{name}": value for name, value in module.named_parameters()}


@pytest.mark.parametrize("tuning", [[], ["train.tuning=lora", "train.reference=lora"]])
def test_the_model_is_the_average_of_a_naive_loop(recipe: Path, tmp_path: Path, tuning: list[str]):
    loaded = runs.do(recipe, EMA, KEPT, *tuning)
    steps = checkpoint.checkpoints(tmp_path / "run" / "train" / "checkpoints")
    assert len(steps) == 4
    initial = {f"module.{n}": p for n, p in frozen_model(loaded).module.named_parameters()}
    if tuning:
        # At the start B is 0, which makes a LoRA that changes nothing; A is drawn from train.seed.
        first = {n: x for n, x in saved_weights(steps[0]).items() if "lora_B" in n}
        initial = {name: torch.zeros_like(value) for name, value in first.items()}
    trained = {name for name in saved_average(steps[0]) if name in initial}
    assert len(trained) > 4
    model = written(tmp_path / "run")
    for name in trained:
        average = initial[name].double()
        for step in steps:
            average = 0.75 * average + 0.25 * saved_weights(step)[name].double()
        assert torch.allclose(saved_average(steps[-1])[name].double(), average, rtol=0, atol=1e-6)
        assert torch.equal(model[name], saved_average(steps[-1])[name])
        assert not torch.equal(model[name], saved_weights(steps[-1])[name])
    frozen = saved_average(steps[-1]).keys() ^ saved_weights(steps[-1]).keys()
    assert frozen == set()


def test_it_does_not_change_the_training(prepared: Path, tmp_path: Path):
    """Also with the held-out loss, for which the average is swapped in."""
    for name, keys in (("on", [EMA, "train.eval_every=1"]), ("off", [])):
        (tmp_path / name).mkdir()
        runs.do(at(prepared, tmp_path / name), *keys)
    on, off = (tmp_path / name / "run" / "train" for name in ("on", "off"))
    lines = runs.metrics(on)
    assert all(line.pop("heldout_nll") > 0 for line in lines)
    assert lines == runs.metrics(off)
    ours, theirs = saved_weights(newest(on)), saved_weights(newest(off))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not list(newest(off).glob("custom*"))


def test_interrupted_and_resumed_is_bit_for_bit_the_same(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    runs.do(at(prepared, tmp_path / "whole"), EMA)
    path = at(prepared, tmp_path / "stopped")
    real = training.learning_rate

    def stops(step: int, config: object) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return real(step, config)

    with monkeypatch.context() as patch:
        patch.setattr(training, "learning_rate", stops)
        with pytest.raises(KeyboardInterrupt):
            runs.do(path, EMA)
    runs.do(path, EMA)
    whole, stopped = (tmp_path / name / "run" / "train" for name in ("whole", "stopped"))
    assert_same_training(stopped, whole)
    ours, theirs = saved_average(newest(stopped)), saved_average(newest(whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_best_is_measured_and_kept_as_an_average(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses, seen = iter([3.0, 1.0, 2.0, 4.0]), []

    def measured(accelerator, policy, *_):
        seen.append({n: p.clone() for n, p in policy.named_parameters() if p.requires_grad})
        return next(losses)

    monkeypatch.setattr(validation, "heldout_nll", measured)
    runs.do(recipe, EMA, KEPT, "train.eval_every=1", "train.keep=best")
    steps = checkpoint.checkpoints(tmp_path / "run" / "train" / "checkpoints")
    for weights, step in zip(seen, steps, strict=True):
        average = saved_average(step)
        assert all(torch.equal(value, average[name]) for name, value in weights.items())
    model, best = written(tmp_path / "run"), saved_average(steps[1])
    assert all(torch.equal(model[name], value) for name, value in best.items())


def test_a_run_with_another_decay_is_another_run(recipe: Path):
    runs.do(recipe, EMA, "train.max_steps=1")
    with pytest.raises(UserError, match=r"train.ema: was 0.75, is now 0.5"):
        runs.do(recipe, "train.ema=0.5", "train.max_steps=1")


def test_runs_from_before_the_key_stay_valid(recipe: Path):
    assert "train.ema" not in training_settings(runs.load_recipe(recipe))
    assert training_settings(runs.load_recipe(recipe, EMA))["train.ema"] == 0.75
