"""What makes a recipe's values wrong, found without reading data or weights."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mm_cca.errors import UserError
from mm_cca.eval_checks import eval_checks
from mm_cca.negatives import KINDS, load_words
from mm_cca.negatives.embed import ALLOWED as EMBEDDINGS
from mm_cca.negatives.embed import check_embedding
from mm_cca.schema import (
    OBJECTIVES,
    SOURCES,
    STAGES,
    TEXT_FILES,
    AnyRecipe,
    DataConfig,
    Recipe,
    ScorerRecipe,
    TokenizerRecipe,
)
from mm_cca.sums import parse_sum

PRECISIONS = ("no", "bf16", "fp16")
DTYPES = ("float32", "bfloat16", "float16")
TRACKERS = ("tensorboard", "wandb", "trackio")
SCHEDULES = ("cosine", "constant")
MIN_IMAGES = 4
"""Fewer have no three neighbours (precision and recall) and no two halves (kernel distance)."""

Check = tuple[str, Any, bool, str]
"""Key, value, whether it is right, what is allowed."""


def problems(recipe: AnyRecipe) -> list[str]:
    """One sentence for every wrong value; empty when the recipe is sound."""
    checks: list[Check] = [
        *(_one_of("run.stages", stage, STAGES) for stage in recipe.run.stages),
        *(_one_of("run.sources", source, SOURCES) for source in recipe.run.sources),
        *_data(recipe.data),
    ]
    if isinstance(recipe, Recipe):
        checks += [*_model(recipe), *_loss(recipe), *_train(recipe), *_sample(recipe)]
    elif isinstance(recipe, TokenizerRecipe):
        checks += _tokenizer(recipe)
    elif isinstance(recipe, ScorerRecipe):
        checks += _scorer(recipe)
    return [
        f"{key} is {value!r}; allowed: {allowed}" for key, value, ok, allowed in checks if not ok
    ]


def _one_of(key: str, value: str, allowed: Iterable[str]) -> Check:
    return key, value, value in tuple(allowed), ", ".join(allowed)


def _at_least(key: str, value: float, low: float) -> Check:
    return key, value, low <= value < math.inf, f"{low} or more"


def _above(key: str, value: float, low: float) -> Check:
    return key, value, low < value < math.inf, f"more than {low}"


def _fraction(key: str, value: float) -> Check:
    return key, value, 0 <= value < 1, "0 up to, but not, 1"


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


def _text_file(key: str, value: str | None) -> Check:
    right = value is None or (Path(value).suffix in TEXT_FILES and Path(value).is_file())
    return key, value, right, f"null, or a file that ends in {', '.join(TEXT_FILES)}"


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


def _no_two_alike(key: str, values: Sequence[float | str]) -> Check:
    # Numbers become names of arms with six digits.
    names = [value if isinstance(value, str) else f"{value:g}" for value in values]
    return key, values, len(set(names)) == len(names), "no two alike"


def _when(condition: bool, check: Callable[[], Check]) -> list[Check]:
    return [check()] if condition else []


def _data(data: DataConfig) -> list[Check]:
    size = data.image_size
    return [
        ("data.image_size", size, len(size) == 2 and min(size, default=0) > 0, "[height, width]"),
        _at_least("data.variants", data.variants, 1),
        _at_least("data.max_zoom", data.max_zoom, 1),
        _fraction("data.max_shift", data.max_shift),
        _at_least("data.max_bad", data.max_bad, 0),
        _at_least("data.encode_batch_size", data.encode_batch_size, 1),
        _at_least("data.rows_per_shard", data.rows_per_shard, 1),
    ]


def _model(recipe: Recipe) -> list[Check]:
    from mm_cca.adapters import ADAPTERS

    adapter = recipe.model.adapter
    known = adapter in ADAPTERS or ":" in adapter
    return [
        ("model.adapter", adapter, known, f"{', '.join(ADAPTERS)}, or package.module:Class"),
        _one_of("model.dtype", recipe.model.dtype, DTYPES),
    ]


def _loss(recipe: Recipe) -> list[Check]:
    loss = recipe.loss
    return [
        _sum("loss.objective", loss.objective, OBJECTIVES),
        _above("loss.beta", loss.beta, 0),
        *_when(
            loss.beta_codes is not None,
            lambda: _at_least("loss.beta_codes", loss.beta_codes or 0, 1),
        ),
        _at_least("loss.lambda_", loss.lambda_, 0),
        _fraction("loss.uncond_ratio", loss.uncond_ratio),
        _sum("loss.negatives", loss.negatives, KINDS),
        _weights_sum_to_one("loss.negatives", loss.negatives),
        _at_least("loss.num_negatives", loss.num_negatives, 1),
        _at_least("loss.hard_candidates", loss.hard_candidates, loss.num_negatives),
        (
            "loss.max_similarity",
            loss.max_similarity,
            loss.max_similarity is None or 0 < loss.max_similarity <= 1,
            "null, or more than 0 and at most 1",
        ),
        _embedding("loss.negatives_embedding", loss.negatives_embedding),
        *_when(
            loss.distill_scale is not None,
            lambda: _above("loss.distill_scale", loss.distill_scale or 0, 1),
        ),
        _at_least("loss.text_weight", loss.text_weight, 0),
    ]


def _train(recipe: Recipe) -> list[Check]:
    train, loss = recipe.train, recipe.loss
    best_needs = train.keep != "best" or (train.eval_every > 0 and bool(recipe.data.heldout_split))
    return [
        _at_least("train.seed", train.seed, 0),
        _at_least("train.max_steps", train.max_steps, 1),
        (
            "train.stop_after",
            train.stop_after,
            train.stop_after is None or 1 <= train.stop_after <= train.max_steps,
            f"null, or 1 to train.max_steps ({train.max_steps})",
        ),
        _at_least("train.micro_batch_size", train.micro_batch_size, 1),
        (
            "train.batch_size",
            train.batch_size,
            train.batch_size > 0 and train.batch_size % max(1, train.micro_batch_size) == 0,
            f"a multiple of train.micro_batch_size ({train.micro_batch_size}) and of the ranks",
        ),
        _above("train.learning_rate", train.learning_rate, 0),
        _one_of("train.schedule", train.schedule, SCHEDULES),
        _at_least("train.warmup_steps", train.warmup_steps, 0),
        _at_least("train.weight_decay", train.weight_decay, 0),
        _above("train.max_grad_norm", train.max_grad_norm, 0),
        _one_of("train.mixed_precision", train.mixed_precision, PRECISIONS),
        _one_of("train.tuning", train.tuning, ("full", "lora")),
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
        _at_least("train.lora_rank", train.lora_rank, 1),
        _at_least("train.save_every", train.save_every, 1),
        _at_least("train.keep_checkpoints", train.keep_checkpoints, 1),
        _at_least("train.eval_every", train.eval_every, 0),
        _one_of("train.keep", train.keep, ("last", "best")),
        (
            "train.keep",
            train.keep,
            best_needs,
            "last, or best with train.eval_every > 0 and a data.heldout_split",
        ),
        *(_one_of("train.trackers", name, TRACKERS) for name in train.trackers),
    ]


def _sample(recipe: Recipe) -> list[Check]:
    sample = recipe.sample
    return [
        _at_least("sample.num_images", sample.num_images, MIN_IMAGES),
        _at_least("sample.images_per_prompt", sample.images_per_prompt, 1),
        *(_above("sample.guidance_scales", s, 1) for s in sample.guidance_scales),
        *(_above("sample.control_scales", s, 1) for s in sample.control_scales),
        *(_above("sample.cca_scales", s, 1) for s in sample.cca_scales),
        *(
            (
                "sample.dial",
                a,
                0 <= a < math.inf and a != 1,
                "0 or more, but not 1, which is the arm cca",
            )
            for a in sample.dial
        ),
        (
            "sample.negative_prompts",
            sample.negative_prompts,
            bool(sample.negative_prompts),
            'one or more texts; [""] guides away from the prompt that says nothing',
        ),
        *(
            _no_two_alike(f"sample.{key}", values)
            for key, values in (
                ("guidance_scales", sample.guidance_scales),
                ("control_scales", sample.control_scales),
                ("cca_scales", sample.cca_scales),
                ("dial", sample.dial),
                ("negative_prompts", sample.negative_prompts),
            )
        ),
        *_when(
            sample.temperature is not None,
            lambda: _above("sample.temperature", sample.temperature or 0, 0),
        ),
        *_when(sample.top_k is not None, lambda: _at_least("sample.top_k", sample.top_k or 0, 1)),
        (
            "sample.top_p",
            sample.top_p,
            sample.top_p is None or 0 < sample.top_p <= 1,
            "null, or more than 0 and at most 1",
        ),
        _at_least("sample.batch_size", sample.batch_size, 1),
        *_attributes(recipe),
        *_text_nll(recipe),
        _text_file("data.text_path", recipe.data.text_path),
        *eval_checks(recipe),
        _at_least("eval.bootstrap_samples", recipe.eval.bootstrap_samples, 100),
        _at_least("eval.grid_prompts", recipe.eval.grid_prompts, 1),
        _at_least("eval.report_megabytes", recipe.eval.report_megabytes, 0),
    ]


def _attributes(recipe: Recipe) -> list[Check]:
    path = recipe.data.attribute_words
    try:
        kinds = load_words(path).kinds
    except UserError as error:
        return [("data.attribute_words", path, False, f"a YAML file of word lists ({error})")]
    return [_one_of("eval.attributes", kind, kinds) for kind in recipe.eval.attributes]


def _text_nll(recipe: Recipe) -> list[Check]:
    key, value = "eval.text_nll", recipe.eval.text_nll
    if value != "captions":
        return [_text_file(key, value)]
    allowed = "a text file; captions are those of data.heldout_split, which is null"
    return [(key, value, recipe.data.heldout_split is not None, allowed)]


def _tokenizer(recipe: TokenizerRecipe) -> list[Check]:
    settings = recipe.tokenizer
    side = 2 ** (len(settings.channel_multiplier) - 1)
    return [
        _at_least("tokenizer.num_codes", settings.num_codes, 2),
        _at_least("tokenizer.steps", settings.steps, 1),
        (
            "data.image_size",
            recipe.data.image_size,
            all(pixels % side == 0 for pixels in recipe.data.image_size),
            f"multiples of {side}, the pixels per code of this tokenizer.channel_multiplier",
        ),
        _one_of("tokenizer.mixed_precision", settings.mixed_precision, PRECISIONS),
    ]


def _scorer(recipe: ScorerRecipe) -> list[Check]:
    settings = recipe.scorer
    return [
        _at_least("scorer.steps", settings.steps, 1),
        _at_least("scorer.batch_size", settings.batch_size, 2),
        _one_of("scorer.mixed_precision", settings.mixed_precision, PRECISIONS),
    ]
