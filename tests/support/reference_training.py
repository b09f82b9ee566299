"""The training step that reference implementations take, written naively: what ours is measured by.

Two whole copies of the model, prompts padded on the left with a mask, and the logits of every
position over the whole vocabulary, as thu-ml/CCA and TRL's DPO compute them. Objectives that they
lack are written in the same way. Shapes: B images, N codes, L tokens of a row, V rows of the head.
"""

import copy

import torch
import torch.nn.functional as F

from mm_cca.adapters.base import ImageLayout, UnifiedModel
from mm_cca.modeling.inputs import PaddedTokens, embed_rows, left_pad, positions


class ReferenceTraining:
    """Losses of one batch from full logits; see the module's docstring."""

    def __init__(self, model: UnifiedModel, layout: ImageLayout, *, beta: float, scale: float):
        self._model = model
        self._layout = layout
        self._beta = beta
        self._scale = scale
        self._frozen = copy.deepcopy(model)
        self._frozen.module.eval().requires_grad_(False)

    def loss(
        self,
        objective: str,
        prompts: list[list[int]],
        unconditional: list[list[int]],
        codes: torch.Tensor,
    ) -> torch.Tensor:
        """The mean loss of a batch.

        Args:
            objective: nll, cca, cca_code or gft.
            prompts: of B images; with cca then as many negative ones.
            unconditional: of B images.
            codes: [B, N].
        """
        if objective == "nll":
            return -self._logps(self._logits(self._model, prompts, codes), codes).mean()
        if objective == "cca":
            return self._cca(prompts, codes.repeat(2, 1))
        with torch.no_grad():
            uncond = self._logits(self._frozen, unconditional, codes)
        theta = self._logits(self._model, prompts, codes)
        image = self._model.image_head(whole_vocabulary=True).row_of_code.to(codes.device)
        if objective == "gft":
            mixed = torch.lerp(uncond[..., image], theta[..., image], 1 / self._scale)
            return F.cross_entropy(mixed.flatten(0, 1), codes.flatten())
        with torch.no_grad():
            cond = self._logits(self._frozen, prompts, codes)
        gap = theta[..., image].log_softmax(-1) - cond[..., image].log_softmax(-1)
        gap = gap / (self._scale - 1)
        own = F.logsigmoid(gap.gather(-1, codes[..., None])).squeeze(-1)
        other = (uncond[..., image].softmax(-1) * F.logsigmoid(-gap)).sum(-1)
        return -(own + other).mean()

    def _cca(self, prompts: list[list[int]], codes: torch.Tensor) -> torch.Tensor:
        ours = self._logps(self._logits(self._model, prompts, codes), codes).sum(1)
        with torch.no_grad():
            theirs = self._logps(self._logits(self._frozen, prompts, codes), codes).sum(1)
        positive, negative = (self._beta * (ours - theirs)).chunk(2)
        return -F.logsigmoid(positive).mean() - F.logsigmoid(-negative).mean()

    def _logps(self, logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """[B, N, V] -> [B, N], over the whole vocabulary."""
        rows = self._model.image_head(whole_vocabulary=True).row_of_code.to(codes.device)[codes]
        return logits.log_softmax(dim=-1).gather(-1, rows[..., None]).squeeze(-1)

    def _logits(
        self, model: UnifiedModel, prompts: list[list[int]], codes: torch.Tensor
    ) -> torch.Tensor:
        """[B, N, V] float32 logits of the codes, taken from those of all L positions."""
        padded = left_pad(prompts, model.pad_id).to(codes.device)
        head = model.image_head(whole_vocabulary=True)
        hidden = model.hidden_states(*_row(model, padded, codes, self._layout))
        logits = F.linear(hidden, head.weight, head.bias).float()
        free = torch.as_tensor(self._layout.free_slots, device=codes.device)
        return logits[:, free + padded.ids.shape[1] - 1]


def _row(
    model: UnifiedModel, padded: PaddedTokens, codes: torch.Tensor, layout: ImageLayout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings [B, L, D], mask and positions of prompts and images."""
    embeds = embed_rows(model, padded.ids, codes, layout)
    span = padded.mask.new_ones(len(codes), len(layout.tokens))
    mask = torch.cat([padded.mask, span], dim=1)
    return embeds, mask, positions(mask)
