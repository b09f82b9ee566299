"""Dropout, rank-stabilised LoRA, DoRA and own targets: as in peft, exact, and merged right."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.cli.commands.export import export_model
from mm_cca.config.stage_keys import training_settings
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.lora import attach_lora, dial_lora, without_lora
from mm_cca.runs.folder import open_run
from mm_cca.sampling.weights import load_source
from tests.support import runs
from tests.support.training import at, interrupted

LORA = ["train.tuning=lora", "train.reference=lora"]
DROPOUT, RSLORA, DORA = "train.lora_dropout=0.3", "train.lora_rslora=true", "train.lora_dora=true"


def policy_of(model: UnifiedModel) -> CodeLogProbs:
    layout = model.layout(grid_of(model, [16, 16]))
    return CodeLogProbs(model, layout, whole_vocabulary=False)


def logps(policy: CodeLogProbs) -> torch.Tensor:
    model = policy.model
    grid = grid_of(model, [16, 16])
    prompts = left_pad(model.prompt_ids(["red owl", "blue house"], grid), model.pad_id)
    codes = torch.arange(32).view(2, 16) % model.codebook_size
    return policy(*prompts, codes).per_code


def saved(run: Path) -> bytes:
    return (run / "train" / "model" / "adapter_model.safetensors").read_bytes()


def config_of(run: Path) -> dict[str, object]:
    return json.loads((run / "train" / "model" / "adapter_config.json").read_text())


@pytest.mark.parametrize("keys", [[DROPOUT], [RSLORA], [DORA], [DROPOUT, DORA]], ids="+".join)
def test_resumed_and_checkpointed_is_bit_for_bit_the_same(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: list[str]
):
    """Masks of dropout go on where they stopped, and are drawn again when activations are
    recomputed."""
    for name in ("whole", "stopped", "checkpointed"):
        (tmp_path / name).mkdir()
    keys = [*LORA, *keys]
    runs.do(at(prepared, tmp_path / "whole"), *keys)
    runs.do(at(prepared, tmp_path / "checkpointed"), *keys, "train.gradient_checkpointing=true")
    path = at(prepared, tmp_path / "stopped")
    interrupted(path, monkeypatch, *keys)
    runs.do(path, *keys)
    whole = tmp_path / "whole" / "run"
    for name in ("stopped", "checkpointed"):
        assert runs.metrics(tmp_path / name / "run" / "train") == runs.metrics(whole / "train")
        assert saved(tmp_path / name / "run") == saved(whole), name


def test_dropout_is_off_in_the_reference_and_in_evaluation(tiny_model: UnifiedModel):
    torch.manual_seed(0)
    attach_lora(tiny_model, rank=2, alpha=4, dropout=0.5)
    policy = policy_of(tiny_model)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        policy.train()
        assert not torch.equal(logps(policy), logps(policy))
        assert isinstance(tiny_model.module, PeftModel)
        with without_lora(tiny_model.module):
            frozen = logps(policy)
            assert torch.equal(frozen, logps(policy))
        policy.eval()
        assert torch.equal(logps(policy), logps(policy))
        with without_lora(tiny_model.module):
            assert torch.equal(logps(policy), frozen)


def test_the_held_out_loss_has_no_dropout(recipe: Path, tmp_path: Path):
    """At rate 0 nothing is learned, so it is that of the base, which dropout would change."""
    keys = [*LORA, "train.eval_every=1", "train.learning_rate=1e-12"]
    runs.do(recipe, *keys, "train.lora_dropout=0.9")
    losses = {line["heldout_nll"] for line in runs.metrics(tmp_path / "run" / "train")}
    assert max(losses) - min(losses) < 1e-6


def scales_of(model: UnifiedModel) -> set[float]:
    layers = [x for x in model.module.modules() if isinstance(x, LoraLayer)]
    assert layers
    return {scale for layer in layers for scale in layer.scaling.values()}


def test_rank_stabilised_scale_is_alpha_by_the_root_of_the_rank(tiny_model: UnifiedModel):
    attach_lora(tiny_model, rank=16, alpha=8, rank_stabilised=True)
    assert scales_of(tiny_model) == {8 / 4}
    assert isinstance(tiny_model.module, PeftModel)
    dial_lora(tiny_model.module, 0.5)
    assert scales_of(tiny_model) == {1.0}


@pytest.mark.parametrize("key", [RSLORA, DORA, DROPOUT])
def test_merged_is_the_model_that_was_trained(recipe: Path, tmp_path: Path, key: str):
    loaded = runs.do(recipe, *LORA, key, "train.learning_rate=0.05")
    _, run = open_run(tmp_path / "run")
    tuned, base = load_source(loaded, run, "cca"), load_source(loaded, run, "base")
    with torch.no_grad():
        expected = logps(policy_of(tuned).eval())
        assert (expected - logps(policy_of(base).eval())).abs().max() > 0.05
        export_model(tmp_path / "run", tmp_path / "merged", merge=True)
        merged = type(base).load(str(tmp_path / "merged"), torch.float32, None)  # type: ignore[attr-defined]
        assert torch.allclose(logps(policy_of(merged).eval()), expected, atol=1e-4)
    name = {RSLORA: "use_rslora", DORA: "use_dora", DROPOUT: "lora_dropout"}[key]
    assert config_of(tmp_path / "run")[name]


def test_a_dora_has_no_dial(recipe: Path, tmp_path: Path):
    loaded = runs.do(recipe, *LORA, DORA)
    _, run = open_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"the dial is 0\.5; allowed for a DoRA .*: 1"):
        load_source(loaded, run, "cca", dial=0.5)
    with pytest.raises(UserError, match=r"the dial is 2; allowed for a DoRA"):
        export_model(tmp_path / "run", tmp_path / "exported", dial=2.0)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], {"q_proj"}),
        ([r"self_attn\.(k|v)_proj"], {"k_proj", "v_proj"}),
        ([r"layers\.1\.mlp\..*_proj", "o_proj"], {"gate_proj", "up_proj", "down_proj", "o_proj"}),
    ],
)
def test_targets_are_the_ends_of_names_that_match(
    tiny_model: UnifiedModel, targets: list[str], expected: set[str]
):
    attach_lora(tiny_model, rank=2, alpha=4, targets=targets)
    tuned = {
        n.split(".lora_A")[0] for n, _ in tiny_model.module.named_parameters() if "lora_A" in n
    }
    assert {name.rsplit(".", 1)[1] for name in tuned} == expected
    if "o_proj" in targets:
        assert {name for name in tuned if "mlp" in name} == {n for n in tuned if ".1.mlp." in n}
    assert not [name for name in tuned if "vqmodel" in name]


def test_a_saved_lora_knows_its_targets(recipe: Path, tmp_path: Path):
    loaded = runs.do(recipe, *LORA, r"train.lora_targets=['self_attn\.q_proj']")
    _, run = open_run(tmp_path / "run")
    names = [
        n for n, _ in load_source(loaded, run, "cca").module.named_parameters() if "lora_" in n
    ]
    assert len(names) == 4
    assert all(".self_attn.q_proj." in name for name in names)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("query", r"'query', which matches no layer .*self_attn\.q_proj"),
        ("lm_head", r"'lm_head', which matches lm_head; allowed: linear layers that are no output"),
        ("norm", r"'norm', which matches .*norm; allowed: linear layers"),
    ],
)
def test_other_targets_are_refused(tiny_model: UnifiedModel, target: str, words: str):
    with pytest.raises(UserError, match=words):
        attach_lora(tiny_model, rank=2, alpha=4, targets=[target])


def test_an_older_run_stays_valid(recipe: Path):
    new = {"lora_dropout", "lora_rslora", "lora_dora", "lora_targets"}
    assert not new & {name.removeprefix("train.") for name in training_settings(
        runs.load_recipe(recipe, *LORA))}  # fmt: skip
    full = training_settings(runs.load_recipe(recipe, DROPOUT, DORA))
    assert not new & {name.removeprefix("train.") for name in full}
    changed = training_settings(runs.load_recipe(recipe, *LORA, DROPOUT, RSLORA, DORA,
                                                 "train.lora_targets=[q_proj]"))  # fmt: skip
    assert new <= {name.removeprefix("train.") for name in changed}
