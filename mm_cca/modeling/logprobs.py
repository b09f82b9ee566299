"""log p(image codes | prompt): the forward pass of training.

Rows are [prompt][image span][padding] with positions from 0, so no mask is needed.
Shapes: B rows, P prompt tokens (padded), S slots of the image span, N free codes, L = P + S - 1
tokens of a row, D hidden size, T tokens of a text; I rows that are distilled.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import nn

from mm_cca.adapters.base import Grid, ImageLayout, UnifiedModel
from mm_cca.modeling.chunked_head import chunked_logps
from mm_cca.modeling.code_contrast import CodeContrast, code_contrast
from mm_cca.modeling.guidance import BaseStates, guided_kl
from mm_cca.modeling.inputs import embed_rows, every_position, padding_last
from mm_cca.modeling.mixed_nll import mixed_nll
from mm_cca.modeling.text_nll import text_nll


class Scored(NamedTuple):
    """Result of a forward pass.

    Attributes:
        per_code: [B, N] float32 log-probability of every code.
        guided_kl: [I] KL(guided base || model) in nats per image; None where not asked for.
        contrast: of the codes of I images, see ``code_contrast``; None where not asked for.
        mixed_nll: [I, N] nats per code, see ``mixed_nll``; None where not asked for.
        text_nll: [texts] mean nats per token of every text; None without texts.
        states: [B, N, D] hidden states that predict the codes; None without ``only_states``.
    """

    per_code: torch.Tensor
    guided_kl: torch.Tensor | None = None
    contrast: CodeContrast | None = None
    mixed_nll: torch.Tensor | None = None
    text_nll: torch.Tensor | None = None
    states: torch.Tensor | None = None

    @property
    def logps(self) -> torch.Tensor:
        """[B] float32 log p(image | prompt), summed over codes."""
        return self.per_code.sum(dim=1)


@dataclass(frozen=True)
class CodeTerms:
    """Losses against the base's whole distributions, computed in the forward pass.

    Attributes:
        distill_scale: guidance scale for ``guided_kl``.
        contrast: beta and lambda_ for ``code_contrast``.
        mixed_scale: guidance scale for ``mixed_nll``.
        scale_by_relevance: constant of ``code_contrast``.
    """

    distill_scale: float | None = None
    contrast: tuple[float, float] | None = None
    mixed_scale: float | None = None
    scale_by_relevance: float | None = None


class CodeLogProbs(nn.Module):
    """The forward pass of training: summed log-probabilities of images given prompts.

    It owns ``model.module``, so that accelerate, DDP and FSDP wrap a single module, and training
    calls nothing but its ``forward``.
    """

    def __init__(self, model: UnifiedModel, layout: ImageLayout, *, whole_vocabulary: bool) -> None:
        super().__init__()
        self.module = model.module
        self._model = (model,)  # in a tuple, so that its module is not registered a second time
        self._layout = layout
        self._whole_vocabulary = whole_vocabulary

    @property
    def model(self) -> UnifiedModel:
        return self._model[0]

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, but the frozen parts stay in eval mode."""
        super().train(mode)
        for part in self.model.frozen():
            part.eval()
        return self

    def forward(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        codes: torch.Tensor,
        *,
        base: BaseStates | None = None,
        code_terms: CodeTerms | None = None,
        text_ids: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        only_states: bool = False,
        grid: Grid | None = None,
    ) -> Scored:
        """Score images and, in the same pass, everything else that the loss needs.

        This is one method because DDP and FSDP wrap ``forward`` only.

        Args:
            prompt_ids: [B, P], padded on either side.
            prompt_mask: [B, P] bool.
            codes: [B, N].
            base: the frozen base at the first I rows, for ``code_terms``.
            code_terms: which losses against the base to compute.
            text_ids: [texts, T] plain texts, padded on either side.
            text_mask: [texts, T] bool.
            only_states: return hidden states only, for ``BaseStates``; ``per_code`` is then empty.
            grid: of all the images; None: the one that ``layout`` is of.
        """
        layout = self._layout if grid is None else self.model.layout(grid)
        states = self._states(prompt_ids, prompt_mask, codes, layout)
        if only_states:
            return Scored(states.new_empty(len(states), 0, dtype=torch.float32), states=states)
        head = self.model.image_head(whole_vocabulary=self._whole_vocabulary)
        targets = head.row_of_code.to(codes.device)[codes]
        flat = chunked_logps(states.flatten(0, 1), head.weight, head.bias, targets.flatten())
        scored = Scored(flat.view_as(codes))
        if base is not None and code_terms is not None:
            scored = self._against_base(scored, states, codes, base, code_terms)
        if text_ids is not None and text_mask is not None:
            scored = scored._replace(text_nll=text_nll(self.model, text_ids, text_mask))
        return scored

    def _against_base(
        self,
        scored: Scored,
        states: torch.Tensor,
        codes: torch.Tensor,
        base: BaseStates,
        terms: CodeTerms,
    ) -> Scored:
        head, count = self.model.image_head(), len(base.unconditional)
        rows, own = (states[:count], head.weight, head.bias), codes[:count]
        # Rows of the image head need not be in the order of the codes.
        targets = head.row_of_code.to(codes.device)[own]
        kl, contrast, mixed = None, None, None
        if terms.distill_scale is not None:
            kl = guided_kl(*rows, base, scale=terms.distill_scale)
        if terms.contrast is not None:
            beta, lambda_ = terms.contrast
            contrast = code_contrast(
                *rows,
                base,
                targets,
                beta=beta,
                lambda_=lambda_,
                scale_by_relevance=terms.scale_by_relevance,
            )
        if terms.mixed_scale is not None:
            mixed = mixed_nll(*rows, base, targets, scale=terms.mixed_scale)
        return scored._replace(guided_kl=kl, contrast=contrast, mixed_nll=mixed)

    def _states(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        codes: torch.Tensor,
        layout: ImageLayout,
    ) -> torch.Tensor:
        """[B, N, D] hidden states that predict each code: those of the slot before it."""
        model = self.model
        last = layout.free_slots[-1]
        tokens = embed_rows(model, prompt_ids, codes, layout)[:, : prompt_ids.shape[1] + last]
        span_mask = prompt_mask.new_ones(len(codes), last)
        order = padding_last(torch.cat([prompt_mask, span_mask], dim=1))
        embeds = _take(tokens, order)
        hidden = model.hidden_states(embeds, *every_position(embeds))
        # Slot 0 comes directly after the prompt.
        free = torch.as_tensor(layout.free_slots, device=codes.device)
        return _take(hidden, prompt_mask.sum(dim=1, keepdim=True) - 1 + free)


def _take(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[B, L, D] and [B, M] places -> [B, M, D], the vectors at each row's own places."""
    starts = torch.arange(len(rows), device=places.device)[:, None] * rows.shape[1]
    return (
        rows.flatten(0, 1).index_select(0, (starts + places).flatten()).unflatten(0, places.shape)
    )
