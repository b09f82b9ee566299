"""Training in fp16, by accelerate's own code, on a CPU, where it must be switched on by hand."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from mm_cca.config.schema import TrainConfig
from mm_cca.errors import Diverged
from mm_cca.training import accelerator as accelerators
from mm_cca.training import train
from tests.support import runs

FP16 = ("train.mixed_precision=fp16", "train.save_every=100", "train.tuning=lora")
LORA = ("train.reference=lora", "train.lora_rank=2")


def fp16_from(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate sets itself up on a GPU, with another first loss scale."""

    def new(config: TrainConfig, folder: Path) -> Accelerator:
        made = accelerators.new_accelerator(config, folder)
        made.native_amp = True
        made.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return made

    monkeypatch.setattr(train, "new_accelerator", new)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_steps_whose_scaled_gradients_overflow_are_left_out(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    """The scale is halved until they fit; training then goes on."""
    fp16_from(2.0**16, monkeypatch)
    runs.do(recipe, *FP16, *LORA, "train.max_steps=12", stages=["train"])
    folder = recipe.parent / "run" / "train"
    norms = [line["grad_norm"] for line in runs.metrics(folder)]
    lost = [norm is None for norm in norms]
    assert lost[0]
    assert not lost[-1]
    assert lost == sorted(lost, reverse=True), "lost ones come first"
    assert all(math.isfinite(norm) for norm in norms if norm is not None)
    trained = weights(folder / "model")
    assert all(torch.isfinite(weight).all() for weight in trained.values())
    assert any(weight.abs().max() > 0 for name, weight in trained.items() if "lora_B" in name)


def test_gradients_that_are_too_large_by_themselves_stop_it(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    fp16_from(1.0, monkeypatch)
    monkeypatch.setattr(
        Accelerator, "clip_grad_norm_", lambda self, parameters, norm: torch.tensor(torch.inf)
    )
    with pytest.raises(Diverged, match="the gradient norm inf"):
        runs.do(recipe, *FP16, *LORA, "train.max_steps=2", stages=["train"])
