"""Where along an image a tuned model moved away from its base, code by code.

Everything is measured on real images, in nats per code, in chunks of positions.
Shapes: B images, N codes of an image, m positions of a chunk, D hidden size, K image codes, Q bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from mm_cca.adapters.base import ImageHead
from mm_cca.modeling.chunked_head import LOGITS_BUDGET, head_logits
from mm_cca.modeling.guidance import BaseStates

QUARTERS = 4


@dataclass(frozen=True)
class CodeKls:
    """Kullback-Leibler divergences between next-code distributions, [B, N] nats each.

    Attributes:
        prompt: base with the caption, from base without it: how much the caption decides here.
        guidance: guided base, from the base.
        model: tuned model, from the base.
        guidance_to_model: guided base, from the tuned model; below ``guidance`` if the model came
            nearer to guidance.
    """

    prompt: torch.Tensor
    guidance: torch.Tensor
    model: torch.Tensor
    guidance_to_model: torch.Tensor


@dataclass(frozen=True)
class CodeGaps:
    """One set of images, [B, N] nats each.

    Attributes:
        own: log p of the image's codes given its caption, tuned model minus base.
        wrong: the same given another image's caption.
        relevance: base's log p given the own caption, minus given the other one.
        kls: of the distributions given the own caption.
    """

    own: torch.Tensor
    wrong: torch.Tensor
    relevance: torch.Tensor
    kls: CodeKls


def code_kls(
    states: torch.Tensor,
    head: ImageHead,
    base: BaseStates,
    *,
    scale: float,
    budget: int = LOGITS_BUDGET,
) -> CodeKls:
    """The divergences at every code of B images.

    Args:
        states: [B, N, D] the tuned model's hidden states given the own captions.
        head: the tuned model's.
        base: the base at the same positions, with its head.
        scale: of the guidance to compare with.
        budget: most logits of one distribution in memory at a time; four are.
    """
    flat = states.flatten(0, 1)
    chunk = max(1, budget // head.weight.shape[0])
    parts: list[list[torch.Tensor]] = []
    for start in range(0, len(flat), chunk):
        part = slice(start, start + chunk)
        cond = base.conditional_logits(part).log_softmax(dim=-1)
        uncond = base.unconditional_logits(part).log_softmax(dim=-1)
        guided = base.guided_log_probs(part, scale)
        own = head_logits(flat[part], head.weight, head.bias).log_softmax(dim=-1)
        pairs = ((cond, uncond), (guided, cond), (own, cond), (guided, own))
        parts.append([_kl(p, q) for p, q in pairs])
    return CodeKls(*(torch.cat(each).view(states.shape[:2]) for each in zip(*parts, strict=True)))


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """[m, K] log-probabilities twice -> [m] KL(p || q)."""
    return (p.exp() * (p - q)).sum(dim=-1)


def joined(parts: Sequence[CodeGaps]) -> CodeGaps:
    """The images of all parts, on the CPU."""

    def cat(get: str, of: Sequence[CodeGaps] | Sequence[CodeKls]) -> torch.Tensor:
        return torch.cat([getattr(part, get).float().cpu() for part in of])

    kls = [part.kls for part in parts]
    return CodeGaps(
        cat("own", parts),
        cat("wrong", parts),
        cat("relevance", parts),
        CodeKls(*(cat(field.name, kls) for field in fields(CodeKls))),
    )


def per_image(gaps: CodeGaps) -> dict[str, float]:
    """Means over images of the sums over codes, in nats per image."""
    return {name: float(values.sum(dim=1).mean()) for name, values in named(gaps).items()}


def by_row(gaps: CodeGaps, columns: int) -> dict[str, list[float]]:
    """Mean nats per code of every row of the grid, first row first."""
    return {
        name: values.mean(dim=0).view(-1, columns).mean(dim=1).tolist()
        for name, values in named(gaps).items()
    }


def by_relevance(gaps: CodeGaps, num_bins: int) -> dict[str, list[float]]:
    """Mean nats per code in bins of equally many codes, those that the caption decides last.

    Returns:
        ``relevance``, ``own`` and ``wrong`` -> [Q] means, in the order of growing relevance.
    """
    bins = bins_of_relevance(gaps, num_bins)
    return {
        name: [float(values.flatten()[indices].mean()) for indices in bins]
        for name, values in (
            ("relevance", gaps.relevance),
            ("own", gaps.own),
            ("wrong", gaps.wrong),
        )
    }


def bins_of_relevance(gaps: CodeGaps, num_bins: int) -> list[np.ndarray]:
    """The numbers of the codes of all images, of the least relevant first, in [Q] equal parts."""
    return np.array_split(gaps.relevance.flatten().argsort().numpy(), num_bins)


def wrong_gap_by_quarter(gaps: CodeGaps) -> list[float]:
    """The gap under the wrong caption, summed over quarters of every image's codes.

    Returns:
        [4] nats per image, the quarter that the caption decides most first.
    """
    order = gaps.relevance.argsort(dim=1, descending=True)
    sorted_gaps = gaps.wrong.gather(1, order)
    parts = sorted_gaps.tensor_split(QUARTERS, dim=1)
    return [float(part.sum(dim=1).mean()) for part in parts]


def correlation(gaps: CodeGaps) -> float:
    """Pearson correlation of relevance and the lowering of codes under the wrong caption.

    1: exactly the codes that the caption decides are lowered; 0: all alike.
    """
    pair = torch.stack([gaps.relevance.flatten(), -gaps.wrong.flatten()]).cpu().double()
    if bool((pair.std(dim=1) == 0).any()):
        return 0.0
    return float(torch.corrcoef(pair)[0, 1])


def named(gaps: CodeGaps) -> dict[str, torch.Tensor]:
    """All [B, N] tensors by their names in ``gaps.json``."""
    return {
        "own_gap": gaps.own,
        "wrong_gap": gaps.wrong,
        "relevance": gaps.relevance,
        "kl_caption_to_none": gaps.kls.prompt,
        "kl_guidance_to_base": gaps.kls.guidance,
        "kl_model_to_base": gaps.kls.model,
        "kl_guidance_to_model": gaps.kls.guidance_to_model,
    }
