"""What makes a recipe's values wrong, found without reading data or weights."""

import math

from mm_cca.config.constraints import Check, above, at_least, fraction, no_two_alike, one_of, when
from mm_cca.config.schema import (
    SOURCES,
    STAGES,
    AnyRecipe,
    DataConfig,
    Recipe,
    ScorerRecipe,
    TokenizerRecipe,
)
from mm_cca.config.validate_eval import eval_checks
from mm_cca.config.validate_train import PRECISIONS, loss_checks, train_checks

DTYPES = ("float32", "bfloat16", "float16")
MIN_IMAGES = 4
"""Fewer have no three neighbours (precision and recall) and no two halves (kernel distance)."""


def problems(recipe: AnyRecipe) -> list[str]:
    """One sentence for every wrong value; empty when the recipe is sound."""
    checks: list[Check] = [
        *(one_of("run.stages", stage, STAGES) for stage in recipe.run.stages),
        *(one_of("run.sources", source, SOURCES) for source in recipe.run.sources),
        (
            "run.trained",
            recipe.run.trained,
            recipe.run.trained is None or isinstance(recipe, Recipe),
            f"null in a {recipe.job} recipe, which draws nothing",
        ),
        *_data(recipe.data),
    ]
    if isinstance(recipe, Recipe):
        checks += [*_model(recipe), *loss_checks(recipe), *train_checks(recipe)]
        checks += [*_sample(recipe), *eval_checks(recipe)]
    elif isinstance(recipe, TokenizerRecipe):
        checks += _tokenizer(recipe)
    elif isinstance(recipe, ScorerRecipe):
        checks += _scorer(recipe)
    return [
        f"{key} is {value!r}; allowed: {allowed}" for key, value, ok, allowed in checks if not ok
    ]


def _data(data: DataConfig) -> list[Check]:
    size = data.image_size
    return [
        ("data.image_size", size, len(size) == 2 and min(size, default=0) > 0, "[height, width]"),
        at_least("data.variants", data.variants, 1),
        at_least("data.max_zoom", data.max_zoom, 1),
        fraction("data.max_shift", data.max_shift),
        at_least("data.max_bad", data.max_bad, 0),
        at_least("data.encode_batch_size", data.encode_batch_size, 1),
        at_least("data.rows_per_shard", data.rows_per_shard, 1),
    ]


def _model(recipe: Recipe) -> list[Check]:
    from mm_cca.config.shipped import ADAPTERS

    adapter = recipe.model.adapter
    known = adapter in ADAPTERS or ":" in adapter
    return [
        ("model.adapter", adapter, known, f"{', '.join(ADAPTERS)}, or package.module:Class"),
        one_of("model.dtype", recipe.model.dtype, DTYPES),
    ]


def _sample(recipe: Recipe) -> list[Check]:
    sample = recipe.sample
    return [
        at_least("sample.num_images", sample.num_images, MIN_IMAGES),
        at_least("sample.images_per_prompt", sample.images_per_prompt, 1),
        *(above("sample.guidance_scales", s, 1) for s in sample.guidance_scales),
        *(above("sample.control_scales", s, 1) for s in sample.control_scales),
        *(above("sample.cca_scales", s, 1) for s in sample.cca_scales),
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
            no_two_alike(f"sample.{key}", values)
            for key, values in (
                ("guidance_scales", sample.guidance_scales),
                ("control_scales", sample.control_scales),
                ("cca_scales", sample.cca_scales),
                ("dial", sample.dial),
                ("negative_prompts", sample.negative_prompts),
            )
        ),
        *when(
            sample.temperature is not None,
            lambda: above("sample.temperature", sample.temperature or 0, 0),
        ),
        *when(sample.top_k is not None, lambda: at_least("sample.top_k", sample.top_k or 0, 1)),
        (
            "sample.top_p",
            sample.top_p,
            sample.top_p is None or 0 < sample.top_p <= 1,
            "null, or more than 0 and at most 1",
        ),
        at_least("sample.batch_size", sample.batch_size, 1),
    ]


def _tokenizer(recipe: TokenizerRecipe) -> list[Check]:
    settings = recipe.tokenizer
    side = 2 ** (len(settings.channel_multiplier) - 1)
    return [
        at_least("tokenizer.num_codes", settings.num_codes, 2),
        at_least("tokenizer.steps", settings.steps, 1),
        (
            "data.image_size",
            recipe.data.image_size,
            all(pixels % side == 0 for pixels in recipe.data.image_size),
            f"multiples of {side}, the pixels per code of this tokenizer.channel_multiplier",
        ),
        one_of("tokenizer.mixed_precision", settings.mixed_precision, PRECISIONS),
    ]


def _scorer(recipe: ScorerRecipe) -> list[Check]:
    settings = recipe.scorer
    return [
        at_least("scorer.steps", settings.steps, 1),
        at_least("scorer.batch_size", settings.batch_size, 2),
        one_of("scorer.mixed_precision", settings.mixed_precision, PRECISIONS),
    ]
