"""The frozen model that gaps are measured from: a copy, or the same weights without the LoRA.

Shapes: M rows, B pairs, N codes, see ``collate.py``.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from peft import PeftModel

from mm_cca.modeling.guidance import Teacher
from mm_cca.modeling.logprobs import CodeLogProbs, Scored
from mm_cca.training.collate import MicroBatch


@dataclass(frozen=True)
class RefScores:
    """The reference's log-probabilities of a micro-batch.

    Attributes:
        logps: [M] float32 log p_ref(image | prompt).
        per_code: [M, N] the same per code; None if only sums were cached.
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
        # The head has no LoRA, so the model's own is used.
        return Teacher(*_teacher_states(self._policy, batch, self._switched_off), scale)


Context = Callable[[], AbstractContextManager[None]]


@torch.no_grad()
def live_scores(policy: CodeLogProbs, batch: MicroBatch, frozen: Context) -> RefScores:
    """One forward pass of the frozen model."""
    with frozen():
        scored: Scored = policy(batch.prompts.ids, batch.prompts.mask, batch.codes)
    return RefScores(scored.logps, scored.per_code)


@torch.no_grad()
def _teacher_states(
    policy: CodeLogProbs, batch: MicroBatch, frozen: Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, N, D] hidden states with the own prompts, and with the unconditional prompts."""
    assert batch.unconditional is not None, "Collator needs with_unconditional=True"
    count = batch.num_pairs
    ids, mask = (rows[:count] for rows in batch.prompts)
    codes = batch.codes[:count]
    with frozen():
        cond: Scored = policy(ids, mask, codes, only_states=True)
        uncond: Scored = policy(
            batch.unconditional.ids, batch.unconditional.mask, codes, only_states=True
        )
    assert cond.states is not None
    assert uncond.states is not None
    return cond.states, uncond.states
