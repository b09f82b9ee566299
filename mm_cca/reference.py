"""Log-probabilities under the frozen model: a frozen copy, or the same weights without their LoRA.

Shapes: see ``logprobs.py``.
"""

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mm_cca.adapters.base import UnifiedModel
from mm_cca.logprobs import CodeLogProbs


class Reference(Protocol):
    """log p_ref of images given prompts, without a gradient."""

    def __call__(
        self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, codes: torch.Tensor
    ) -> torch.Tensor:
        """Same arguments and result as ``CodeLogProbs.forward``."""
        ...


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


class CopyReference:
    """A second copy of the model as it is now."""

    def __init__(self, policy: CodeLogProbs) -> None:
        self._frozen = copy.deepcopy(policy).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(
        self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, codes: torch.Tensor
    ) -> torch.Tensor:
        logps: torch.Tensor = self._frozen(prompt_ids, prompt_mask, codes)
        return logps


class LoraReference:
    """The policy's own weights with the adapter switched off: no second copy."""

    def __init__(self, policy: CodeLogProbs) -> None:
        assert isinstance(policy.module, PeftModel), "attach_lora comes first"
        self._policy = policy
        self._peft = policy.module

    def _switched_off(self) -> AbstractContextManager[None]:
        return self._peft.disable_adapter()

    @torch.no_grad()
    def __call__(
        self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, codes: torch.Tensor
    ) -> torch.Tensor:
        with self._switched_off():
            logps: torch.Tensor = self._policy(prompt_ids, prompt_mask, codes)
        return logps
