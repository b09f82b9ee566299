"""Runs on a quantised base: resumed, sampled, exported; and recipes that are refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from transformers import Emu3ForConditionalGeneration

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.cli.commands.export import export_model
from mm_cca.config.stage_keys import training_settings
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.runs.folder import open_run
from mm_cca.sampling.weights import load_merged, load_source
from mm_cca.training.setup import _refuse_sharded_kinds
from tests.support import runs
from tests.support.training import at, interrupted

QLORA = ["model.quantization=nf4", "train.tuning=lora", "train.reference=lora"]
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")


@torch.no_grad()
def logps(model: UnifiedModel) -> torch.Tensor:
    grid = grid_of(model, [16, 16])
    policy = CodeLogProbs(model, model.layout(grid), whole_vocabulary=False).eval()
    prompts = left_pad(model.prompt_ids(["red owl", "blue house"], grid), model.pad_id)
    codes = torch.arange(32).view(2, 16) % model.codebook_size
    return policy(*prompts, codes).per_code


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("more", [[], ["train.optimizer=paged_adamw_8bit",
                                       "train.gradient_checkpointing=true"]])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_resumed_bit_for_bit(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, more: list[str]
):
    keys = [*QLORA, f"model.quantization={kind}", *more]
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    runs.do(at(prepared, tmp_path / "whole"), *keys)
    path = at(prepared, tmp_path / "stopped")
    interrupted(path, monkeypatch, *keys)
    runs.do(path, *keys)
    stopped, whole = (tmp_path / n / "run" / "train" for n in ("stopped", "whole"))
    lines = runs.metrics(whole)
    assert runs.metrics(stopped) == lines
    assert lines[0]["kl"] < 1e-6, "model and reference are one at the start"
    name = "adapter_model.safetensors"
    assert (stopped / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


@pytest.mark.parametrize("lora", [[], ["train.lora_dora=true"], ["train.lora_rslora=true"]])
def test_the_export_is_the_model_that_was_sampled(recipe: Path, tmp_path: Path, lora: list[str]):
    """Merged, it is a plain folder in the base's dtype whose log-probabilities are the run's."""
    keys = [*QLORA, *lora, "train.learning_rate=0.05"]
    runs.do(recipe, *keys)
    loaded, run = open_run(tmp_path / "run")
    tuned, base = load_source(loaded, run, "cca"), load_source(loaded, run, "base")
    expected = logps(tuned)
    assert (expected - logps(base)).abs().max() > 0.05
    merged = logps(load_merged(loaded, run, "cca"))
    assert torch.allclose(merged, expected, atol=1e-4), (merged - expected).abs().max()
    export_model(tmp_path / "run", tmp_path / "merged", merge=True)
    plain = Emu3ForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert plain.dtype == torch.float32
    assert "quantization_config" not in plain.config.to_dict()
    again = type(tuned).load(str(tmp_path / "merged"), torch.float32, None)  # type: ignore[attr-defined]
    assert torch.allclose(logps(again), expected, atol=1e-4)


def test_all_stages(recipe: Path, tmp_path: Path):
    keys = [*QLORA, "train.reference=cached", "sample.dial=[0.5]"]
    runs.do(recipe, *keys, stages=["prepare", "train", "sample", "eval", "report"])
    assert (tmp_path / "run" / "report.html").exists()


def test_a_run_without_quantisation_has_no_new_settings(recipe: Path):
    assert "model.quantization" not in training_settings(runs.load_recipe(recipe))
    assert training_settings(runs.load_recipe(recipe, *QLORA))["model.quantization"] == "nf4"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["model.quantization=nf4"], "null with train.tuning=full"),
        (["model.quantization=int8", "train.tuning=lora"], "lora or cached with model.quant"),
        ([*QLORA, "train.compile=true"], "false with model.quantization=nf4"),
        (["model.quantization=fp4"], "nf4, int8, or null"),
        (["train.tuning=lora", "train.lora_dora=true", "sample.dial=[0.5]"], "a DoRA has no scale"),
        (["train.tuning=lora", "train.lora_targets=['q(']"], "regular expressions"),
        (["train.lora_dropout=1"], "train.lora_dropout"),
    ],
)
def test_what_does_not_go_together(recipe: Path, keys: list[str], words: str):
    assert words in runs.message_of(recipe, *keys)


def test_other_quantisation_is_another_training(recipe: Path, tmp_path: Path):
    runs.do(recipe, *QLORA)
    with pytest.raises(UserError, match=r"model\.quantization"):
        runs.do(recipe, *QLORA, "model.quantization=int8")


@pytest.mark.parametrize(
    "keys", [QLORA, ["train.optimizer=adafactor"], ["train.tuning=lora", "train.lora_dora=true"]]
)
@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_what_is_not_sharded(recipe: Path, kind: DistributedType, keys: list[str]):
    accelerator: Any = SimpleNamespace(distributed_type=kind)
    with pytest.raises(UserError, match=r"with (FSDP|DeepSpeed), which shards plain weights"):
        _refuse_sharded_kinds(runs.load_recipe(recipe, *keys), accelerator)
    _refuse_sharded_kinds(runs.load_recipe(recipe), accelerator)
