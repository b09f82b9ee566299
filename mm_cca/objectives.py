"""Objectives as pure functions of log-probabilities. No models, configs, devices or logging here.

Shapes: B positive pairs (an image and its own caption); W = m * B negative pairs (an image and a
negative caption), m per image, in m blocks of B. Every ``*_logps`` is the log-probability of an
image's codes given a caption, summed over the codes, in nats, float32.
``gap = log p_theta - log p_ref``.
"""

import torch
import torch.nn.functional as F

Stats = dict[str, torch.Tensor]


def length_aware_beta(beta: float, beta_codes: int | None, num_codes: int) -> float:
    """The beta to use for images of ``num_codes`` codes.

    The gap is a sum over codes and so grows with their number. ``beta_codes`` is the length at
    which ``beta`` was tuned (the paper's 0.02 at 576); None leaves ``beta`` as it is.
    """
    return beta if beta_codes is None else beta * beta_codes / num_codes


def contrast_stats(positive_gap: torch.Tensor, negative_gap: torch.Tensor) -> Stats:
    """Statistics to monitor training by: [B] and [W] gaps -> detached tensors.

    ``positive_gap`` [B]; ``negative_gap``, ``margin`` (positive minus negative gap) and
    ``accuracy`` (1 where the positive gap is the larger), each [W].
    """
    positive_gap, negative_gap = positive_gap.detach(), negative_gap.detach()
    margin = positive_gap.repeat(len(negative_gap) // len(positive_gap)) - negative_gap
    return {
        "positive_gap": positive_gap,
        "negative_gap": negative_gap,
        "margin": margin,
        "accuracy": (margin > 0).float(),
    }


def floored_gap(
    logps_per_code: torch.Tensor, ref_logps_per_code: torch.Tensor, floor: float
) -> torch.Tensor:
    """[W, N] and [W, N] -> [W] gaps in nats per image: the sum over codes of ``max(gap, floor)``.

    A code whose gap is below the floor adds a constant and has no gradient: a wrong caption is
    pushed down where the model still believes it, not where it is given up already. With a floor
    of minus infinity it is the plain gap.
    """
    return (logps_per_code - ref_logps_per_code).clamp(min=floor).sum(dim=1)


def cca(
    positive_logps: torch.Tensor,
    negative_logps: torch.Tensor,
    ref_positive_logps: torch.Tensor,
    ref_negative_logps: torch.Tensor,
    *,
    counts_as_positive: torch.Tensor,
    beta: float,
    lambda_: float,
    floored_negative_gap: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Stats]:
    """Condition Contrastive Alignment (arXiv 2410.09347, equation 11, and thu-ml/CCA's code).

    The positive term raises the gap of every positive pair; the negative term lowers the gap of
    every negative pair, with weight ``lambda_``. Negative rows that are not true negatives (dropped
    condition, or a caption equal to the image's own) count as positive with weight 1, as in the
    published VAR code. The sum is divided by ``max(lambda_, 1)``.

    Args:
        positive_logps: [B] log p_theta(x | own caption).
        negative_logps: [W] log p_theta(x | negative caption).
        ref_positive_logps: [B] log p_ref(x | own caption), of the frozen reference.
        ref_negative_logps: [W] log p_ref(x | negative caption), of the frozen reference.
        counts_as_positive: [W] bool, True for negative rows that are not true negatives.
        beta: scale of the gap inside the sigmoid; the smaller, the later a pair saturates.
            See ``length_aware_beta``.
        lambda_: weight of the negative term.
        floored_negative_gap: [W] see ``floored_gap``; takes the place of the gap in the term of
            true negatives. None: no floor.

    Returns:
        loss [] and ``contrast_stats``, whose gaps have no floor.
    """
    positive_gap = positive_logps - ref_positive_logps
    negative_gap = negative_logps - ref_negative_logps
    sign = torch.where(counts_as_positive, 1.0, -1.0)
    weight = torch.where(counts_as_positive, 1.0, lambda_)
    positive_term = -F.logsigmoid(beta * positive_gap)
    lowered = negative_gap
    if floored_negative_gap is not None:
        lowered = torch.where(counts_as_positive, negative_gap, floored_negative_gap)
    negative_term = -weight * F.logsigmoid(sign * beta * lowered)
    loss = (positive_term.mean() + negative_term.mean()) / max(lambda_, 1.0)
    return loss, contrast_stats(positive_gap, negative_gap)


def dpo(
    positive_logps: torch.Tensor,
    negative_logps: torch.Tensor,
    ref_positive_logps: torch.Tensor,
    ref_negative_logps: torch.Tensor,
    *,
    counts_as_positive: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, Stats]:
    """Direct Preference Optimization with swapped conditions, a baseline of the paper.

    arXiv 2305.18290, equation 7, with (image, own caption) preferred to (image, negative caption)
    as in arXiv 2410.09347, section 5.3: only the difference of the two gaps matters, so both may
    fall. Rows that are not true negatives have weight 0 (in the published code they add dropout
    noise). Arguments and result as in ``cca``.
    """
    positive_gap = positive_logps - ref_positive_logps
    negative_gap = negative_logps - ref_negative_logps
    margin = positive_gap.repeat(len(negative_gap) // len(positive_gap)) - negative_gap
    terms = torch.where(counts_as_positive, 0.0, -F.logsigmoid(beta * margin))
    return terms.mean(), contrast_stats(positive_gap, negative_gap)


def unlearn(
    positive_logps: torch.Tensor,
    negative_logps: torch.Tensor,
    ref_positive_logps: torch.Tensor,
    ref_negative_logps: torch.Tensor,
    *,
    counts_as_positive: torch.Tensor,
    lambda_: float,
    num_codes: int,
) -> tuple[torch.Tensor, Stats]:
    """Raises positive and lowers negative log-likelihoods linearly: a baseline of the paper.

    arXiv 2410.09347, section 5.3, and the branch that thu-ml/CCA's LlamaGen code takes with
    ``uncond_ratio`` 0. In nats per code, divided by ``max(lambda_, 1)``. **The loss has no lower
    bound** with ``lambda_`` above 0. Arguments and result otherwise as in ``cca``.
    """
    positive_gap = positive_logps - ref_positive_logps
    negative_gap = negative_logps - ref_negative_logps
    weight = torch.where(counts_as_positive, -1.0, lambda_)
    loss = (-positive_gap.mean() + (weight * negative_gap).mean()) / max(lambda_, 1.0)
    return loss / num_codes, contrast_stats(positive_gap, negative_gap)


def ddo(
    positive_logps: torch.Tensor,
    drawn_logps: torch.Tensor,
    ref_positive_logps: torch.Tensor,
    ref_drawn_logps: torch.Tensor,
    *,
    dropped: torch.Tensor,
    beta: float,
    lambda_: float,
) -> tuple[torch.Tensor, Stats]:
    """Direct Discriminative Optimization (arXiv 2503.01103), with its two constants.

    The model discriminates real images from pictures x' that the reference drew for the same
    caption: ``-log s(beta * gap(x)) - lambda_ * log s(-beta * gap(x'))``, s the logistic function.
    With both constants 1 and unlimited data its optimum is the data's own distribution. Divided by
    ``max(lambda_, 1)``, as ``cca`` is.

    Args:
        positive_logps: [B] log p_theta(real image | own caption).
        drawn_logps: [B] log p_theta(drawn picture | the same caption).
        ref_positive_logps: [B] log p_ref of the real images.
        ref_drawn_logps: [B] log p_ref of the drawn pictures.
        dropped: [B] bool, rows without a caption; the reference did not draw their picture from
            the unconditional prompt, so only their real image counts.
        beta: scale of the gap inside the sigmoid; see ``length_aware_beta``.
        lambda_: weight of the drawn pictures.

    Returns:
        loss [] and statistics [B]: ``positive_gap``; of the drawn pictures ``drawn_gap``,
        ``drawn_margin`` and ``drawn_accuracy``, as in ``contrast_stats``.
    """
    positive_gap = positive_logps - ref_positive_logps
    drawn_gap = drawn_logps - ref_drawn_logps
    drawn_term = torch.where(dropped, 0.0, -lambda_ * F.logsigmoid(-beta * drawn_gap))
    loss = (-F.logsigmoid(beta * positive_gap).mean() + drawn_term.mean()) / max(lambda_, 1.0)
    stats = contrast_stats(positive_gap, drawn_gap)
    return loss, {
        "positive_gap": stats["positive_gap"],
        "drawn_gap": stats["negative_gap"],
        "drawn_margin": stats["margin"],
        "drawn_accuracy": stats["accuracy"],
    }


def nll(positive_logps: torch.Tensor, num_codes: int) -> torch.Tensor:
    """Negative log-likelihood in nats per code, for pre-training and plain fine-tuning.

    Args:
        positive_logps: [B] log p_theta(x | own caption).
        num_codes: codes per image.
    """
    return -positive_logps.mean() / num_codes


def distill(guided_kl: torch.Tensor, num_codes: int) -> torch.Tensor:
    """Guidance distillation in nats per code: a baseline for CCA.

    The model learns to predict, without guidance, the next-code distribution of the guided frozen
    base, along real images (teacher-forced), as arXiv 2210.03142 does for diffusion.

    Args:
        guided_kl: [B] KL(guided base || model), summed over codes; see
            ``mm_cca.modeling.guidance.guided_kl``.
        num_codes: codes per image.
    """
    return guided_kl.mean() / num_codes


def cca_code(
    code_losses: torch.Tensor, positive_gap: torch.Tensor, negative_gap: torch.Tensor
) -> tuple[torch.Tensor, Stats]:
    """The contrast of CCA at every code, averaged over codes and images.

    Args:
        code_losses: [B, N] see ``mm_cca.modeling.code_contrast``.
        positive_gap: [B, N] gap of the images' own codes, detached.
        negative_gap: [B, N] mean gap of the codes that the base expects without the caption.

    Returns:
        loss [] and statistics [B] in nats per image: ``positive_gap``, ``code_negative_gap``, and
        ``kl`` (see ``reference_kl``).
    """
    stats = {
        "positive_gap": positive_gap.sum(dim=1),
        "code_negative_gap": negative_gap.sum(dim=1),
        "kl": reference_kl(positive_gap, torch.zeros_like(positive_gap)),
    }
    return code_losses.mean(), stats


def gft(mixed_nll: torch.Tensor) -> torch.Tensor:
    """Guidance-free training (arXiv 2501.15420): [B, N] nats of every code under the mixture with
    the base (see ``mm_cca.modeling.mixed_nll``) -> their mean [].
    """
    return mixed_nll.mean()


def reference_kl(logps_per_code: torch.Tensor, ref_logps_per_code: torch.Tensor) -> torch.Tensor:
    """[B, N] and [B, N] -> [B] estimate of KL(reference || model) in nats per image, never below 0.

    Sum over codes of ``r - 1 - log r`` with ``r = p_theta / p_ref`` (Schulman's k3). It is unbiased
    for codes drawn from the reference; on real images it is an approximation.
    """
    log_ratio = logps_per_code.detach() - ref_logps_per_code
    return (log_ratio.expm1() - log_ratio).sum(dim=1)
