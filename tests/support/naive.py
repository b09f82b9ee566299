"""Naive references: slow, and easy to check by reading."""

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
    gaps: list[float] | None = None,
) -> float:
    """The CCA loss (arXiv 2410.09347, equation 11), one pair at a time.

    ``gaps`` replace those of the negatives, also where they count as positive.
    """
    n = len(positive)
    total = 0.0
    for i in range(n):
        total -= log_sigmoid(beta * (positive[i] - ref_positive[i])) / n
        gap = negative[i] - ref_negative[i] if gaps is None else gaps[i]
        if as_positive[i]:
            total -= log_sigmoid(beta * gap) / n
        else:
            total -= lambda_ * log_sigmoid(-beta * gap) / n
    return total / max(lambda_, 1.0)


def ddo(
    positive: list[float],
    drawn: list[float],
    ref_positive: list[float],
    ref_drawn: list[float],
    dropped: list[bool],
    beta: float,
    lambda_: float,
) -> float:
    """Real images against drawn pictures (arXiv 2503.01103), one pair at a time."""
    total = 0.0
    for i in range(len(positive)):
        total -= log_sigmoid(beta * (positive[i] - ref_positive[i])) / len(positive)
        if not dropped[i]:
            total -= lambda_ * log_sigmoid(-beta * (drawn[i] - ref_drawn[i])) / len(positive)
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
    values = []
    for slot in free:
        row = logits[len(prompt) + slot - 1]
        allowed = row if image_ids is None else row[image_ids]
        values.append(float(row[span[slot]] - allowed.logsumexp(dim=0)))
    return values


def dpo(
    positive: list[float],
    negative: list[float],
    ref_positive: list[float],
    ref_negative: list[float],
    as_positive: list[bool],
    beta: float,
) -> float:
    """The DPO loss with own captions preferred to negative ones, one pair at a time."""
    n = len(negative)
    total = 0.0
    for i in range(n):
        own = i % len(positive)
        margin = positive[own] - ref_positive[own] - (negative[i] - ref_negative[i])
        if not as_positive[i]:
            total -= log_sigmoid(beta * margin) / n
    return total


def unlearn(
    positive: list[float],
    negative: list[float],
    ref_positive: list[float],
    ref_negative: list[float],
    as_positive: list[bool],
    lambda_: float,
    num_codes: int,
) -> float:
    """The unlearning loss, one pair at a time."""
    total = 0.0
    for i in range(len(positive)):
        total -= (positive[i] - ref_positive[i]) / len(positive)
    for i in range(len(negative)):
        gap = negative[i] - ref_negative[i]
        total += (-gap if as_positive[i] else lambda_ * gap) / len(negative)
    return total / max(lambda_, 1.0) / num_codes


def guided_kl(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    cond: torch.Tensor,
    uncond: torch.Tensor,
    ref_weight: torch.Tensor,
    ref_bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """KL(guided teacher || model), all logits at once, [B, N, D] -> [B]."""

    def logits(hidden: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        return hidden @ w.T if b is None else hidden @ w.T + b

    c = logits(cond, ref_weight, ref_bias).log_softmax(-1)
    u = logits(uncond, ref_weight, ref_bias).log_softmax(-1)
    teacher = torch.distributions.Categorical(logits=u + scale * (c - u))
    model = torch.distributions.Categorical(logits=logits(states, weight, bias))
    return torch.distributions.kl_divergence(teacher, model).sum(dim=1)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    norms = [sum(float(x) ** 2 for x in v) ** 0.5 for v in (a, b)]
    return dot / (norms[0] * norms[1])


def code_contrast(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    cond: torch.Tensor,
    uncond: torch.Tensor,
    ref_weight: torch.Tensor,
    ref_bias: torch.Tensor | None,
    codes: torch.Tensor,
    *,
    beta: float,
    lambda_: float,
    full_at: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, positive and negative gap of every code, one code and one codebook entry at a time.

    With ``full_at`` the scale of a code depends on its relevance.
    """

    def log_probs(hidden: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        return (hidden @ w.T if b is None else hidden @ w.T + b).log_softmax(-1)

    model, base = log_probs(states, weight, bias), log_probs(cond, ref_weight, ref_bias)
    expects = log_probs(uncond, ref_weight, ref_bias).exp()
    rows = []
    for image in range(len(codes)):
        relevance = [
            float((b.exp() * (b - e.log())).sum()) + 1e-3
            for b, e in zip(base[image], expects[image], strict=True)
        ]
        mean = sum(relevance) / len(relevance)
        for n in range(codes.shape[1]):
            share = 1.0 if full_at is None else min(1.0, relevance[n] / (full_at * mean))
            scale = 1 + share / beta  # beta is 1 / (scale - 1)
            b = 1 / (scale - 1)
            gap = model[image, n] - base[image, n]
            own = gap[codes[image, n]]
            loss = torch.log1p(torch.exp(-b * own))
            negative_gap = torch.zeros(())
            for k in range(len(gap)):
                loss = loss + lambda_ * expects[image, n, k] * torch.log1p(torch.exp(b * gap[k]))
                negative_gap = negative_gap + expects[image, n, k] * gap[k]
            rows.append(torch.stack([share * loss, own, negative_gap]))
    table = torch.stack(rows).view(*codes.shape, 3)
    return table[..., 0], table[..., 1], table[..., 2]
