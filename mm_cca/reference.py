"""The frozen model that gaps are measured from: a copy, the same weights without LoRA, a file.

Shapes: M rows, B pairs, N codes, see ``collate.py``.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mm_cca.adapters.base import UnifiedModel
from mm_cca.collate import MicroBatch
from mm_cca.guided_kl import Teacher
from mm_cca.logprobs import CodeLogProbs, Scored


@dataclass(frozen=True)
class RefScores:
    """What the reference says of a micro-batch.

    Attributes:
        logps: [M] float32 log p_ref(image | prompt).
        per_code: [M, N] the same code by code; None where only sums were kept.
    """

    logps: torch.Tensor
    per_code: torch.Tensor | None


class Reference(Protocol):
    """The frozen model, without a gradient."""

    def scores(self, batch: MicroBatch) -> RefScores:
        """log p_ref of every row of the micro-batch."""
        ...

    def teacher(self, batch: MicroBatch, scale: float) -> Teacher:
        """Its guided distributions along the images, for distillation."""
        ...


class CopyReference:
    """A second copy of the model as it is now."""

    def __init__(self, policy: CodeLogProbs) -> None:
        self._frozen = copy.deepcopy(policy).eval().requires_grad_(False)

    def scores(self, batch: MicroBatch) -> RefScores:
        return live_scores(self._frozen, batch, nullcontext)

    def teacher(self, batch: MicroBatch, scale: float) -> Teacher:
        cond, uncond = _teacher_states(self._frozen, batch, nullcontext)
        head = self._frozen.model.image_head()
        return Teacher(cond, uncond, scale, head.weight, head.bias)


class LoraReference:
    """The policy's own weights with the adapter switched off: no second copy."""

    def __init__(self, policy: CodeLogProbs) -> None:
        assert isinstance(policy.module, PeftModel), "attach_lora comes first"
        self._policy = policy
        self._switched_off = policy.module.disable_adapter

    def scores(self, batch: MicroBatch) -> RefScores:
        return live_scores(self._policy, batch, self._switched_off)

    def teacher(self, batch: MicroBatch, scale: float) -> Teacher:
        # No LoRA sits on the head, so the model's own serves.
        return Teacher(*_teacher_states(self._policy, batch, self._switched_off), scale)


Context = Callable[[], AbstractContextManager[None]]


@torch.no_grad()
def live_scores(policy: CodeLogProbs, batch: MicroBatch, frozen: Context) -> RefScores:
    """One forward pass of the frozen model."""
    with frozen():
        scored: Scored = policy(*batch.prompts, batch.codes)
    return RefScores(scored.logps, scored.per_code)


@torch.no_grad()
def _teacher_states(
    policy: CodeLogProbs, batch: MicroBatch, frozen: Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, N, D] hidden states with the own prompts, and with prompts that say nothing."""
    assert batch.blanks is not None, "the collator was not asked for blanks"
    count = batch.num_pairs
    ids, mask = (rows[:count] for rows in batch.prompts)
    codes = batch.codes[:count]
    with frozen():
        cond: Scored = policy(ids, mask, codes, only_states=True)
        uncond: Scored = policy(*batch.blanks, codes, only_states=True)
    assert cond.states is not None
    assert uncond.states is not None
    return cond.states, uncond.states


def attach_lora(model: UnifiedModel, *, rank: int, alpha: int) -> None:
    """Put a fresh LoRA on the layers that the adapter names; everything else is frozen."""
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=model.lora_targets()
    )
    # The frozen image tokenizer has linear layers too; peft matches names, so it is excluded here.
    inside = {id(layer) for part in model.frozen() for layer in part.modules()}
    config.exclude_modules = [n for n, m in model.module.named_modules() if id(m) in inside]
    model.module = get_peft_model(model.module, config)  # type: ignore[arg-type]


def write_trained(
    model: UnifiedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """A LoRA as peft's own files, anything else as the adapter's plain checkpoint folder.

    ``weights`` stand in for the module's own where those are sharded over ranks.
    """
    if isinstance(model.module, PeftModel):
        model.module.save_pretrained(str(folder), state_dict=weights)
    else:
        model.save(folder, weights)
