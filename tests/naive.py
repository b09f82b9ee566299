"""Slow and obvious references."""

import math

import torch


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def cca(
    positive: list[float],
    negative: list[float],
    ref_positive: list[float],
    ref_negative: list[float],
    as_positive: list[bool],
    beta: float,
    lambda_: float,
) -> float:
    """The loss of design section 5, one pair at a time."""
    n = len(positive)
    total = 0.0
    for i in range(n):
        total -= log_sigmoid(beta * (positive[i] - ref_positive[i])) / n
        gap = negative[i] - ref_negative[i]
        if as_positive[i]:
            total -= log_sigmoid(beta * gap) / n
        else:
            total -= lambda_ * log_sigmoid(-beta * gap) / n
    return total / max(lambda_, 1.0)


def guided(cond: list[float], uncond: list[float], scale: float) -> list[float]:
    """Classifier-free guidance of two rows of logits, one number at a time."""
    total_cond = math.log(sum(math.exp(c) for c in cond))
    total_uncond = math.log(sum(math.exp(u) for u in uncond))
    return [
        (u - total_uncond) + scale * ((c - total_cond) - (u - total_uncond))
        for c, u in zip(cond, uncond, strict=True)
    ]


def logps(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """All logits at once."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    return logits.log_softmax(dim=-1)[torch.arange(len(targets)), targets]


def span_logps(
    module: torch.nn.Module,
    prompt: list[int],
    span: list[int],
    free: list[int],
    image_ids: torch.Tensor | None,
) -> list[float]:
    """log p of the free tokens of one row from the stock model's ``.logits``.

    ``image_ids`` renormalises over those ids; None keeps the whole vocabulary.
    """
    ids = torch.tensor([prompt + span])
    logits = module(input_ids=ids).logits[0].double()
    found = []
    for slot in free:
        row = logits[len(prompt) + slot - 1]
        allowed = row if image_ids is None else row[image_ids]
        found.append(float(row[span[slot]] - allowed.logsumexp(dim=0)))
    return found
