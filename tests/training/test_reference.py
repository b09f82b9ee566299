"""The reference is the model before training, and stays it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_cca.adapters.base import UnifiedModel
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs, Scored
from mm_cca.modeling.lora import attach_lora
from mm_cca.training.collate import MicroBatch
from mm_cca.training.reference import CopyReference, LoraReference, Reference
from tests.support import runs
from tests.support.closeness import assert_close

GRID = (4, 4)


def _batch(model: UnifiedModel) -> MicroBatch:
    """One image, its own prompt and another."""
    ids = model.prompt_ids(["red owl, noto style", "small waving hand"], GRID)
    codes = torch.randint(32, (1, 16), generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    none = torch.zeros(1, dtype=torch.bool)
    unconditional = left_pad([model.unconditional_ids(ids[0], GRID)], model.pad_id)
    return MicroBatch(0, 1, left_pad(ids, model.pad_id), codes, none, none, unconditional)


@pytest.mark.parametrize("kind", [CopyReference, LoraReference])
def test_gap_is_zero_at_the_start_and_the_reference_never_moves(
    tiny_model: UnifiedModel, kind: Callable[[CodeLogProbs], Reference]
):
    if kind is LoraReference:
        attach_lora(tiny_model, rank=4, alpha=8)
    policy = CodeLogProbs(tiny_model, tiny_model.layout(GRID), whole_vocabulary=False)
    policy.train()
    reference = kind(policy)
    batch = _batch(tiny_model)
    before = reference.scores(batch)
    states = reference.base_states(batch, conditional=True)
    assert_close(
        policy(batch.prompts.ids, batch.prompts.mask, batch.codes).logps.detach(), before.logps, 0
    )
    assert not before.logps.requires_grad

    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        policy(batch.prompts.ids, batch.prompts.mask, batch.codes).logps.sum().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = policy(batch.prompts.ids, batch.prompts.mask, batch.codes).logps.detach()
    assert (moved - before.logps).abs().max() > 1e-3
    assert_close(reference.scores(batch).logps, before.logps, 0)
    again = reference.base_states(batch, conditional=True)
    assert_close(again.conditional, states.conditional, 0)
    assert_close(again.unconditional, states.unconditional, 0)


def test_only_the_lora_trains_and_it_leaves_the_tokenizer_alone(tiny_model: UnifiedModel):
    attach_lora(tiny_model, rank=4, alpha=8)
    trained = [n for n, p in tiny_model.module.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("vqmodel" in name for name in trained)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained} == set(
        tiny_model.lora_targets()
    )


def test_full_tuning_trains_everything_but_the_tokenizer(tiny_model: UnifiedModel):
    frozen = {n for n, p in tiny_model.module.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("vqmodel" in name for name in frozen)


@pytest.mark.parametrize(
    ("objective", "prompts", "base_passes"),
    [("nll", 1, 0), ("cca", 2, 1), ("cca_code", 1, 2), ("gft", 1, 1), ("cca_code + gft", 1, 2)],
)
def test_a_step_makes_one_pass_of_the_model(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, objective: str, prompts: int, base_passes: int
):
    """Prompts per image in the model's single pass, and passes of the frozen base beside it."""
    passes: list[tuple[bool, int]] = []
    forward = CodeLogProbs.forward

    def counted(self: CodeLogProbs, ids: torch.Tensor, *args: Any, **more: Any) -> Scored:
        passes.append((torch.is_grad_enabled(), len(ids)))
        return forward(self, ids, *args, **more)

    monkeypatch.setattr(CodeLogProbs, "forward", counted)
    runs.do(recipe, f"loss.objective={objective}", "train.max_steps=1")
    config = runs.load_recipe(recipe).train
    steps = config.batch_size // config.micro_batch_size
    assert [rows for grad, rows in passes if grad] == [prompts * config.micro_batch_size] * steps
    assert sum(not grad for grad, _ in passes) == base_passes * steps


def test_a_copy_shares_frozen_parts_and_rounds_its_layers_as_autocast_does(
    tiny_model: UnifiedModel,
):
    policy = CodeLogProbs(tiny_model, tiny_model.layout(GRID), whole_vocabulary=False)
    copies = [CopyReference(policy, half=half) for half in (None, torch.bfloat16)]
    batch = _batch(tiny_model)
    with torch.autocast("cpu", torch.bfloat16):
        whole, rounded = (copy.scores(batch) for copy in copies)
        states = [copy.base_states(batch, conditional=True) for copy in copies]
    assert torch.equal(whole.per_code, rounded.per_code)
    assert torch.equal(states[0].conditional, states[1].conditional)
    inner = copies[1]._frozen.module
    assert inner.model.vqmodel is tiny_model.module.model.vqmodel
    assert inner.model.text_model is not tiny_model.module.model.text_model
    assert inner.lm_head.weight.dtype == torch.float32
    projection = inner.model.text_model.layers[0].mlp.up_proj.weight
    assert projection.dtype == torch.bfloat16
    assert tiny_model.module.model.text_model.layers[0].mlp.up_proj.weight.dtype == torch.float32
