"""What makes the values of ``loss`` and ``train`` wrong, found without reading data or weights."""

from mm_cca.config.constraints import Check, above, at_least, fraction, one_of, when
from mm_cca.config.mixtures import parse_sum
from mm_cca.config.schema import OBJECTIVES, Recipe
from mm_cca.errors import UserError
from mm_cca.negatives import KINDS
from mm_cca.negatives.embed import ALLOWED as EMBEDDINGS
from mm_cca.negatives.embed import check_embedding

PRECISIONS = ("no", "bf16", "fp16")
TRACKERS = ("tensorboard", "wandb", "trackio")
SCHEDULES = ("cosine", "constant")


def loss_checks(recipe: Recipe) -> list[Check]:
    """Checks of ``loss``."""
    loss = recipe.loss
    return [
        _sum("loss.objective", loss.objective, OBJECTIVES),
        above("loss.beta", loss.beta, 0),
        *when(
            loss.beta_codes is not None,
            lambda: at_least("loss.beta_codes", loss.beta_codes or 0, 1),
        ),
        at_least("loss.lambda_", loss.lambda_, 0),
        fraction("loss.uncond_ratio", loss.uncond_ratio),
        _sum("loss.negatives", loss.negatives, KINDS),
        _weights_sum_to_one("loss.negatives", loss.negatives),
        at_least("loss.num_negatives", loss.num_negatives, 1),
        at_least("loss.hard_candidates", loss.hard_candidates, loss.num_negatives),
        (
            "loss.max_similarity",
            loss.max_similarity,
            loss.max_similarity is None or 0 < loss.max_similarity <= 1,
            "null, or more than 0 and at most 1",
        ),
        _embedding("loss.negatives_embedding", loss.negatives_embedding),
        *when(
            loss.distill_scale is not None,
            lambda: above("loss.distill_scale", loss.distill_scale or 0, 1),
        ),
        at_least("loss.text_weight", loss.text_weight, 0),
    ]


def train_checks(recipe: Recipe) -> list[Check]:
    """Checks of ``train``."""
    train, loss = recipe.train, recipe.loss
    best_needs = train.keep != "best" or (train.eval_every > 0 and bool(recipe.data.heldout_split))
    return [
        at_least("train.seed", train.seed, 0),
        at_least("train.max_steps", train.max_steps, 1),
        (
            "train.stop_after",
            train.stop_after,
            train.stop_after is None or 1 <= train.stop_after <= train.max_steps,
            f"null, or 1 to train.max_steps ({train.max_steps})",
        ),
        at_least("train.micro_batch_size", train.micro_batch_size, 1),
        (
            "train.batch_size",
            train.batch_size,
            train.batch_size > 0 and train.batch_size % max(1, train.micro_batch_size) == 0,
            f"a multiple of train.micro_batch_size ({train.micro_batch_size}) and of the ranks",
        ),
        above("train.learning_rate", train.learning_rate, 0),
        one_of("train.schedule", train.schedule, SCHEDULES),
        at_least("train.warmup_steps", train.warmup_steps, 0),
        at_least("train.weight_decay", train.weight_decay, 0),
        above("train.max_grad_norm", train.max_grad_norm, 0),
        one_of("train.mixed_precision", train.mixed_precision, PRECISIONS),
        one_of("train.tuning", train.tuning, ("full", "lora")),
        (
            "train.reference",
            train.reference,
            train.reference in ("copy", "cached")
            or (train.reference == "lora" and train.tuning == "lora"),
            "copy, cached (computed once by prepare), or lora when train.tuning is lora (the same "
            "weights, adapter switched off)",
        ),
        (
            "train.reference",
            train.reference,
            not (train.reference == "cached" and "distill" in _terms(loss.objective, OBJECTIVES)),
            f"copy or lora with loss.objective={loss.objective}: distill asks the base for whole "
            "distributions, which are not kept",
        ),
        (
            "train.compile",
            train.compile,
            not train.compile or loss.objective.strip() == "nll",
            f"false with loss.objective={loss.objective}: a compiled model and its reference round "
            "differently, and their gap must start at 0",
        ),
        at_least("train.lora_rank", train.lora_rank, 1),
        at_least("train.save_every", train.save_every, 1),
        at_least("train.keep_checkpoints", train.keep_checkpoints, 1),
        at_least("train.eval_every", train.eval_every, 0),
        one_of("train.keep", train.keep, ("last", "best")),
        (
            "train.keep",
            train.keep,
            best_needs,
            "last, or best with train.eval_every > 0 and a data.heldout_split",
        ),
        *(one_of("train.trackers", name, TRACKERS) for name in train.trackers),
    ]


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
    right = not weights or abs(total - 1) < 1e-6
    return key, value, right, f"weights that sum to 1; these sum to {total:g}"


def _terms(value: str, names: tuple[str, ...]) -> dict[str, float]:
    """Empty where the sum is wrong, which another check says."""
    try:
        return parse_sum(value, names)
    except ValueError:
        return {}
