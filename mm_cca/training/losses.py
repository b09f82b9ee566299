"""The recipe's loss for one micro-batch: a weighted sum of objectives, and its statistics.

Shapes: see ``collate.py`` and ``objectives.py``.
"""

import torch

from mm_cca import objectives
from mm_cca.config.mixtures import LossTerms
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
    )


def loss_of(
    terms: LossTerms, batch: MicroBatch, scored: Scored, ref: RefScores | None
) -> tuple[torch.Tensor, objectives.Stats]:
    """The weighted sum and its statistics.

    Args:
        terms: of the recipe.
        batch: the micro-batch, own prompts first.
        scored: the model's log-probabilities.
        ref: the reference's log-probabilities, if the loss has negatives.

    Returns:
        loss [] and detached statistics: those of ``contrast_stats``; ``kl`` [B], see
        ``reference_kl``; ``text_nll``; and each term as ``loss_NAME`` if there are several.
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
        losses["cca_code"], stats = objectives.cca_code(*scored.contrast)
    if terms.needs_negatives:
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


def _contrastive(
    terms: LossTerms, batch: MicroBatch, scored: Scored, ref: RefScores
) -> tuple[dict[str, torch.Tensor], objectives.Stats]:
    config, count, num_codes = terms.config, batch.num_pairs, batch.codes.shape[1]
    logps = scored.logps
    rows = (logps[:count], logps[count:], ref.logps[:count], ref.logps[count:])
    beta = beta_of(config, num_codes)
    same = batch.counts_as_positive
    losses: dict[str, torch.Tensor] = {}
    stats: objectives.Stats = {}
    if "cca" in terms.weights:
        losses["cca"], stats = objectives.cca(
            *rows, counts_as_positive=same, beta=beta, lambda_=config.lambda_
        )
    if "dpo" in terms.weights:
        losses["dpo"], stats = objectives.dpo(*rows, counts_as_positive=same, beta=beta)
    if "unlearn" in terms.weights:
        losses["unlearn"], stats = objectives.unlearn(
            *rows, counts_as_positive=same, lambda_=config.lambda_, num_codes=num_codes
        )
    return losses, stats
