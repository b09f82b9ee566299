"""train.optimizer: each trains, resumes bit for bit, and keeps the state that the plan counts."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mm_cca.config.schema_train import OPTIMIZERS
from mm_cca.config.stage_keys import training_settings
from mm_cca.errors import UserError
from mm_cca.training.optimizer import IN_BITSANDBYTES, new_optimizer, state_bytes
from tests.support import runs
from tests.support.training import assert_same_training, at, interrupted, newest

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
LORA = ["train.tuning=lora", "train.reference=lora", "train.lora_rank=64"]
"""Of this rank the matrices have 4,096 and more elements, from which moments are in 8 bits."""


def test_the_names_are_those_of_the_key(recipe: Path):
    for name in OPTIMIZERS:
        assert runs.load_recipe(recipe, f"train.optimizer={name}").train.optimizer == name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_as_large_as_counted(recipe: Path, name: str):
    """Weights of several shapes; what is not a tensor of moments or scales is left out."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(100, 90), nn.Linear(90, 7), nn.LayerNorm(7))
    config = runs.load_recipe(recipe, f"train.optimizer={name}").train
    optimizer = new_optimizer(policy, config)
    policy(torch.randn(3, 100)).square().sum().backward()
    optimizer.step()
    for parameter in policy.parameters():
        kept = sum(
            value.numel() * value.element_size()
            for key, value in optimizer.state[parameter].items()
            if isinstance(value, torch.Tensor) and value.ndim and not key.startswith("qmap")
        )
        assert kept == state_bytes(parameter.shape, name)


def test_weight_decay_is_on_matrices_only(recipe: Path):
    for name in OPTIMIZERS:
        config = runs.load_recipe(recipe, f"train.optimizer={name}", "train.weight_decay=0.5").train
        groups = new_optimizer(nn.Linear(3, 2), config).param_groups
        found = {parameter.ndim: group["weight_decay"] for group in groups
                 for parameter in group["params"]}  # fmt: skip
        assert found == {2: 0.5, 1: 0.0}, name


def test_adamw_in_8_bits_moves_as_adamw_does(recipe: Path):
    """The update of a step is the same up to the rounding of its moments."""
    moved = {}
    for name in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        layer = nn.Linear(256, 64, bias=False)
        before = layer.weight.detach().clone()
        optimizer = new_optimizer(layer, runs.load_recipe(recipe, f"train.optimizer={name}").train)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.randn(8, 256)).square().sum().backward()
            optimizer.step()
        moved[name] = layer.weight.detach() - before
    cosine = torch.cosine_similarity(*(m.flatten() for m in moved.values()), dim=0)
    assert 0.99 < float(cosine) < 1.0


@pytest.mark.parametrize("tuning", [[], LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "adamw"])
def test_interrupted_and_resumed_is_bit_for_bit_the_same(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tuning: list[str]
):
    keys = [f"train.optimizer={name}", *tuning]
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    runs.do(at(prepared, tmp_path / "whole"), *keys)
    path = at(prepared, tmp_path / "stopped")
    interrupted(path, monkeypatch, *keys)
    stopped, whole = (tmp_path / n / "run" / "train" for n in ("stopped", "whole"))
    assert newest(stopped).name == "step-00000002"
    runs.do(path, *keys)
    if tuning:
        assert runs.metrics(stopped) == runs.metrics(whole)
        ours, theirs = ((f / "model" / "adapter_model.safetensors").read_bytes()
                        for f in (stopped, whole))  # fmt: skip
        assert ours == theirs
    else:
        assert_same_training(stopped, whole)


def test_a_damaged_state_is_refused(recipe: Path, tmp_path: Path):
    keys = ["train.optimizer=adamw_8bit", "train.stop_after=2"]
    runs.do(recipe, *keys)
    path = newest(tmp_path / "run" / "train") / "optimizer.bin"
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    with pytest.raises(UserError, match=r"optimizer\.bin is not the file that was written"):
        runs.do(recipe, keys[0])


def test_an_old_run_stays_valid_and_another_optimizer_is_another_training(recipe: Path):
    assert "train.optimizer" not in training_settings(runs.load_recipe(recipe))
    other = training_settings(runs.load_recipe(recipe, "train.optimizer=adafactor"))
    assert other["train.optimizer"] == "adafactor"


def test_bad_values(recipe: Path):
    message = runs.message_of(recipe, "train.optimizer=lion")
    assert "train.optimizer" in message
    assert "adamw_8bit" in message


@pytest.mark.parametrize("name", IN_BITSANDBYTES)
def test_without_bitsandbytes_one_sentence(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr("mm_cca.adapters.quantization.find_spec", lambda module: None)
    with pytest.raises(UserError, match=r'pip install "mm-cca\[quantization\]"'):
        runs.do(recipe, f"train.optimizer={name}")
    assert not (tmp_path / "run" / "train").exists()
