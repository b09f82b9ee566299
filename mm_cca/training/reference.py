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
from torch import nn

from mm_cca.modeling.guidance import BaseStates
from mm_cca.modeling.logprobs import CodeLogProbs, Scored
from mm_cca.modeling.lora import without_lora
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


Context = Callable[[], AbstractContextManager[None]]


class CopyReference:
    """A frozen copy of the model, made before training.

    It shares what is never trained (image tokenizer, vision tower).

    Args:
        policy: of the base.
        half: what autocast computes linear layers in; their weights are kept so, which changes
            nothing but their memory. None without autocast.
        compiled: as the model itself is.
    """

    def __init__(
        self, policy: CodeLogProbs, *, half: torch.dtype | None = None, compiled: bool = False
    ) -> None:
        shared = {id(part): part for part in policy.model.frozen()}
        self._frozen = copy.deepcopy(policy, shared).eval().requires_grad_(False)
        if half is not None:
            _keep_in_half(self._frozen, half)
        if compiled:  # which a copy never is by itself
            self._frozen.model.compile()

    def scores(self, batch: MicroBatch) -> RefScores:
        return live_scores(self._frozen, batch, nullcontext)

    def base_states(self, batch: MicroBatch, *, conditional: bool) -> BaseStates:
        head = self._frozen.model.image_head()
        states = _base_states(self._frozen, batch, nullcontext, conditional=conditional)
        return states.with_head(head.weight, head.bias)


def _keep_in_half(policy: CodeLogProbs, dtype: torch.dtype) -> None:
    """Round the weights of all linear layers but the heads, which are computed as they are."""
    model = policy.model
    heads = model.image_head(whole_vocabulary=True).weight, model.text_head().weight
    # Addresses of the data would all be 0 in a simulated step.
    kept = {weight.untyped_storage()._cdata for weight in heads}
    kept |= {id(layer) for part in model.frozen() for layer in part.modules()}
    for layer in policy.module.modules():
        if isinstance(layer, nn.Linear) and kept.isdisjoint(
            (id(layer), layer.weight.untyped_storage()._cdata)
        ):
            # Not layer.to, which can't replace the weights of a simulated step.
            for name, weight in list(layer.named_parameters(recurse=False)):
                half = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
                setattr(layer, name, half)


class LoraReference:
    """The policy's own weights with the adapter switched off: no second copy."""

    def __init__(self, policy: CodeLogProbs) -> None:
        assert isinstance(policy.module, PeftModel), "attach_lora comes first"
        self._policy = policy
        module = policy.module
        self._switched_off: Context = lambda: without_lora(module)

    def scores(self, batch: MicroBatch) -> RefScores:
        return live_scores(self._policy, batch, self._switched_off)

    def base_states(self, batch: MicroBatch, *, conditional: bool) -> BaseStates:
        # The head has no LoRA, so the model's own is used.
        return _base_states(self._policy, batch, self._switched_off, conditional=conditional)


@torch.no_grad()
def live_scores(policy: CodeLogProbs, batch: MicroBatch, frozen: Context) -> RefScores:
    """One forward pass of the frozen model."""
    with frozen():
        scored: Scored = policy(batch.prompts.ids, batch.prompts.mask, batch.codes, grid=batch.grid)
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
        scored: Scored = policy(ids, mask, codes, only_states=True, grid=batch.grid)
        assert scored.states is not None
        return scored.states

    with frozen():
        own = states(batch.prompts.ids[:count], batch.prompts.mask[:count]) if conditional else None
        return BaseStates(own, states(batch.unconditional.ids, batch.unconditional.mask))
