"""Condition contrast code by code, in closed form and in chunks of positions.

The paper (arXiv 2410.09347, equation 11) contrasts whole images, with negatives drawn by swapping
captions. ``log p(x | c) / p(x)`` is a sum over codes, so the same contrast can be made at every
code alone: its negatives are the base's own next-code distribution without the caption, and their
expectation is a sum over the codebook. With ``beta = 1 / (scale - 1)`` and ``lambda_ = 1`` the
optimum over free gaps is guidance of that scale, whatever the number of codes; a model whose
distributions are normalised comes as near as their normalisation allows.

The scale may differ from code to code (``relevance_shares``): a code whose share is w learns
guidance of scale ``1 + w * (scale - 1)``.

No logits of the full length are kept; they are computed again in the backward pass.
Shapes: B images, N codes of an image, m positions of a chunk, D hidden size, K image codes.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mm_cca.modeling.chunked_head import LOGITS_BUDGET, head_gradients, head_logits
from mm_cca.modeling.guidance import BaseStates


class CodeContrast(NamedTuple):
    """The contrast of every code, and the statistics of it.

    Attributes:
        loss: [B, N] float32, differentiable.
        positive_gap: [B, N] log p_theta - log p_base of the image's own code, given its caption.
        negative_gap: [B, N] mean gap of the codes that the base expects without the caption.
        scale_shares: [B, N] see ``relevance_shares``; None where the scale is the same everywhere.
    """

    loss: torch.Tensor
    positive_gap: torch.Tensor
    negative_gap: torch.Tensor
    scale_shares: torch.Tensor | None = None


ROUNDING = 1e-3
"""Nats per code, added to every relevance: without a caption (a dropped condition) relevance is
rounding only, and then all codes count alike."""


@torch.no_grad()
def relevance_shares(base: BaseStates, full_at: float, *, budget: int) -> torch.Tensor:
    """How much of the guidance every code gets: where the caption decides little, little.

    The relevance of a code is ``KL(base given the caption || base without it)`` at its position,
    in closed form. Its share is ``min(1, relevance / (full_at * mean relevance of the image))``.
    A share relative to the image's own mean has no unit, so the one constant holds for every model
    and length; a caption that decides all codes alike, or none, gives all of them the same share
    (1 with ``full_at`` up to 1), and ``full_at`` to 0 is the same scale everywhere. Neighbours:
    SoftCFG (arXiv 2510.00996) and guidance in an interval (arXiv 2404.07724), which weigh steps of
    sampling. The mean sees the whole image and so, with weight 1 / N, the code itself.

    Args:
        base: with a head, of B images of N codes.
        full_at: relevance, as a multiple of the image's mean, from which a code gets all guidance.
        budget: most logits of one distribution alive at a time; two are.

    Returns:
        [B, N] float32, above 0 and at most 1.
    """
    shape = base.unconditional.shape[:2]
    assert base.weight is not None, "with_head comes first"
    chunk = max(1, budget // base.weight.shape[0])
    parts = []
    with torch.autocast(base.unconditional.device.type, enabled=False):
        for start in range(0, shape.numel(), chunk):
            part = slice(start, start + chunk)
            logps = base.conditional_logits(part).log_softmax(dim=-1)
            without = base.unconditional_logits(part).log_softmax(dim=-1)
            parts.append((logps.exp() * (logps - without)).sum(dim=-1))
    relevance = torch.cat(parts).view(shape).clamp(min=0) + ROUNDING
    return (relevance / (full_at * relevance.mean(dim=1, keepdim=True))).clamp(max=1)


def code_contrast_loss(
    logps: torch.Tensor,
    ref_logps: torch.Tensor,
    unconditional: torch.Tensor,
    codes: torch.Tensor,
    *,
    beta: float,
    lambda_: float,
    shares: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of m positions and its gradient by ``logps``.

    ``-log s(beta * gap(x)) - lambda_ * sum_k u(k) * log s(-beta * gap(k))`` with
    ``gap = logps - ref_logps`` and s the logistic function. With a share w of the scale, beta
    becomes ``beta / w`` and the loss is multiplied by w: a smaller share then pulls as strongly at
    the start but stops earlier. Without the factor, codes with a small share would dominate the
    gradient; with it, w to 0 is the finite loss ``beta * (max(0, -gap(x)) + lambda_ * sum_k u(k) *
    max(0, gap(k)))``, whose optimum over free gaps is 0.

    Args:
        logps: [m, K] log p_theta(k | prefix, caption).
        ref_logps: [m, K] the same of the frozen base.
        unconditional: [m, K] u, the base's probabilities without the caption.
        codes: [m] the image's own codes x.
        beta: 1 / (guidance scale - 1).
        lambda_: weight of the negative half.
        shares: [m] see ``relevance_shares``; None: 1 everywhere.

    Returns:
        loss [m] and gradient [m, K].
    """
    scaled = beta * (logps - ref_logps)
    if shares is not None:
        scaled /= shares[:, None]
    own = scaled.gather(1, codes[:, None])
    loss = -F.logsigmoid(own[:, 0]) - lambda_ * (unconditional * F.logsigmoid(-scaled)).sum(dim=1)
    gradient = (lambda_ * beta) * unconditional * scaled.sigmoid()
    gradient.scatter_add_(1, codes[:, None], -beta * (-own).sigmoid())
    return loss if shares is None else shares * loss, gradient


class _ChunkedCodeContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        base: BaseStates,
        codes: torch.Tensor,
        shares: torch.Tensor | None,
        constants: tuple[float, float],
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        beta, lambda_ = constants
        losses, positive, negative = [], [], []
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                logps = head_logits(hidden[part], weight, bias).log_softmax(dim=-1)
                ref_logps, unconditional = _base_at(base, part)
                loss, _ = code_contrast_loss(
                    logps,
                    ref_logps,
                    unconditional,
                    codes[part],
                    beta=beta,
                    lambda_=lambda_,
                    shares=None if shares is None else shares[part],
                )
                losses.append(loss)
                gap = logps - ref_logps
                positive.append(gap.gather(1, codes[part, None]).squeeze(1))
                negative.append((unconditional * gap).sum(dim=1))
        ctx.save_for_backward(hidden, weight, bias, codes, shares)
        ctx.base, ctx.constants, ctx.chunk = base, constants, chunk
        gaps = torch.cat(positive), torch.cat(negative)
        ctx.mark_non_differentiable(*gaps)
        return torch.cat(losses), *gaps

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, codes, shares = ctx.saved_tensors
        beta, lambda_ = ctx.constants

        def by_logits(part: slice, logits: torch.Tensor) -> torch.Tensor:
            logps = logits.log_softmax(dim=-1)
            ref_logps, unconditional = _base_at(ctx.base, part)
            _, by_logps = code_contrast_loss(
                logps,
                ref_logps,
                unconditional,
                codes[part],
                beta=beta,
                lambda_=lambda_,
                shares=None if shares is None else shares[part],
            )
            by_logps *= grad[part, None]
            return by_logps - logps.exp() * by_logps.sum(dim=1, keepdim=True)

        needs = ctx.needs_input_grad[:3]
        of_inputs = head_gradients(hidden, weight, bias, needs, ctx.chunk, by_logits)
        return *of_inputs, None, None, None, None, None


def _base_at(base: BaseStates, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """[m, K] log-probabilities with the caption, and probabilities without it."""
    ref_logps = base.conditional_logits(part).log_softmax(dim=-1)
    return ref_logps, base.unconditional_logits(part).softmax(dim=-1)


def code_contrast(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    base: BaseStates,
    codes: torch.Tensor,
    *,
    beta: float,
    lambda_: float,
    scale_by_relevance: float | None = None,
    budget: int = LOGITS_BUDGET,
) -> CodeContrast:
    """The contrast at every code of B images.

    Args:
        states: [B, N, D] the model's hidden states given the images' own captions.
        weight: [K, D] image rows of the model's head.
        bias: [K] or None.
        base: the frozen base at the same positions; without a head of its own it shares the
            model's.
        codes: [B, N] the images' codes.
        beta: 1 / (guidance scale - 1).
        lambda_: weight of the negative half.
        scale_by_relevance: ``full_at`` of ``relevance_shares``; None: the same scale everywhere.
        budget: most logits of one distribution alive at a time; four are.
    """
    base = base.with_head(weight, bias)
    chunk = max(1, budget // weight.shape[0])
    shares = None
    if scale_by_relevance is not None:
        shares = relevance_shares(base, scale_by_relevance, budget=budget)
    parts = _ChunkedCodeContrast.apply(
        states.flatten(0, 1),
        weight,
        bias,
        base,
        codes.flatten(),
        None if shares is None else shares.flatten(),
        (beta, lambda_),
        chunk,
    )
    loss, positive_gap, negative_gap = (values.view(codes.shape) for values in parts)
    return CodeContrast(loss, positive_gap, negative_gap, shares)
