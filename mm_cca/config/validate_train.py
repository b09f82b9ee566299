"""Checks of ``loss`` and ``train`` that involve several keys; they read no data and no weights."""

import re
from collections.abc import Iterator

from mm_cca.config.constraints import Check
from mm_cca.config.mixtures import parse_sum
from mm_cca.config.schema import OBJECTIVES, WITH_BASE, LossConfig, Recipe
from mm_cca.config.schema_train import AUTO, WITH_REFERENCE
from mm_cca.errors import UserError
from mm_cca.negatives import KINDS
from mm_cca.negatives.embed import ALLOWED as EMBEDDINGS
from mm_cca.negatives.embed import check_embedding


def loss_checks(recipe: Recipe) -> list[Check]:
    """Checks of ``loss``."""
    loss = recipe.loss
    return [
        *_constants_of(loss, "cca", "loss.gap_floor", loss.gap_floor),
        *_constants_of(loss, "cca_code", "loss.scale_by_relevance", loss.scale_by_relevance),
        _sum("loss.objective", loss.objective, OBJECTIVES),
        *_auto_beta(loss),
        _sum("loss.negatives", loss.negatives, KINDS),
        _weights_sum_to_one("loss.negatives", loss.negatives),
        (
            "loss.hard_candidates",
            loss.hard_candidates,
            loss.hard_candidates >= loss.num_negatives,
            f"loss.num_negatives ({loss.num_negatives}) or more",
        ),
        _embedding("loss.negatives_embedding", loss.negatives_embedding),
    ]


def _auto_beta(loss: LossConfig) -> list[Check]:
    """``auto`` measures negative captions, which ddo alone has none of."""
    names = _terms(loss.objective, OBJECTIVES)
    known = "ddo" not in names or "cca" in names or "dpo" in names
    return [
        (
            "loss.beta",
            loss.beta,
            loss.beta != AUTO or known,
            "a number with loss.objective=ddo, such as 0.01 (auto measures negative captions, "
            "which only cca and dpo have)",
        )
    ]


def train_checks(recipe: Recipe) -> list[Check]:
    """Checks of ``train``."""
    train, loss = recipe.train, recipe.loss
    uncached = [name for name in _terms(loss.objective, OBJECTIVES) if name in WITH_BASE]
    best_needs = train.keep != "best" or (train.eval_every > 0 and bool(recipe.data.heldout_split))
    return [
        (
            "train.stop_after",
            train.stop_after,
            train.stop_after is None or 1 <= train.stop_after <= train.max_steps,
            f"null, or 1 to train.max_steps ({train.max_steps})",
        ),
        (
            "train.batch_size",
            train.batch_size,
            train.batch_size % max(1, train.micro_batch_size) == 0,
            f"a multiple of train.micro_batch_size ({train.micro_batch_size}) times the number of "
            "ranks",
        ),
        (
            "train.reference",
            train.reference,
            train.reference != "lora" or train.tuning == "lora",
            "copy, cached (computed once by prepare), or lora when train.tuning is lora (the same "
            "weights, adapter switched off)",
        ),
        (
            "train.reference",
            train.reference,
            train.reference != "cached" or not uncached,
            f"copy or lora with loss.objective={loss.objective}: {', '.join(uncached)} needs the "
            "base's whole distributions, which are not cached",
        ),
        *_quantized(recipe),
        *_lora(recipe),
        (
            "train.keep",
            train.keep,
            best_needs,
            "last, or best with train.eval_every > 0 and a data.heldout_split",
        ),
    ]


def _quantized(recipe: Recipe) -> Iterator[Check]:
    """Quantised weights get no gradients, and one copy of them serves model and reference."""
    kind, train = recipe.model.quantization, recipe.train
    if kind is None:
        return
    yield (
        "model.quantization",
        kind,
        train.tuning == "lora",
        "null with train.tuning=full: quantised weights can't be trained themselves, only a LoRA "
        "on top of them (train.tuning=lora)",
    )
    yield (
        "train.reference",
        train.reference,
        train.reference != "copy" or not WITH_REFERENCE.holds(recipe),
        f"lora or cached with model.quantization={kind}: the quantised model with its LoRA "
        "switched off is the reference, so a copy would only take memory",
    )
    yield (
        "train.compile",
        train.compile,
        not train.compile,
        f"false with model.quantization={kind}, whose layers were never tried with torch.compile",
    )


def _lora(recipe: Recipe) -> Iterator[Check]:
    train = recipe.train
    for target in train.lora_targets:
        yield "train.lora_targets", target, *_regular_expression(target)
    dials = [] if train.tuning != "lora" or not train.lora_dora else recipe.sample.dial
    allowed = "[] with train.lora_dora: a DoRA has no scale that leads back to the base"
    yield "sample.dial", dials, not dials, allowed


def _regular_expression(text: str) -> tuple[bool, str]:
    try:
        re.compile(text)
    except re.error as error:
        return False, f"regular expressions; here, {error}"
    return bool(text), "regular expressions that are not empty"


def _constants_of(
    loss: LossConfig, objective: str, key: str, value: float | None
) -> Iterator[Check]:
    """A constant that is null by default may be set only where an objective uses it."""
    terms = _terms(loss.objective, OBJECTIVES)
    if terms:
        allowed = f"null with loss.objective={loss.objective}: only {objective} uses it"
        yield key, value, value is None or objective in terms, allowed


def _sum(key: str, value: str, names: tuple[str, ...]) -> Check:
    try:
        parse_sum(value, names)
    except ValueError as error:
        return key, value, False, f"{', '.join(names)}, or a weighted sum of them ({error})"
    return key, value, True, ""


def _embedding(key: str, value: str) -> Check:
    try:
        check_embedding(value)
    except UserError:
        return key, value, False, EMBEDDINGS
    return key, value, True, ""


def _weights_sum_to_one(key: str, value: str) -> Check:
    weights = _terms(value, KINDS).values()
    total = sum(weights)
    valid = not weights or abs(total - 1) < 1e-6
    return key, value, valid, f"weights that sum to 1; these sum to {total:g}"


def _terms(value: str, names: tuple[str, ...]) -> dict[str, float]:
    """Names and weights; empty if the sum is invalid, which another check reports."""
    try:
        return parse_sum(value, names)
    except ValueError:
        return {}
