"""The recipe's loss for one micro-batch: a weighted sum of objectives, and its statistics.

Shapes: see ``collate.py`` and ``objectives.py``.
"""

import torch

from mm_cca import objectives
from mm_cca.config.mixtures import LossTerms
from mm_cca.modeling.code_contrast import CodeContrast
from mm_cca.modeling.logprobs import CodeTerms, Scored
from mm_cca.training.beta_rule import beta_of
from mm_cca.training.collate import MicroBatch
from mm_cca.training.reference import RefScores


def code_terms_of(terms: LossTerms, default_scale: float) -> CodeTerms:
    """What the forward pass computes against the base; ``default_scale`` is the model family's."""
    config, weights = terms.config, terms.weights
    scale = config.scale or default_scale
    return CodeTerms(
        distill_scale=(config.distill_scale or default_scale) if "distill" in weights else None,
        contrast=(1 / (scale - 1), config.code_lambda) if "cca_code" in weights else None,
        mixed_scale=scale if "gft" in weights else None,
        scale_by_relevance=config.scale_by_relevance,
    )


def loss_of(
    terms: LossTerms, batch: MicroBatch, scored: Scored, ref: RefScores | None
) -> tuple[torch.Tensor, objectives.Stats]:
    """The weighted sum and its statistics.

    Args:
        terms: of the recipe.
        batch: the micro-batch, own prompts first.
        scored: the model's log-probabilities.
        ref: the reference's log-probabilities, if the loss has negatives or drawn pictures.

    Returns:
        loss [] and detached statistics: those of ``contrast_stats`` and ``objectives.ddo``; ``kl``
        [B], see ``reference_kl``; ``text_nll``; with ``loss.gap_floor`` the [W] ``floored_gap``
        in nats per image and ``codes_at_floor``, the share of codes below the floor; with
        ``loss.scale_by_relevance`` the [B] ``mean_scale_share``; and each term as
        ``loss_NAME`` if there are several.
    """
    num_codes = batch.codes.shape[1]
    stats: objectives.Stats = {}
    losses: dict[str, torch.Tensor] = {}
    positive = scored.logps[: batch.num_pairs]
    if "nll" in terms.weights:
        losses["nll"] = objectives.nll(positive, num_codes)
    if "distill" in terms.weights:
        assert scored.guided_kl is not None
        losses["distill"] = objectives.distill(scored.guided_kl, num_codes)
    if "gft" in terms.weights:
        assert scored.mixed_nll is not None
        losses["gft"] = objectives.gft(scored.mixed_nll)
    if "cca_code" in terms.weights:
        assert scored.contrast is not None
        losses["cca_code"], stats = _code_contrast(scored.contrast)
    if terms.needs_reference:
        assert ref is not None
        contrastive, contrastive_stats = _contrastive(terms, batch, scored, ref)
        losses |= contrastive
        stats |= contrastive_stats
        if ref.per_code is not None:
            own = slice(batch.num_pairs)
            stats["kl"] = objectives.reference_kl(scored.per_code[own], ref.per_code[own])
    loss = torch.stack([terms.weights[name] * value for name, value in losses.items()]).sum()
    if scored.text_nll is not None:
        loss = loss + terms.config.text_weight * scored.text_nll.mean()
        stats["text_nll"] = scored.text_nll.detach()
    if len(losses) > 1:
        stats |= {f"loss_{name}": value.detach()[None] for name, value in losses.items()}
    return loss, stats


def _code_contrast(contrast: CodeContrast) -> tuple[torch.Tensor, objectives.Stats]:
    loss, stats = objectives.cca_code(contrast.loss, contrast.positive_gap, contrast.negative_gap)
    if contrast.scale_shares is not None:
        stats["mean_scale_share"] = contrast.scale_shares.mean(dim=1)
    return loss, stats


def _contrastive(
    terms: LossTerms, batch: MicroBatch, scored: Scored, ref: RefScores
) -> tuple[dict[str, torch.Tensor], objectives.Stats]:
    config, count, num_codes = terms.config, batch.num_pairs, batch.codes.shape[1]
    logps, negatives = scored.logps, batch.negatives
    rows = (logps[:count], logps[negatives], ref.logps[:count], ref.logps[negatives])
    beta = beta_of(config, num_codes)
    same = batch.counts_as_positive
    losses: dict[str, torch.Tensor] = {}
    stats: objectives.Stats = {}
    if "cca" in terms.weights:
        floored, at_floor = _with_floor(config.gap_floor, negatives, scored, ref)
        losses["cca"], stats = objectives.cca(
            *rows,
            counts_as_positive=same,
            beta=beta,
            lambda_=config.lambda_,
            floored_negative_gap=floored,
        )
        stats |= at_floor
    if "dpo" in terms.weights:
        losses["dpo"], of_dpo = objectives.dpo(*rows, counts_as_positive=same, beta=beta)
        stats |= of_dpo
    if "unlearn" in terms.weights:
        losses["unlearn"], of_unlearn = objectives.unlearn(
            *rows, counts_as_positive=same, lambda_=config.lambda_, num_codes=num_codes
        )
        stats |= of_unlearn
    if "ddo" in terms.weights:
        drawn = batch.drawn
        losses["ddo"], drawn_stats = objectives.ddo(
            logps[:count],
            logps[drawn],
            ref.logps[:count],
            ref.logps[drawn],
            dropped=batch.dropped,
            beta=beta,
            lambda_=config.lambda_,
        )
        stats |= drawn_stats
    return losses, stats


def _with_floor(
    floor: float | None, rows: slice, scored: Scored, ref: RefScores
) -> tuple[torch.Tensor | None, objectives.Stats]:
    """[W] gaps of the negative rows with a floor per code, and statistics; None without a floor."""
    if floor is None:
        return None, {}
    assert ref.per_code is not None, "a cache keeps it if the recipe has a floor"
    negative, ref_negative = scored.per_code[rows], ref.per_code[rows]
    floored = objectives.floored_gap(negative, ref_negative, floor)
    below = negative.detach() - ref_negative < floor
    at_floor = below.float().mean(dim=1)
    return floored, {"floored_gap": floored.detach(), "codes_at_floor": at_floor}
