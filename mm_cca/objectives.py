"""Objectives as pure functions of log-probabilities. No models, configs, devices or logging here.

Shapes: B pairs of image and prompt. Every ``*_logps`` is [B], the log-probability of an image's
codes given a prompt, summed over the codes, in nats, float32.
"""

import torch
import torch.nn.functional as F

Stats = dict[str, torch.Tensor]


def length_aware_beta(beta: float, beta_codes: int | None, num_codes: int) -> float:
    """The beta to use for images of ``num_codes`` codes.

    The gap is a sum over codes and so grows with their number. ``beta_codes`` is the length at
    which ``beta`` was found (the paper's 0.02 at 576); None leaves ``beta`` as it is.
    """
    return beta if beta_codes is None else beta * beta_codes / num_codes


def cca(
    positive_logps: torch.Tensor,
    negative_logps: torch.Tensor,
    ref_positive_logps: torch.Tensor,
    ref_negative_logps: torch.Tensor,
    *,
    counts_as_positive: torch.Tensor,
    beta: float,
    lambda_: float,
) -> tuple[torch.Tensor, Stats]:
    """Condition Contrastive Alignment (arXiv 2410.09347, equation 11, and thu-ml/CCA's code).

    ``gap = log p_theta - log p_ref``. The positive half asks every pair's gap to rise; the negative
    half asks the gap under another prompt to fall, with weight ``lambda_``. Rows of the negative
    half whose prompt is no wrong one (dropped condition, or equal to their own) count as positive
    with weight 1, as in the published VAR code. The sum is divided by ``max(lambda_, 1)``.

    Args:
        positive_logps: [B] log p_theta(x | own prompt).
        negative_logps: [B] log p_theta(x | other prompt).
        ref_positive_logps: [B] the same of the frozen reference.
        ref_negative_logps: [B] the same of the frozen reference.
        counts_as_positive: [B] bool, of the negative half.
        beta: inverse strength; see ``length_aware_beta``.
        lambda_: weight of the negative half.

    Returns:
        loss [] and detached [B] statistics: ``positive_gap``, ``negative_gap`` and ``accuracy``
        (1 where the positive gap is the larger).
    """
    positive_gap = positive_logps - ref_positive_logps
    negative_gap = negative_logps - ref_negative_logps
    sign = torch.where(counts_as_positive, 1.0, -1.0)
    weight = torch.where(counts_as_positive, 1.0, lambda_)
    positive_term = -F.logsigmoid(beta * positive_gap)
    negative_term = -weight * F.logsigmoid(sign * beta * negative_gap)
    loss = (positive_term.mean() + negative_term.mean()) / max(lambda_, 1.0)
    return loss, {
        "positive_gap": positive_gap.detach(),
        "negative_gap": negative_gap.detach(),
        "accuracy": (positive_gap > negative_gap).float().detach(),
    }


def nll(positive_logps: torch.Tensor, num_codes: int) -> tuple[torch.Tensor, Stats]:
    """Negative log-likelihood in nats per code, for pre-training and plain fine-tuning.

    Args:
        positive_logps: [B] log p_theta(x | own prompt).
        num_codes: codes per image.

    Returns:
        loss [] and an empty set of statistics.
    """
    return -positive_logps.mean() / num_codes, {}
