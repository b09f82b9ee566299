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

from mm_cca.modeling.guidance import BaseStates
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

    def base_states(self, batch: MicroBatch, *, conditional: bool) -> BaseStates:
        """Its distributions along the images; given the captions too if ``conditional``."""
        ...


class CopyReference:
    """A frozen copy of the model, made before training."""

    def __init__(self, policy: CodeLogProbs) -> None:
        self._frozen = copy.deepcopy(policy).eval().requires_grad_(False)

    def scores(self, batch: MicroBatch) -> RefScores:
        return live_scores(self._frozen, batch, nullcontext)

    def base_states(self, batch: MicroBatch, *, conditional: bool) -> BaseStates:
        head = self._frozen.model.image_head()
        states = _base_states(self._frozen, batch, nullcontext, conditional=conditional)
        return states.with_head(head.weight, head.bias)


class LoraReference:
    """The policy's own weights with the adapter switched off: no second copy."""

    def __init__(self, policy: CodeLogProbs) -> None:
        assert isinstance(policy.module, PeftModel), "attach_lora comes first"
        self._policy = policy
        self._switched_off = policy.module.disable_adapter

    def scores(self, batch: MicroBatch) -> RefScores:
        return live_scores(self._policy, batch, self._switched_off)

    def base_states(self, batch: MicroBatch, *, conditional: bool) -> BaseStates:
        # The head has no LoRA, so the model's own is used.
        return _base_states(self._policy, batch, self._switched_off, conditional=conditional)


Context = Callable[[], AbstractContextManager[None]]


@torch.no_grad()
def live_scores(policy: CodeLogProbs, batch: MicroBatch, frozen: Context) -> RefScores:
    """One forward pass of the frozen model."""
    with frozen():
        scored: Scored = policy(batch.prompts.ids, batch.prompts.mask, batch.codes)
    return RefScores(scored.logps, scored.per_code)


@torch.no_grad()
def _base_states(
    policy: CodeLogProbs, batch: MicroBatch, frozen: Context, *, conditional: bool
) -> BaseStates:
    """Hidden states with the unconditional prompts and, where asked for, with the own captions."""
    assert batch.unconditional is not None, "Collator needs with_unconditional=True"
    count = batch.num_pairs
    codes = batch.codes[:count]

    def states(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scored: Scored = policy(ids, mask, codes, only_states=True)
        assert scored.states is not None
        return scored.states

    with frozen():
        own = states(batch.prompts.ids[:count], batch.prompts.mask[:count]) if conditional else None
        return BaseStates(own, states(batch.unconditional.ids, batch.unconditional.mask))
